"""Many draws of distortions, alone, on the host and as a batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from lightly_dira.transforms import BatchDistortion

MANY = 400
IMAGE, VOLUME = (48, 56), (12, 20, 24)


def numbered(sizes: tuple[int, ...]) -> torch.Tensor:
    """Images whose pixels all differ, and none is black or white."""
    count = int(np.prod(sizes))
    pixels = (torch.arange(count) + 1.0) / (count + 1)
    return pixels.view(1, 1, *sizes).expand(MANY, 2, *sizes)


def on_the_host(distortion: Any, images: torch.Tensor) -> torch.Tensor:
    random = np.random.default_rng(0)
    arrays = images.movedim(1, -1).contiguous().numpy()
    distorted = np.stack([distortion(array, random) for array in arrays])
    return torch.from_numpy(distorted).movedim(-1, 1)


def both_ways(
    distortion: Any, sizes: tuple[int, ...]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    images = numbered(sizes)
    torch.manual_seed(0)
    distort = BatchDistortion(distortion, spatial_dims=len(sizes))
    return images, on_the_host(distortion, images), distort(images)


def rectangles(transform, key: str = "blocks", n: int = 2000) -> list:
    random = np.random.default_rng(0)
    return [transform.draw((224, 224), random)[key] for _ in range(n)]
