"""Shufflings that DiRA restores: of blocks, and of the pixels inside blocks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightly_dira.transforms.blocks import Block, Blocks, area_of, draw, place

# Places to try before a block is given up in a crowded image.
_TRIES = 100


class PatchShuffling(Blocks):
    """Exchanges pairs of small rectangles of the image [0, 1].

    The two rectangles of a pair have the same size. No two rectangles overlap, so
    that every pixel is kept exactly once. If no free place is found for a pair, there
    are fewer exchanges.

    Args:
        count: Exchanges to make.
        side: Shortest and longest side, as fractions of the image's.
        p: Probability to apply the transform.

    Targets:
        image, volume

    Image types:
        any

    Raises:
        ValueError: If a number is out of range.

    Examples:
        >>> import numpy as np
        >>> from lightly_dira.transforms import PatchShuffling
        >>> image = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64)
        >>> shuffled = PatchShuffling()(image=image)["image"]
        >>> bool((shuffled == image).all()), len(np.unique(shuffled)) == 64 * 64
        (False, True)

    - [0]: DiRA, 2022, https://arxiv.org/abs/2204.10437 (sizes for images of 224 x 224)
    - [1]: Models Genesis, 2019, https://arxiv.org/abs/1908.06912
    """

    def __init__(
        self,
        count: int = 10,
        side: tuple[float, float] = (10 / 224, 15 / 224),
        p: float = 1.0,
    ) -> None:
        """Creates the transform."""
        super().__init__(count, side, p)

    def _draw(
        self, sizes: Sequence[int], sides: list[tuple[int, ...]]
    ) -> dict[str, Any]:
        taken, pairs = np.zeros(sizes, dtype=bool), []
        for _ in range(self.count):
            lengths = [draw(self.py_random, *limits) for limits in sides]
            first = self._take_place(taken, lengths)
            if first is None:
                continue
            second = self._take_place(taken, lengths)
            if second is None:
                taken[area_of(first)] = False
            else:
                pairs.append((first, second))
        return {"pairs": pairs}

    def apply(
        self, img: NDArray[Any], pairs: list[tuple[Block, Block]], **params: Any
    ) -> NDArray[Any]:
        """Returns a copy with exchanged blocks."""
        out = img.copy()
        for first, second in pairs:
            out[area_of(first)] = img[area_of(second)]
            out[area_of(second)] = img[area_of(first)]
        return out

    def _take_place(self, taken: NDArray[Any], lengths: list[int]) -> Block | None:
        """Draws a block without taken pixels, and takes them."""
        for _ in range(_TRIES):
            block = place(self.py_random, lengths, taken.shape)
            area = taken[area_of(block)]
            if not area.any():
                area[...] = True
                return block
        return None


class PixelShuffling(Blocks):
    """Shuffles the pixels inside small blocks, as Models Genesis and TransVW do [0, 1].

    Blocks may overlap: the last one counts.

    Args:
        count: Blocks to shuffle.
        side: Shortest and longest side, as fractions of the image's.
        p: Probability to apply the transform.

    Targets:
        image, volume

    Image types:
        any

    Raises:
        ValueError: If a number is out of range.

    Examples:
        >>> import numpy as np
        >>> from lightly_dira.transforms import PixelShuffling
        >>> volume = np.arange(32 * 64 * 64, dtype=np.float32).reshape(32, 64, 64)
        >>> shuffled = PixelShuffling(count=1)(volume=volume)["volume"]
        >>> len(np.unique(shuffled)) == volume.size
        True

    - [0]: Models Genesis, 2019, https://arxiv.org/abs/1908.06912 (10,000 blocks)
    - [1]: TransVW, 2021, https://arxiv.org/abs/2102.10680 (5 blocks)
    """

    def __init__(
        self,
        count: int = 5,
        side: tuple[float, float] = (1 / 64, 6 / 64),
        p: float = 1.0,
    ) -> None:
        """Creates the transform."""
        super().__init__(count, side, p)

    def _draw(
        self, sizes: Sequence[int], sides: list[tuple[int, ...]]
    ) -> dict[str, Any]:
        low, high = np.transpose(sides)
        shape = self.count, len(sizes)
        random = self.random_generator
        lengths = random.integers(low, high, shape, endpoint=True)
        starts = random.integers(0, np.subtract(sizes, lengths), endpoint=True)
        seed = int(random.integers(2**62))
        return {"starts": starts, "lengths": lengths, "seed": seed}

    def apply(
        self,
        img: NDArray[Any],
        starts: NDArray[Any],
        lengths: NDArray[Any],
        seed: int,
        **_: Any,
    ) -> NDArray[Any]:
        """Returns a copy with shuffled blocks."""
        random = np.random.default_rng(seed)
        sizes = img.shape[: starts.shape[1]]
        pixels = img.reshape(math.prod(sizes), -1)
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
        return pixels[taken].reshape(img.shape)
