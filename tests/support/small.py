"""A small encoder, labelled images of bars, and volumes of balls."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.utils.data import TensorDataset

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


SIZE = 12, 16, 20


def balls(count: int, seed: int = 0) -> TensorDataset:
    """Bright balls in noise, with their masks."""
    generator = torch.Generator().manual_seed(seed)
    volumes = 0.3 * torch.rand(count, 1, *SIZE, generator=generator)
    grid = torch.stack(torch.meshgrid(*map(torch.arange, SIZE), indexing="ij"))
    masks = torch.zeros(count, *SIZE, dtype=torch.long)
    for volume, mask in zip(volumes, masks, strict=True):
        centre = 4 + torch.rand(3, generator=generator) * (torch.tensor(SIZE) - 8)
        mask[(grid - centre[:, None, None, None]).square().sum(0) < 16] = 1
        volume[0][mask == 1] += 0.6
    return TensorDataset(volumes, masks)


def labelled_balls(count: int = 24) -> LabelledImages:
    volumes, masks = (tensor.numpy() for tensor in balls(count).tensors)
    splits = np.array(["train", "train", "val", "test"])[np.arange(count) % 4]
    return LabelledImages(
        (255 * volumes[:, 0]).astype(np.uint8),
        labels=np.arange(count) // 4 % 2,
        masks=masks,
        splits=splits,
        spatial_dims=3,
    )
