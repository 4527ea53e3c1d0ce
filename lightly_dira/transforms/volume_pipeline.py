"""A fast pipeline of views for volumes: crop, flips and curves of grey levels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightly_dira.data.pixels import values_of
from lightly_dira.data.resizing import resize_volume
from lightly_dira.data.white import Window, check_finite, scale
from lightly_dira.transforms.alignment import Sample
from lightly_dira.transforms.grey_curves import bezier_curve


@dataclass
class VolumePipeline:
    """Random crop, flips and grey curve, for each of two views of a volume.

    It is the base of `DiRATransform(spatial_dims=3)`. Only the cropped voxels are
    scaled, flipped and mapped. Draws come from PyTorch's generator.

    Args:
        size: (D, H, W) of the views, in voxels [0].
        scale: Least and largest side of the crop, as multiples of the view's; the crop
            is resized (trilinear) to the view's size. The default is that of [0], 50 to
            79 voxels for 64. Sides never exceed those of the volume.
        flip: Probability of a flip along a random axis, each of three times [1].
        curve: Probability of a Bezier curve of grey levels, which the target does not
            get [1].
        inverted: Probability that a curve falls.

    Raises:
        ValueError: If a number is out of range.

    Examples:
        >>> import numpy as np
        >>> from lightly_dira import DiRATransform
        >>> from lightly_dira.transforms import VolumePipeline
        >>> transform = DiRATransform(VolumePipeline((16, 32, 32)), spatial_dims=3)
        >>> views = transform(np.random.rand(20, 40, 40).astype(np.float32))
        >>> [tuple(view.shape) for view in views], tuple(views.target.shape)
        ([(1, 16, 32, 32), (1, 16, 32, 32)], (1, 16, 32, 32))

    - [0]: TransVW, 2021, https://arxiv.org/abs/2102.10680
    - [1]: Models Genesis, 2019, https://arxiv.org/abs/1908.06912
    """

    size: tuple[int, int, int] = (32, 64, 64)
    scale: tuple[float, float] = (50 / 64, 79 / 64)
    flip: float = 0.4
    curve: float = 0.9
    inverted: float = 0.5

    def __post_init__(self) -> None:
        """Checks the numbers."""
        if len(self.size) != 3 or min(self.size) < 2:
            raise ValueError(
                "VolumePipeline: size must be (D, H, W) with at least 2 voxels each, "
                f"got {self.size}."
            )
        low, high = self.scale
        if not 0 < low <= high < math.inf:
            raise ValueError(
                "VolumePipeline: scale must be (low, high) with 0 < low <= high, got "
                f"{self.scale}."
            )
        probabilities = self.flip, self.curve, self.inverted
        if not all(0 <= p <= 1 for p in probabilities):
            raise ValueError(
                "VolumePipeline: flip, curve and inverted must be in [0, 1], got "
                f"{probabilities}."
            )

    def __call__(self, volume: Any) -> list[Any]:
        """Returns two views (C, D, H, W) of a volume, or two samples of a sample."""
        if isinstance(volume, Sample):
            return [
                Sample(*self._view(*volume.view), volume.draws, volume.distort)
                for _ in "12"
            ]
        values = values_of(volume, 3)
        check_finite(values)
        return [self._view(values, None)[0] for _ in "12"]

    def check(self, volume: NDArray[Any]) -> None:
        """Raises a ValueError if the volume (C, D, H, W) is smaller than a view."""
        sides = tuple(volume.shape[1:])
        if any(side < own for side, own in zip(sides, self.size, strict=True)):
            raise ValueError(
                f"DiRATransform: a volume of {sides} voxels is smaller than a view of "
                f"{tuple(self.size)}. Choose a smaller input_size=(D, H, W), or pad "
                "the volume first."
            )

    def _view(
        self, volume: NDArray[Any], window: Window | None
    ) -> tuple[Tensor, Tensor]:
        """Returns a view and its target."""
        self.check(volume)
        draws = iter(torch.rand(17).tolist())
        factor = self.scale[0] + next(draws) * (self.scale[1] - self.scale[0])
        place = [slice(None)]
        for side, own in zip(volume.shape[1:], self.size, strict=True):
            length = min(side, max(2, round(factor * own)))
            start = int(next(draws) * (side - length + 1))
            place.append(slice(start, start + length))
        part = volume[tuple(place)]
        plain = part.dtype == np.uint8 and window is None
        voxels = torch.from_numpy(scale(part, (0, 255) if plain else window))
        if voxels.shape[1:] != tuple(self.size):
            voxels = resize_volume(voxels, self.size, area=False)
        flips = [int(next(draws) * 3) for _ in "123" if next(draws) < self.flip]
        axes = [axis + 1 for axis in range(3) if flips.count(axis) % 2]
        clean = voxels.flip(axes) if axes else voxels
        if next(draws) >= self.curve:
            return clean, clean
        points = [next(draws) for _ in range(4)]
        x, y = bezier_curve(*points, inverted=next(draws) < self.inverted)
        # A table of 13 bits, beyond those of CT, is many times faster than `interp`.
        table = torch.from_numpy(np.interp(_LEVELS, x, y).astype(np.float32))
        steps = clean.mul(len(_LEVELS) - 1).add_(0.5).to(torch.int32)
        steps = steps.flatten().clamp_(0, len(_LEVELS) - 1)
        return table.index_select(0, steps).view(clean.shape), clean


_LEVELS = np.linspace(0, 1, 2**13 + 1)
