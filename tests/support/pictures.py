"""Images and volumes of numbers."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor

DTYPES = {
    np.uint8: (0, 255),
    np.uint16: (0, 65535),
    np.int16: (-1000, 1000),
    np.float32: (0, 1),
    np.float64: (0, 1),
}
SHAPE = 6, 7, 8  # of a volume: head, back, left


def pixels(dtype, shape, seed: int = 0) -> np.ndarray:
    low, high = DTYPES[dtype]
    values = low + (high - low) * np.random.default_rng(seed).random(shape)
    return values.astype(dtype)


def ramp(top: int = 4095, size: int = 64) -> np.ndarray:
    return np.linspace(0, top, size * size).reshape(size, size).astype(np.uint16)


def numbered(height: int = 224, width: int = 224) -> np.ndarray:
    """An image whose pixels all differ, and differ from black."""
    return 1 + np.arange(height * width, dtype=np.float32).reshape(height, width)


def smooth(size: int = 128, top: int = 60000) -> np.ndarray:
    noise = np.random.default_rng(0).random((size, size))
    blurred = cv2.GaussianBlur(noise, (0, 0), 6)
    blurred = (blurred - blurred.min()) / (blurred.max() - blurred.min())
    return (top * blurred).astype(np.uint16)


def volume(dtype=np.int16) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 1000, SHAPE).astype(dtype)


def cube(shape: tuple[int, ...] = (16, 24, 28), seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(shape, dtype=np.float32)


def batch_of(dims: int, channels: int = 3) -> Tensor:
    torch.manual_seed(0)
    return torch.rand(6, channels, *(32,) * dims)


def picture(mode: str = "RGB", size: int = 48) -> Image.Image:
    random = np.random.default_rng(0)
    grey = random.integers(1, 256, (size, size), dtype=np.uint8)
    return Image.fromarray(grey).convert(mode)
