"""Draws and blocks for a batch of images, on its device."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Chosen:
    """The images of a batch that are distorted in place, and their draws.

    Args:
        images: The batch.
        rows: Indices of the images, or None for all.
        generator: What is drawn from.
    """

    def __init__(
        self,
        images: Tensor,
        rows: list[int] | None,
        generator: torch.Generator | None,
    ) -> None:
        """Takes the images."""
        self.device, self.sizes = images.device, images.shape[2:]
        self.channels = images.shape[1]
        self._generator = generator
        # On the host each image is changed alone, while it is in the cache.
        whole = rows is None
        self._views = [images] if rows is None else [images[i : i + 1] for i in rows]
        self._at_once = len(images) if whole else 1
        self._count = len(images) if rows is None else len(rows)

    def uniform(self, *shape: int) -> Tensor:
        """Draws from [0, 1), for each image: (B, *shape)."""
        size = self._count, *shape
        return torch.rand(size, generator=self._generator, device=self.device)

    def integers(self, low: Any, high: Any, *shape: int) -> Tensor:
        """Draws from low to high, both included: (B, *shape)."""
        drawn: Tensor = low + (self.uniform(*shape) * (high - low + 1)).long()
        return drawn

    def with_own(self, *values: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """Yields images, to be changed in place, each with its rows of some values."""
        parts = (torch.split(value, self._at_once) for value in values)
        return zip(self._views, *parts, strict=True)


class Blocks(NamedTuple):
    """K blocks of each image: first positions and lengths, (B, K, axes)."""

    starts: Tensor
    lengths: Tensor

    def inside(self, sizes: Sequence[int]) -> list[Tensor]:
        """Whether each position of an axis lies in each block: (B, K, size)."""
        found = []
        axes = zip(self.starts.unbind(-1), self.lengths.unbind(-1), sizes, strict=True)
        for start, length, size in axes:
            past = torch.arange(size, device=start.device) - start[..., None]
            found.append((past >= 0) & (past < length[..., None]))
        return found

    @property
    def volumes(self) -> Tensor:
        """How many pixels each has: (B, K, 1)."""
        volumes: Tensor = self.lengths.prod(dim=-1, keepdim=True)
        return volumes

    def numbers(self, limits: Sequence[tuple[int, int]]) -> Tensor:
        """Numbers of the pixels in each block, as many as the largest may have.

        In smaller blocks they begin again, as all blocks need tensors of one shape.

        Args:
            limits: Shortest and longest side along each axis.
        """
        most = math.prod(high for _, high in limits)
        return torch.arange(most, device=self.starts.device) % self.volumes

    def positions(self, numbers: Tensor, sizes: Sequence[int]) -> Tensor:
        """Where pixels of blocks lie in the image, both counted row by row: (B, K, S).

        Args:
            numbers: The pixels' numbers in the block.
            sizes: Sides of the image.
        """
        place, stride = torch.zeros_like(numbers), 1
        for axis in reversed(range(len(sizes))):
            length = self.lengths[..., axis, None]
            place += (self.starts[..., axis, None] + numbers % length) * stride
            numbers, stride = numbers // length, stride * sizes[axis]
        return place


def move_pixels(
    chosen: Chosen, places: Tensor, sources: Tensor, exist: Tensor | None = None
) -> None:
    """Gives the pixels at some places the values that are at other places before.

    Args:
        chosen: The images.
        places: Where pixels change, (B, K, S), counted row by row.
        sources: Where their values come from. Of blocks with one place the last one
            counts, as its code below is the largest.
        exist: Which blocks there are, (B, K); by default all.
    """
    count = math.prod(chosen.sizes)
    order = torch.arange(1, places.shape[1] + 1, device=chosen.device)[:, None]
    codes = order * count + sources
    if exist is not None:
        codes = torch.where(exist[..., None], codes, places)
    codes, places = codes.flatten(1), places.flatten(1)
    best = places.new_empty(len(places), count).scatter_(1, places, -1)
    best.scatter_reduce_(1, places, codes, "amax")
    # All that goes to one place is now the same, so that its order does not matter.
    sources = best.gather(1, places) % count
    for images, *where in chosen.with_own(places, sources):
        to, of = (x[:, None].expand(-1, chosen.channels, -1) for x in where)
        pixels = images.flatten(2)
        pixels.scatter_(2, to, pixels.gather(2, of))
