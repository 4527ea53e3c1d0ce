"""The distortions that DiRA restores, as albumentations transforms."""

from __future__ import annotations

from random import Random
from typing import Any

import albumentations as A
import numpy as np
from numpy.typing import NDArray

# Places to try before a rectangle is given up in a crowded image.
_TRIES = 100
Rectangle = tuple[int, int, int, int]
"""Top, left, bottom and right of a rectangle, in pixels."""


class _Painting(A.ImageOnlyTransform):  # type: ignore[misc]
    """Draws rectangles one after the other, up to a random stop."""

    def __init__(
        self,
        count: int,
        side: tuple[float, float],
        margin: float,
        stop: float,
        p: float,
    ) -> None:
        super().__init__(p=p)
        _check(self, count, side)
        if not 0 <= margin < 0.5 or not 0 <= stop <= 1:
            raise ValueError(
                f"{type(self).__name__}: margin must be in [0, 0.5) and stop in "
                f"[0, 1], got {margin} and {stop}."
            )
        self.count = count
        self.side = side
        self.margin = margin
        self.stop = stop

    def get_params_dependent_on_data(
        self, params: dict[str, Any], data: dict[str, Any]
    ) -> dict[str, Any]:
        (height, width), random = params["shape"][:2], self.py_random.random
        rows, columns = _sides(self.side, height), _sides(self.side, width)
        rectangles = []
        for _ in range(self.count):
            top, bottom = self._interval(height, rows)
            left, right = self._interval(width, columns)
            rectangles.append((top, left, bottom, right))
            if random() < self.stop:
                break
        return {"rectangles": rectangles}

    def _interval(self, size: int, sides: tuple[int, int]) -> tuple[int, int]:
        margin = round(self.margin * size)
        length = min(_draw(self.py_random, *sides), size - 2 * margin)
        start = _draw(self.py_random, margin, size - margin - length)
        return start, start + length


class InPainting(_Painting):
    """Blackens rectangles of the image, which the model is to restore [0, 1].

    Up to `count` rectangles are drawn; after each, drawing stops with probability
    `stop`. Height and width are drawn independently and uniformly.

    Args:
        count: Largest number of rectangles to draw.
        side: Shortest and longest side, as fractions of the image's.
        margin: Least distance from the border, as a fraction of the image's side.
        stop: Probability to stop after a rectangle.
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

    def __init__(
        self,
        count: int = 10,
        side: tuple[float, float] = (10 / 224, 70 / 224),
        margin: float = 3 / 224,
        stop: float = 0.1,
        p: float = 1.0,
    ) -> None:
        """Creates the transform."""
        super().__init__(count, side, margin, stop, p)

    def apply(
        self, img: NDArray[Any], rectangles: list[Rectangle], **params: Any
    ) -> NDArray[Any]:
        """Returns a copy with black rectangles."""
        img = img.copy()
        for rectangle in rectangles:
            img[_area(rectangle)] = 0
        return img


class OutPainting(_Painting):
    """Blackens the image outside a few windows, for the model to restore [0, 1].

    The windows are drawn like the rectangles of `InPainting` and may overlap.

    Args:
        count: Largest number of windows to draw.
        side: Shortest and longest side, as fractions of the image's.
        margin: Least distance from the border, as a fraction of the image's side.
        stop: Probability to stop after a window.
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

    def __init__(
        self,
        count: int = 10,
        side: tuple[float, float] = (154 / 224, 174 / 224),
        margin: float = 3 / 224,
        stop: float = 0.1,
        p: float = 1.0,
    ) -> None:
        """Creates the transform."""
        super().__init__(count, side, margin, stop, p)

    def apply(
        self, img: NDArray[Any], rectangles: list[Rectangle], **params: Any
    ) -> NDArray[Any]:
        """Returns a black image with windows of the given one."""
        out = np.zeros_like(img)
        for rectangle in rectangles:
            out[_area(rectangle)] = img[_area(rectangle)]
        return out


class PatchShuffling(A.ImageOnlyTransform):  # type: ignore[misc]
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
        super().__init__(p=p)
        _check(self, count, side)
        self.count = count
        self.side = side

    def get_params_dependent_on_data(
        self, params: dict[str, Any], data: dict[str, Any]
    ) -> dict[str, Any]:
        """Draws the pairs."""
        height, width = params["shape"][:2]
        rows, columns = _sides(self.side, height), _sides(self.side, width)
        taken: list[Rectangle] = []
        for _ in range(self.count):
            h, w = _draw(self.py_random, *rows), _draw(self.py_random, *columns)
            first = self._free_place(taken, h, w, height, width)
            if first is None:
                continue
            second = self._free_place([*taken, first], h, w, height, width)
            if second is not None:
                taken += first, second
        return {"pairs": list(zip(taken[::2], taken[1::2], strict=True))}

    def apply(
        self,
        img: NDArray[Any],
        pairs: list[tuple[Rectangle, Rectangle]],
        **params: Any,
    ) -> NDArray[Any]:
        """Returns a copy with exchanged rectangles."""
        out = img.copy()
        for first, second in pairs:
            out[_area(first)] = img[_area(second)]
            out[_area(second)] = img[_area(first)]
        return out

    def _free_place(
        self, taken: list[Rectangle], h: int, w: int, height: int, width: int
    ) -> Rectangle | None:
        for _ in range(_TRIES):
            top = _draw(self.py_random, 0, height - h)
            left = _draw(self.py_random, 0, width - w)
            bottom, right = top + h, left + w
            for upper, before, lower, after in taken:
                if top < lower and bottom > upper and left < after and right > before:
                    break
            else:
                return top, left, bottom, right
        return None


def published_mixture(
    inpainting: float = 0.30, outpainting: float = 0.05, shuffling: float = 0.30
) -> A.OneOf:
    """At most one of the three distortions, with the published probabilities [0].

    Args:
        inpainting: Probability of `InPainting`.
        outpainting: Probability of `OutPainting`.
        shuffling: Probability of `PatchShuffling`. What is left of 1 is the
            probability of no distortion.

    Raises:
        ValueError: If a probability is negative, or their sum is not in (0, 1].

    Examples:
        >>> from lightly_dira import DiRATransform
        >>> from lightly_dira.transforms import published_mixture
        >>> transform = DiRATransform(distortion=published_mixture(shuffling=0.0))

    - [0]: DiRA, 2022, https://arxiv.org/abs/2204.10437
    """
    probabilities = inpainting, outpainting, shuffling
    if min(probabilities) < 0 or not 0 < sum(probabilities) <= 1:
        raise ValueError(
            "published_mixture: probabilities must be at least 0, and their sum above "
            f"0 and at most 1, got {probabilities}."
        )
    return A.OneOf(
        [
            InPainting(p=inpainting),
            OutPainting(p=outpainting),
            PatchShuffling(p=shuffling),
        ],
        p=sum(probabilities),
    )


def _check(transform: object, count: int, side: tuple[float, float]) -> None:
    low, high = side
    if count < 1 or not 0 < low <= high <= 1:
        raise ValueError(
            f"{type(transform).__name__}: count must be at least 1 and side (shortest, "
            f"longest) with 0 < shortest <= longest <= 1, got {count} and {side}."
        )


def _area(rectangle: Rectangle) -> tuple[slice, slice]:
    top, left, bottom, right = rectangle
    return slice(top, bottom), slice(left, right)


def _sides(side: tuple[float, float], size: int) -> tuple[int, int]:
    """Returns shortest and longest side in pixels."""
    shortest, longest = side
    return max(1, round(shortest * size)), max(1, round(longest * size))


def _draw(random: Random, low: int, high: int) -> int:
    """Draws from low to high, both included; several times faster than `randint`."""
    return low + int(random.random() * (high - low + 1))
