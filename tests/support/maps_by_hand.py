"""Images, and the maps of a small backbone, computed stage by stage."""

from __future__ import annotations

import torch
from torch import Tensor, nn

X = torch.Generator().manual_seed(0)


def images(batch: int = 3, channels: int = 3, size: int = 32) -> Tensor:
    return torch.rand(batch, channels, size, size, generator=X)


def expected_maps(backbone: nn.Sequential, x: Tensor) -> list[Tensor]:
    maps = []
    for stage in backbone[:3]:
        x = stage(x)
        maps.append(x)
    return maps


def assert_maps(actual: list[Tensor], expected: list[Tensor]) -> None:
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b)
