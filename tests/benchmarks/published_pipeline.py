"""The published input pipeline, plainly: PIL images, as the method's paper has it.

Every view is cropped from an RGB image, its grey crop kept as the target, then
jittered, blurred, flipped and distorted, with NumPy and Python's `random`.
"""

from __future__ import annotations

import random

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor
from torchvision import transforms

SIZE = 224
crop = transforms.RandomResizedCrop(SIZE, scale=(0.2, 1.0))
jitter = transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8)
flip = transforms.RandomHorizontalFlip()


def blur(image: Image.Image) -> Image.Image:
    if random.random() < 0.5:
        image = image.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2.0)))
    return image


def rectangle(low: int, high: int) -> tuple[slice, slice]:
    height, width = random.randint(low, high), random.randint(low, high)
    top = random.randint(3, SIZE - height - 3)
    left = random.randint(3, SIZE - width - 3)
    return slice(top, top + height), slice(left, left + width)


def in_paint(view: np.ndarray) -> np.ndarray:
    for _ in range(10):
        view[(slice(None), *rectangle(10, 70))] = 0
        if random.random() < 0.1:
            break
    return view


def out_paint(view: np.ndarray) -> np.ndarray:
    image, view = view, np.zeros_like(view)
    for _ in range(10):
        area = (slice(None), *rectangle(SIZE - 70, SIZE - 50))
        view[area] = image[area]
        if random.random() < 0.1:
            break
    return view


def shuffle(view: np.ndarray) -> np.ndarray:
    image = view.copy()
    for _ in range(10):
        height, width = random.randint(10, 15), random.randint(10, 15)
        places = []
        for _ in range(2):
            top = random.randint(0, SIZE - height)
            left = random.randint(0, SIZE - width)
            rows, columns = slice(top, top + height), slice(left, left + width)
            places.append((slice(None), rows, columns))
        view[places[0]], view[places[1]] = image[places[1]], image[places[0]]
    return view


def distort(view: np.ndarray) -> np.ndarray:
    draw = random.random()
    if draw <= 0.30:
        return in_paint(view)
    if draw <= 0.35:
        return out_paint(view)
    return shuffle(view) if draw <= 0.65 else view


def transform(image: Image.Image) -> tuple[list[Tensor], list[Tensor]]:
    """Returns both views and both targets."""
    views, targets = [], []
    for _ in range(2):
        cropped = crop(image)
        targets.append(transforms.functional.to_tensor(cropped.convert("L")))
        view = transforms.functional.to_tensor(flip(blur(jitter(cropped))))
        views.append(torch.from_numpy(distort(view.numpy())))
    return views, targets


def load(path: str) -> Image.Image:
    with open(path, "rb") as file:
        return Image.open(file).convert("RGB")
