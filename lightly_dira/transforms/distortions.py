"""The distortions that DiRA restores, as albumentations transforms.

Each takes an image, or a volume, in which its blocks are drawn in three dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

import albumentations as A
import numpy as np
from numpy.typing import NDArray

# Places to try before a block is given up in a crowded image.
_TRIES = 100
Block = tuple[int, ...]
"""The first position of a block along each side, then the first behind it."""


class _Blocks(A.ImageOnlyTransform):  # type: ignore[misc]
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


class _Painting(_Blocks):
    """Draws blocks one after the other, up to a random stop."""

    default_side: tuple[float, float]

    def __init__(
        self,
        count: int = 10,
        side: tuple[float, float] | None = None,
        margin: float = 3 / 224,
        stop: float = 0.1,
        fill: str = "black",
        p: float = 1.0,
    ) -> None:
        """Creates the transform."""
        super().__init__(count, side or self.default_side, p)
        if not 0 <= margin < 0.5 or not 0 <= stop <= 1 or fill not in _FILLS:
            raise ValueError(
                f"{type(self).__name__}: margin must be in [0, 0.5), stop in [0, 1] "
                f"and fill one of {', '.join(_FILLS)}, got {margin}, {stop} and "
                f"{fill!r}."
            )
        self.margin = margin
        self.stop = stop
        self.fill = fill

    def _draw(
        self, sizes: Sequence[int], sides: list[tuple[int, ...]]
    ) -> dict[str, Any]:
        blocks = []
        for _ in range(self.count):
            axes = zip(sizes, sides, strict=True)
            intervals = [self._interval(size, limits) for size, limits in axes]
            starts, stops = zip(*intervals, strict=True)
            blocks.append((*starts, *stops))
            if self.py_random.random() < self.stop:
                break
        return {"rectangles": blocks}

    def _interval(self, size: int, sides: tuple[int, ...]) -> tuple[int, int]:
        margin = min(round(self.margin * size), (size - 1) // 2)
        length = min(_draw(self.py_random, *sides), size - 2 * margin)
        start = _draw(self.py_random, margin, size - margin - length)
        return start, start + length

    def _filling(self, image: NDArray[Any]) -> NDArray[Any]:
        """Returns an image of the same kind with nothing but the filling."""
        if self.fill == "black":
            return np.zeros_like(image)
        noise = self.random_generator.random(image.shape, np.float32)
        top = 1 if image.dtype.kind == "f" else np.iinfo(image.dtype).max
        filling: NDArray[Any] = (noise * top).astype(image.dtype)
        return filling


_FILLS = ("black", "noise")


class InPainting(_Painting):
    """Blackens rectangles of the image, which the model is to restore [0, 1].

    Up to `count` rectangles are drawn; after each, drawing stops with probability
    `stop`. Height and width are drawn independently and uniformly.

    Args:
        count: Largest number of rectangles to draw.
        side: Shortest and longest side, as fractions of the image's.
        margin: Least distance from the border, as a fraction of the image's side.
        stop: Probability to stop after a rectangle.
        fill: "black" (published for images) or "noise", uniform over all values
            (published for volumes).
        p: Probability to apply the transform.

    Targets:
        image, volume

    Image types:
        any

    Raises:
        ValueError: If a number is out of range.

    Examples:
        >>> import numpy as np
        >>> from lightly_dira.transforms import InPainting
        >>> image = np.full((224, 224), 255, dtype=np.uint8)
        >>> int(InPainting()(image=image)["image"].min())
        0

    - [0]: DiRA, 2022, https://arxiv.org/abs/2204.10437 (sizes for images of 224 x 224)
    - [1]: Models Genesis, 2019, https://arxiv.org/abs/1908.06912
    """

    default_side = (10 / 224, 70 / 224)

    def apply(
        self, img: NDArray[Any], rectangles: list[Block], **params: Any
    ) -> NDArray[Any]:
        """Returns a copy with filled blocks."""
        img = img.copy()
        for block in rectangles:
            img[_area(block)] = self._filling(img[_area(block)])
        return img


class OutPainting(_Painting):
    """Blackens the image outside a few windows, for the model to restore [0, 1].

    The windows are drawn like the rectangles of `InPainting` and may overlap.

    Args:
        count: Largest number of windows to draw.
        side: Shortest and longest side, as fractions of the image's.
        margin: Least distance from the border, as a fraction of the image's side.
        stop: Probability to stop after a window.
        fill: "black" (published for images) or "noise", uniform over all values
            (published for volumes).
        p: Probability to apply the transform.

    Targets:
        image, volume

    Image types:
        any

    Raises:
        ValueError: If a number is out of range.

    Examples:
        >>> import numpy as np
        >>> from lightly_dira.transforms import OutPainting
        >>> image = np.full((224, 224), 255, dtype=np.uint8)
        >>> int(OutPainting()(image=image)["image"][0].max())  # the border is black
        0

    - [0]: DiRA, 2022, https://arxiv.org/abs/2204.10437 (sizes for images of 224 x 224)
    - [1]: Models Genesis, 2019, https://arxiv.org/abs/1908.06912
    """

    default_side = (154 / 224, 174 / 224)

    def apply(
        self, img: NDArray[Any], rectangles: list[Block], **params: Any
    ) -> NDArray[Any]:
        """Returns a filled image with windows of the given one."""
        out = self._filling(img)
        for block in rectangles:
            out[_area(block)] = img[_area(block)]
        return out


class PatchShuffling(_Blocks):
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
        taken: list[Block] = []
        for _ in range(self.count):
            lengths = [_draw(self.py_random, *limits) for limits in sides]
            first = self._free_place(taken, lengths, sizes)
            if first is None:
                continue
            second = self._free_place([*taken, first], lengths, sizes)
            if second is not None:
                taken += first, second
        return {"pairs": list(zip(taken[::2], taken[1::2], strict=True))}

    def apply(
        self, img: NDArray[Any], pairs: list[tuple[Block, Block]], **params: Any
    ) -> NDArray[Any]:
        """Returns a copy with exchanged blocks."""
        out = img.copy()
        for first, second in pairs:
            out[_area(first)] = img[_area(second)]
            out[_area(second)] = img[_area(first)]
        return out

    def _free_place(
        self, taken: list[Block], lengths: list[int], sizes: Sequence[int]
    ) -> Block | None:
        for _ in range(_TRIES):
            starts = [
                _draw(self.py_random, 0, size - length)
                for size, length in zip(sizes, lengths, strict=True)
            ]
            stops = [a + length for a, length in zip(starts, lengths, strict=True)]
            if not any(_overlap(starts, stops, other) for other in taken):
                return (*starts, *stops)
        return None


def _area(block: Block) -> tuple[slice, ...]:
    half = len(block) // 2
    return tuple(map(slice, block[:half], block[half:]))


def _overlap(starts: list[int], stops: list[int], other: Block) -> bool:
    half = len(starts)
    return all(
        start < after and stop > before
        for start, stop, before, after in zip(
            starts, stops, other[:half], other[half:], strict=True
        )
    )


def _draw(random: Random, low: int, high: int) -> int:
    """Draws from low to high, both included; several times faster than `randint`."""
    return low + int(random.random() * (high - low + 1))
