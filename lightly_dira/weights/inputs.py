"""What an encoder was fed with, so that a colleague can feed it alike."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from lightly_dira.data import ToPixels
from lightly_dira.data.pixels import values_of
from lightly_dira.data.white import Window, is_displayed
from lightly_dira.transforms.alignment import name_of
from lightly_dira.transforms.dira_transform import DiRATransform
from lightly_dira.transforms.fixed_scaling import (
    changes_values_by_rule,
    makes_grey,
    window_of,
)
from lightly_dira.transforms.taking_apart import Normalisation, find_normalisation


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What an encoder was fed with; called with an image it makes such an input.

    Of what steps do, only a window and a normalisation are kept. An image becomes an
    input whole, resized to the views' size: crops at the scale of a file, voxels of a
    given spacing or slices that are always turned are yours to make before.

    Attributes:
        channels: Channels of the views.
        size: (H, W) or (D, H, W) of the views.
        window: The values that became black and white, as in `DiRATransform`.
        mean: Of the normalisation, for each channel; none if views were not normalised.
        std: The same.
        voi: Whether images had been windowed as their DICOM files say: read others with
            `read_image(file, voi=True)`.

    Shape:
        - image: as for `ToPixels`, for example what `read_image` returns.
        - output: (channels, *size), float32.

    Examples:
        >>> import numpy as np
        >>> from lightly_dira import DiRATransform
        >>> from lightly_dira.weights import Inputs
        >>> scan = np.full((300, 400), 4095, dtype=np.uint16)
        >>> inputs = Inputs.of(DiRATransform(window=(0, 4095)), scan)
        >>> inputs.channels, inputs.size
        (3, (224, 224))
        >>> inputs(scan).shape
        torch.Size([3, 224, 224])
    """

    channels: int
    size: tuple[int, ...]
    window: Window | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    voi: bool = False

    def __post_init__(self) -> None:
        """Makes plain tuples of NumPy's numbers and of JSON's lists."""
        for name, kind in (
            ("size", int),
            ("window", float),
            ("mean", float),
            ("std", float),
        ):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                object.__setattr__(self, name, tuple(map(kind, value)))

    @classmethod
    def of(cls, transform: DiRATransform, image: Any) -> Inputs:
        """Looks at what a transform makes of an image.

        Raises:
            TypeError: If `transform` is not a `DiRATransform`.
            ValueError: If views are normalised, or values scaled, in another way than
                by one window and by one mean and standard deviation of each channel.
        """
        if not isinstance(transform, DiRATransform):
            raise TypeError(
                "Inputs.of: expected the DiRATransform that made the views, got "
                f"{type(transform).__name__}. Of other transforms say it yourself: "
                "Inputs(channels, size, window, mean, std)."
            )
        view = transform(image).view
        known = find_normalisation(transform.transform)
        channels, *size = view.shape
        coloured = len(size) == 2 and len(values_of(image)) == 3
        window = _window_of(transform, known, coloured)
        facts = cls(channels, tuple(size), window, voi=is_displayed(image))
        if known is not None and known.fits(view):
            # Some normalisations are of values up to 255.
            scale = 255 if known.mean.max() > 1 else 1
            mean, std = (tuple((each / scale).flatten().tolist()) for each in known)
            facts = dataclasses.replace(facts, mean=mean, std=std)
        # What 0 and 1 become; a view can hold nothing beyond.
        black, white = (
            facts._normalised(torch.full(view.shape, x)) for x in (0.0, 1.0)
        )
        if (view < black - 0.05).any() or (view > white + 0.05).any():
            raise ValueError(
                f"Inputs: views from {view.min():.2f} to {view.max():.2f} do not come "
                "from pixels in [0, 1] by mean and standard deviation, the only "
                f"normalisation that can be kept. {_CURE}"
            )
        return facts

    def __call__(self, image: Any) -> Tensor:
        """Makes an input of an image or a volume, whole and without distortion.

        Raises:
            ValueError: If the image has other channels, but for grey, which becomes as
                many as needed, or was read with another `voi`.
        """
        dims = len(self.size)
        shown = is_displayed(image)
        if self.voi != shown and (shown or getattr(image, "white", None) is not None):
            raise ValueError(
                "Inputs: the encoder saw images "
                f"{'windowed as their DICOM files say' if self.voi else 'unwindowed'}, "
                f"and this one is {'' if shown else 'not '}so. Read it alike: "
                f"read_image(file, voi={self.voi})."
            )
        pixels = ToPixels(self.size, window=self.window, spatial_dims=dims)(image)
        if len(pixels) not in (1, self.channels):
            raise ValueError(
                f"Inputs: expected a grey image or one of {self.channels} channels, "
                f"got {len(pixels)}."
            )
        return self._normalised(pixels.expand(self.channels, *self.size))

    def _normalised(self, pixels: Tensor) -> Tensor:
        if not self.mean:
            return pixels.contiguous()
        shape = (-1, *(len(self.size) * [1]))
        mean, std = (
            torch.tensor(each).reshape(shape) for each in (self.mean, self.std)
        )
        normalised: Tensor = (pixels - mean) / std
        return normalised


def _window_of(
    transform: DiRATransform, known: Normalisation | None, coloured: bool
) -> Window | None:
    """Returns what becomes black and white.

    Raises:
        ValueError: If steps of the transform scale values in other ways as well.
    """
    window, before = transform.window, ""
    for step in transform.steps:
        kept = True
        if step.kind == "normalisation":
            own = find_normalisation(step.transform)
            same = own is not None and known is not None and own.equals(known)
            kept = same and before != "normalisation"
        elif changes_values_by_rule(step.transform):
            found = window_of(step.transform)
            kept = found is not None and window in (None, found)
            window = found
        elif coloured and makes_grey(step.transform):
            kept = False
        if not kept:
            raise ValueError(
                f"Inputs: what {name_of(step.transform)} does to values cannot be "
                f"kept, beside one window and one normalisation. {_CURE}"
            )
        before = step.kind
    return window


_CURE = (
    "Keep that of your own beside the weights, or scale by DiRATransform(window=...) "
    "and normalise by fixed numbers."
)
