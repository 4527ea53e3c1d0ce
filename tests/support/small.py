"""A small encoder, and labelled images of bars."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from lightly_dira.evaluation.labelled import LabelledImages


def small_encoder(channels: int = 1) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(channels, 8, 3, 2, 1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, 2, 1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
    )


def bars(count: int, size: int = 32, seed: int = 0) -> LabelledImages:
    """Upright bars (class 1) or bars across (class 0), bright on noise."""
    random = np.random.default_rng(seed)
    images = random.integers(0, 100, (count, size, size), dtype=np.uint8)
    labels = np.arange(count) % 2
    masks, boxes = np.zeros_like(images), []
    for image, mask, label in zip(images, masks, labels, strict=True):
        x, y = random.integers(0, size // 2, 2)
        width, height = (size // 8, size // 2)[:: 1 if label else -1]
        mask[y : y + height, x : x + width] = 1
        image[mask == 1] = 255
        boxes.append(np.array([[x, y, width, height]]))
    splits = np.array(["train", "train", "val", "test"])[np.arange(count) // 2 % 4]
    return LabelledImages(
        images, labels=labels, masks=masks, boxes=boxes, splits=splits
    )
