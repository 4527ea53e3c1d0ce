"""Paintings: blocks, or all but blocks, that DiRA restores, filled with black or noise.

Blocks are drawn in two dimensions for images and in three for volumes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightly_dira.transforms.blocks import Blocks, area_of, draw


@dataclass
class Painting(Blocks):
    """Draws blocks one after the other, up to a random stop."""

    count: int = 10
    side: tuple[float, float] = (10 / 224, 70 / 224)
    margin: float = 3 / 224
    stop: float = 0.1
    fill: str = "black"
    p: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        fits = 0 <= self.margin < 0.5 and 0 <= self.stop <= 1
        if not fits or self.fill not in _FILLS:
            raise ValueError(
                f"{type(self).__name__}: margin must be in [0, 0.5), stop in [0, 1] "
                f"and fill one of {', '.join(_FILLS)}, got {self.margin}, {self.stop} "
                f"and {self.fill!r}."
            )

    def draw(self, sizes: Sequence[int], random: np.random.Generator) -> dict[str, Any]:
        """Draws the blocks, and a seed of their noise."""
        axes, blocks = [*zip(sizes, self.limits(sizes), strict=True)], []
        for _ in range(self.count):
            intervals = [self._interval(size, limits, random) for size, limits in axes]
            starts, stops = zip(*intervals, strict=True)
            blocks.append((*starts, *stops))
            if random.random() < self.stop:
                break
        noisy = self.fill == "noise"
        seed = int(random.integers(2**62)) if noisy else None
        return {"blocks": blocks, "seed": seed}

    def _interval(
        self, size: int, sides: tuple[int, ...], random: np.random.Generator
    ) -> tuple[int, int]:
        margin = min(round(self.margin * size), (size - 1) // 2)
        length = min(draw(random, *sides), size - 2 * margin)
        start = draw(random, margin, size - margin - length)
        return start, start + length

    def _filling(self, image: NDArray[Any], seed: int | None) -> NDArray[Any]:
        """Returns an image of the same kind with nothing but the filling."""
        if seed is None:
            return np.zeros_like(image)
        noise = np.random.default_rng(seed).random(image.shape, np.float32)
        top = 1 if image.dtype.kind == "f" else np.iinfo(image.dtype).max
        filling: NDArray[Any] = (noise * top).astype(image.dtype)
        return filling


_FILLS = ("black", "noise")


class InPainting(Painting):
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
        p: Probability to distort an image.

    Shape:
        - image: (H, W), (H, W, C) or (D, H, W, C), of any type.

    Raises:
        ValueError: If a number is out of range.

    Examples:
        >>> import numpy as np
        >>> from lightly_dira.transforms import InPainting
        >>> image = np.full((224, 224), 255, dtype=np.uint8)
        >>> int(InPainting()(image).min())
        0

    - [0]: DiRA, 2022, https://arxiv.org/abs/2204.10437 (sizes for images of 224 x 224)
    - [1]: Models Genesis, 2019, https://arxiv.org/abs/1908.06912
    """

    def apply(self, image: NDArray[Any], **drawn: Any) -> NDArray[Any]:
        """Returns a copy with filled blocks."""
        image, seed = image.copy(), drawn["seed"]
        for number, block in enumerate(drawn["blocks"]):
            own = None if seed is None else seed + number
            image[area_of(block)] = self._filling(image[area_of(block)], own)
        return image


@dataclass
class OutPainting(Painting):
    """Blackens the image outside a few windows, for the model to restore [0, 1].

    The windows are drawn like the rectangles of `InPainting` and may overlap.

    Args:
        count: Largest number of windows to draw.
        side: Shortest and longest side, as fractions of the image's.
        margin: Least distance from the border, as a fraction of the image's side.
        stop: Probability to stop after a window.
        fill: "black" (published for images) or "noise", uniform over all values
            (published for volumes).
        p: Probability to distort an image.

    Shape:
        - image: (H, W), (H, W, C) or (D, H, W, C), of any type.

    Raises:
        ValueError: If a number is out of range.

    Examples:
        >>> import numpy as np
        >>> from lightly_dira.transforms import OutPainting
        >>> image = np.full((224, 224), 255, dtype=np.uint8)
        >>> int(OutPainting()(image)[0].max())  # the border is black
        0

    - [0]: DiRA, 2022, https://arxiv.org/abs/2204.10437 (sizes for images of 224 x 224)
    - [1]: Models Genesis, 2019, https://arxiv.org/abs/1908.06912
    """

    side: tuple[float, float] = (154 / 224, 174 / 224)

    def apply(self, image: NDArray[Any], **drawn: Any) -> NDArray[Any]:
        """Returns a filled image with windows of the given one."""
        out = self._filling(image, drawn["seed"])
        for block in drawn["blocks"]:
            out[area_of(block)] = image[area_of(block)]
        return out
