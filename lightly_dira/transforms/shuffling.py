"""Shufflings that DiRA restores: of blocks, and of the pixels inside blocks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightly_dira.transforms.blocks import Block, Blocks, area_of, draw, place

# Places to try before a block is given up in a crowded image.
TRIES = 100


@dataclass
class PatchShuffling(Blocks):
    """Exchanges pairs of small rectangles of the image [0, 1].

    The two rectangles of a pair have the same size. No two rectangles overlap, so
    that every pixel is kept exactly once. If no free place is found for a pair, there
    are fewer exchanges.

    Args:
        count: Exchanges to make.
        side: Shortest and longest side, as fractions of the image's.
        p: Probability to distort an image.

    Shape:
        - image: (H, W), (H, W, C) or (D, H, W, C), of any type.

    Raises:
        ValueError: If a number is out of range.

    Examples:
        >>> import numpy as np
        >>> from lightly_dira.transforms import PatchShuffling
        >>> image = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64)
        >>> shuffled = PatchShuffling()(image)
        >>> bool((shuffled == image).all()), len(np.unique(shuffled)) == 64 * 64
        (False, True)

    - [0]: DiRA, 2022, https://arxiv.org/abs/2204.10437 (sizes for images of 224 x 224)
    - [1]: Models Genesis, 2019, https://arxiv.org/abs/1908.06912
    """

    count: int = 10
    side: tuple[float, float] = (10 / 224, 15 / 224)
    p: float = 1.0

    def draw(self, sizes: Sequence[int], random: np.random.Generator) -> dict[str, Any]:
        """Draws the blocks."""
        taken, pairs = np.zeros(sizes, dtype=bool), []
        limits = self.limits(sizes)
        for _ in range(self.count):
            lengths = [draw(random, *of_axis) for of_axis in limits]
            first = _take_place(taken, lengths, random)
            if first is None:
                continue
            second = _take_place(taken, lengths, random)
            if second is None:
                taken[area_of(first)] = False
            else:
                pairs.append((first, second))
        return {"pairs": pairs}

    def apply(self, image: NDArray[Any], **drawn: Any) -> NDArray[Any]:
        """Returns a copy with exchanged blocks."""
        out = image.copy()
        for first, second in drawn["pairs"]:
            out[area_of(first)] = image[area_of(second)]
            out[area_of(second)] = image[area_of(first)]
        return out


@dataclass
class PixelShuffling(Blocks):
    """Shuffles the pixels inside small blocks, as Models Genesis and TransVW do [0, 1].

    Blocks may overlap: the last one counts.

    Args:
        count: Blocks to shuffle.
        side: Shortest and longest side, as fractions of the image's.
        p: Probability to distort an image.

    Shape:
        - image: (H, W), (H, W, C) or (D, H, W, C), of any type.

    Raises:
        ValueError: If a number is out of range.

    Examples:
        >>> import numpy as np
        >>> from lightly_dira.transforms import PixelShuffling
        >>> volume = np.arange(32 * 64 * 64, dtype=np.float32).reshape(32, 64, 64, 1)
        >>> shuffled = PixelShuffling(count=1)(volume)
        >>> len(np.unique(shuffled)) == volume.size
        True

    - [0]: Models Genesis, 2019, https://arxiv.org/abs/1908.06912 (10,000 blocks)
    - [1]: TransVW, 2021, https://arxiv.org/abs/2102.10680 (5 blocks)
    """

    count: int = 5
    side: tuple[float, float] = (1 / 64, 6 / 64)
    p: float = 1.0

    def draw(self, sizes: Sequence[int], random: np.random.Generator) -> dict[str, Any]:
        """Draws the blocks."""
        low, high = np.transpose(self.limits(sizes))
        shape = self.count, len(sizes)
        lengths = random.integers(low, high, shape, endpoint=True)
        starts = random.integers(0, np.subtract(sizes, lengths), endpoint=True)
        seed = int(random.integers(2**62))
        return {"starts": starts, "lengths": lengths, "seed": seed}

    def apply(self, image: NDArray[Any], **drawn: Any) -> NDArray[Any]:
        """Returns a copy with shuffled blocks."""
        starts, lengths = drawn["starts"], drawn["lengths"]
        random = np.random.default_rng(drawn["seed"])
        sizes = image.shape[: starts.shape[1]]
        pixels = image.reshape(math.prod(sizes), -1)
        # All blocks of one shape at once: blocks are many, shapes few.
        longest = tuple(lengths.max(axis=0) + 1)
        shapes = np.ravel_multi_index(tuple(lengths.T), longest)
        numbers, places, sources = [], [], []
        for known in np.unique(shapes):
            shape = np.unravel_index(known, longest)
            block = np.flatnonzero(shapes == known)
            inside = np.indices(shape).reshape(len(shape), 1, -1)
            corners = starts[block].T[..., None]
            within = np.ravel_multi_index(tuple(corners + inside), sizes)
            numbers.append(np.broadcast_to(block[:, None], within.shape).ravel())
            places.append(within.ravel())
            sources.append(random.permuted(within, axis=1).ravel())
        order = np.argsort(np.concatenate(numbers), kind="stable")
        taken = np.arange(len(pixels))
        # NumPy keeps the last of several values for one pixel.
        taken[np.concatenate(places)[order]] = np.concatenate(sources)[order]
        return pixels[taken].reshape(image.shape)


def _take_place(
    taken: NDArray[Any], lengths: list[int], random: np.random.Generator
) -> Block | None:
    """Draws a block without taken pixels, and takes them."""
    for _ in range(TRIES):
        block = place(random, lengths, taken.shape)
        area = taken[area_of(block)]
        if not area.any():
            area[...] = True
            return block
    return None
