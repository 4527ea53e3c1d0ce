"""The published pipeline for views, built on OpenCV.

Built from albumentations' transforms it takes almost twice the time, since their calls
cost as much as the work itself.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from lightly_dira.data.pixels import to_array, to_pixels, to_tensor
from lightly_dira.data.resizing import resize_area
from lightly_dira.transforms.albumentations_steps import jitter_colour
from lightly_dira.transforms.alignment import Sample
from lightly_dira.transforms.step_images import as_array

_BYTES = np.arange(256, dtype=np.float32)
_ORDERS = list(itertools.permutations(range(4)))
# Crops to draw before the centre of the image is taken, as torchvision does.
_TRIES = 10


@dataclass
class PublishedPipeline:
    """Random resized crop, flip, colour jitter and blur, for each of two views.

    It is the base of `DiRATransform()`. Pass one with other numbers if, for example,
    small crops of your images lose what they show. Draws come from PyTorch's
    generator.

    Args:
        size: Side of the views, in pixels.
        aligned: False leaves the flip out of the target.
        scale: Least and largest area of the crop, as fractions of the image's.
        ratio: Least and largest width over height of the crop.
        flip: Probability of a horizontal flip.
        jitter: Greatest change of brightness, contrast and saturation, as factors, and
            of hue, in turns of the colour circle.
        jitter_p: Probability of the colour jitter.
        sigma: Least and largest standard deviation of the blur, in pixels.
        blur_p: Probability of the blur.

    Raises:
        ValueError: If a number is out of range.

    Examples:
        >>> import numpy as np
        >>> from lightly_dira import DiRATransform
        >>> from lightly_dira.transforms import PublishedPipeline
        >>> transform = DiRATransform(PublishedPipeline(64, scale=(0.5, 1.0)))
        >>> [view.shape for view in transform(np.zeros((128, 128), np.uint8))]
        [torch.Size([3, 64, 64]), torch.Size([3, 64, 64])]
    """

    size: int
    aligned: bool = True
    scale: tuple[float, float] = (0.2, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1)
    jitter_p: float = 0.8
    sigma: tuple[float, float] = (0.1, 2.0)
    blur_p: float = 0.5

    def __post_init__(self) -> None:
        """Checks the numbers."""
        if self.size < 1:
            raise ValueError(f"PublishedPipeline: size must be 1 or more: {self.size}.")
        for name, most in (("scale", 1.0), ("ratio", math.inf), ("sigma", math.inf)):
            low, high = getattr(self, name)
            if not 0 < low <= high <= most:
                raise ValueError(
                    f"PublishedPipeline: {name} must be (low, high) with 0 < low <= "
                    f"high <= {most:g}, got {(low, high)}."
                )
        probabilities = (self.flip, self.jitter_p, self.blur_p)
        *factors, hue = self.jitter
        if not all(0 <= p <= 1 for p in (*probabilities, *factors, 2 * hue)):
            raise ValueError(
                "PublishedPipeline: probabilities and the jitter's factors must be in "
                f"[0, 1] and hue in [0, 0.5], got {probabilities} and {self.jitter}."
            )

    def __call__(self, sample: Any) -> list[Any]:
        """Returns two views (C, H, W) of an image, or two samples of a sample."""
        if not isinstance(sample, Sample):
            pixels = to_array(to_pixels(sample))
            return [to_tensor(self._view(pixels)[0]) for _ in "12"]
        image = as_array(sample.view)
        return [Sample(*self._view(image), sample.draws, sample.distort) for _ in "12"]

    def _view(self, image: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        drawn = torch.rand(4 * _TRIES + 9).tolist()
        clean = self._crop(image, drawn[: 4 * _TRIES])
        draws = iter(drawn[4 * _TRIES :])
        mirrored = cv2.flip(clean, 1) if next(draws) < self.flip else clean
        view = mirrored
        if next(draws) < self.jitter_p:
            view = self._jitter(view, draws)
        if next(draws) < self.blur_p:
            view = cv2.GaussianBlur(view, (0, 0), _between(next(draws), *self.sigma))
        return view, mirrored if self.aligned else clean

    def _crop(self, image: NDArray[Any], draws: list[float]) -> NDArray[Any]:
        height, width = image.shape[:2]
        low, high = map(math.log, self.ratio)
        for area, ratio, y, x in zip(*[iter(draws)] * 4, strict=True):
            area = height * width * _between(area, *self.scale)
            ratio = math.exp(_between(ratio, low, high))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                top, left = int(y * (height - h + 1)), int(x * (width - w + 1))
                break
        else:
            w = min(width, round(height * self.ratio[1]))
            h = min(height, round(width / self.ratio[0]))
            top, left = (height - h) // 2, (width - w) // 2
        # Without the last one of odd rows or columns, which would cost most of all.
        part = image[top : top + h // 2 * 2, left : left + w // 2 * 2]
        return resize_area(part, self.size, self.size)

    def _jitter(self, image: NDArray[Any], draws: Iterator[float]) -> NDArray[Any]:
        brightness, contrast, saturation, hue = (
            _between(next(draws), -most, most) for most in self.jitter
        )
        order = _ORDERS[int(next(draws) * len(_ORDERS))]
        if image.ndim == 3 and image.shape[2] == 3:
            return jitter_colour(  # type: ignore[no-any-return]
                image,
                brightness=1 + brightness,
                contrast=1 + contrast,
                saturation=1 + saturation,
                hue=hue,
                order=order,
            )
        if image.ndim == 3:
            channels = [
                _jitter_grey(channel, 1 + brightness, 1 + contrast, order)
                for channel in cv2.split(image)
            ]
            return np.stack(channels, axis=-1)
        return _jitter_grey(image, 1 + brightness, 1 + contrast, order)


def _between(draw: float, low: float, high: float) -> float:
    return low + draw * (high - low)


def _jitter_grey(
    image: NDArray[Any], brightness: float, contrast: float, order: tuple[int, ...]
) -> NDArray[Any]:
    """Jitters one channel, in which hue and saturation have no meaning."""
    for step in order:
        if step == 0:
            image = _linear(image, brightness, 0.0)
        elif step == 1:
            image = _linear(image, contrast, (1 - contrast) * cv2.mean(image)[0])
    return image


def _linear(image: NDArray[Any], factor: float, offset: float) -> NDArray[Any]:
    """Returns factor * image + offset, within the range of the type."""
    if image.dtype == np.uint8:
        table = (factor * _BYTES + (offset + 0.5)).clip(0, 255).astype(np.uint8)
        return cv2.LUT(image, table)
    return (factor * image + offset).clip(0, 1)
