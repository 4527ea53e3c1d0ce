"""Blocks of images and volumes, which the distortions change."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lightly_dira.transforms.distortion import RandomDistortion

Block = tuple[int, ...]
"""The first position of a block along each side, then the first behind it."""


class Blocks(RandomDistortion):
    """Draws blocks: rectangles in images, cuboids in volumes (D, H, W)."""

    count: int
    side: tuple[float, float]

    def __post_init__(self) -> None:
        low, high = self.side
        if self.count < 1 or not 0 < low <= high <= 1:
            raise ValueError(
                f"{type(self).__name__}: count must be at least 1 and side (shortest, "
                "longest) with 0 < shortest <= longest <= 1, got "
                f"{self.count} and {self.side}."
            )

    def limits(self, sizes: Sequence[int]) -> list[tuple[int, int]]:
        """Returns shortest and longest side in pixels, along each axis."""
        low, high = self.side
        return [(max(1, round(low * n)), max(1, round(high * n))) for n in sizes]


def area_of(block: Block) -> tuple[slice, ...]:
    """Returns the index of a block in an array."""
    half = len(block) // 2
    return tuple(map(slice, block[:half], block[half:]))


def draw(random: np.random.Generator, low: int, high: int) -> int:
    """Draws from low to high, both included; several times faster than `integers`."""
    return low + int(random.random() * (high - low + 1))


def place(
    random: np.random.Generator, lengths: Sequence[int], sizes: Sequence[int]
) -> Block:
    """Draws where a block of these lengths lies, anywhere inside the image."""
    starts = [
        draw(random, 0, size - length)
        for size, length in zip(sizes, lengths, strict=True)
    ]
    stops = [start + length for start, length in zip(starts, lengths, strict=True)]
    return (*starts, *stops)
