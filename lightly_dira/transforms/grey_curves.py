"""Curves of grey levels: a distortion of intensities, not of positions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightly_dira.transforms.distortion import RandomDistortion


def bezier_curve(
    x0: float, x1: float, y0: float, y1: float, *, inverted: bool
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Returns 1,001 points of a monotone cubic Bezier curve.

    Args:
        x0: A coordinate of an inner control point, in [0, 1], as are the others.
        x1: The same of the other point; they are sorted.
        y0: Like `x0`, on the other axis.
        y1: Like `x1`, on the other axis.
        inverted: Whether the curve falls.
    """
    t = np.linspace(0, 1, POINTS)
    x, y = (cubic(t, *sorted(inner)) for inner in ((x0, x1), (y0, y1)))
    return x, 1 - y if inverted else y


def cubic(t: Any, low: Any, high: Any) -> Any:
    """Returns one coordinate of a cubic Bezier curve from 0 to 1.

    Args:
        t: Where on the curve, in [0, 1].
        low: This coordinate of the first inner control point.
        high: The same of the second.
    """
    return 3 * (1 - t) ** 2 * t * low + 3 * (1 - t) * t**2 * high + t**3


def through_curve(
    image: NDArray[Any], x: NDArray[Any], y: NDArray[Any]
) -> NDArray[Any]:
    """Maps floats in [0, 1] through a curve, linearly between its points.

    The points are resampled to even steps first, so that no pixel has to be searched
    for. The error is about 1e-7, and more only below 1/8192, where a curve is steep.
    """
    table = np.interp(np.linspace(0, 1, STEPS + 1), x, y).astype(np.float32)
    slopes = np.append(np.diff(table), np.float32(0))
    places = np.asarray(image, dtype=np.float32).clip(0, 1) * np.float32(STEPS)
    below = places.astype(np.int16)
    places -= below
    mapped = slopes[below]
    mapped *= places
    mapped += table[below]
    return mapped.astype(image.dtype, copy=False)


# Points of a curve as it is drawn, and even steps of it once resampled.
POINTS = 1001
STEPS = 8192


@dataclass
class NonLinearIntensity(RandomDistortion):
    """Maps intensities through a random monotone Bezier curve [0].

    The cubic curve runs from (0, 0) to (1, 1). Its two inner control points are drawn
    uniformly and sorted, so that it never falls. With probability `inverted` it runs
    from (0, 1) to (1, 0) instead and never rises. The published mixture does not
    contain it; put it before the mixture:
    ``Sequential([NonLinearIntensity(), published_mixture()])``.

    Args:
        inverted: Probability of a falling curve, in [0, 1].
        p: Probability to distort an image.

    Shape:
        - image: (H, W), (H, W, C) or (D, H, W, C), of unsigned integers or of floats in
          [0, 1].

    Raises:
        ValueError: If `inverted` is not a probability.

    Examples:
        >>> import numpy as np
        >>> from lightly_dira.transforms import NonLinearIntensity
        >>> ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
        >>> mapped = NonLinearIntensity(inverted=0.0)(ramp)
        >>> bool((np.diff(mapped.ravel().astype(int)) >= 0).all())
        True

    - [0]: Models Genesis, 2019, https://arxiv.org/abs/1908.06912 (Section 2)
    """

    inverted: float = 0.5
    p: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.inverted <= 1:
            raise ValueError(
                f"NonLinearIntensity: inverted must be in [0, 1], got {self.inverted}."
            )

    def draw(self, sizes: Sequence[int], random: np.random.Generator) -> dict[str, Any]:
        """Draws the curve, as 1,001 of its points."""
        *points, falls = random.random(5).tolist()
        x, y = bezier_curve(*points, inverted=falls < self.inverted)
        return {"x": x, "y": y}

    def apply(self, image: NDArray[Any], **drawn: NDArray[Any]) -> NDArray[Any]:
        """Returns the image with mapped intensities."""
        x, y = drawn["x"], drawn["y"]
        if image.dtype.kind == "f":
            return through_curve(image, x, y)
        top = np.iinfo(image.dtype).max
        table = np.interp(np.arange(top + 1) / top, x, y)
        mapped: NDArray[Any] = np.round(table * top).astype(image.dtype)[image]
        return mapped
