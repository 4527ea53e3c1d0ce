"""Blocks of images and volumes, which the distortions change."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

import albumentations as A
from numpy.typing import NDArray

Block = tuple[int, ...]
"""The first position of a block along each side, then the first behind it."""


class Blocks(A.ImageOnlyTransform):  # type: ignore[misc]
    """Draws blocks: rectangles in images, cuboids in volumes (D, H, W)."""

    def __init__(self, count: int, side: tuple[float, float], p: float) -> None:
        super().__init__(p=p)
        low, high = side
        if count < 1 or not 0 < low <= high <= 1:
            raise ValueError(
                f"{type(self).__name__}: count must be at least 1 and side (shortest, "
                "longest) with 0 < shortest <= longest <= 1, got "
                f"{count} and {side}."
            )
        self.count = count
        self.side = side

    def get_params_dependent_on_data(
        self, params: dict[str, Any], data: dict[str, Any]
    ) -> dict[str, Any]:
        """Draws the blocks."""
        volume = data.get("volume")
        sizes = params["shape"][:2] if volume is None else volume.shape[:3]
        # Shortest and longest side in pixels.
        sides = [
            tuple(max(1, round(part * size)) for part in self.side) for size in sizes
        ]
        return self._draw(sizes, sides)

    def _draw(
        self, sizes: Sequence[int], sides: list[tuple[int, ...]]
    ) -> dict[str, Any]:
        raise NotImplementedError

    def apply_to_volume(self, volume: NDArray[Any], **params: Any) -> NDArray[Any]:
        """Applies the transform to a volume (D, H, W) or (D, H, W, C)."""
        changed: NDArray[Any] = self.apply(volume, **params)
        return changed


def area_of(block: Block) -> tuple[slice, ...]:
    """Returns the index of a block in an array."""
    half = len(block) // 2
    return tuple(map(slice, block[:half], block[half:]))


def draw(random: Random, low: int, high: int) -> int:
    """Draws from low to high, both included; several times faster than `randint`."""
    return low + int(random.random() * (high - low + 1))


def place(random: Random, lengths: Sequence[int], sizes: Sequence[int]) -> Block:
    """Draws where a block of these lengths lies, anywhere inside the image."""
    starts = [
        draw(random, 0, size - length)
        for size, length in zip(sizes, lengths, strict=True)
    ]
    stops = [start + length for start, length in zip(starts, lengths, strict=True)]
    return (*starts, *stops)
