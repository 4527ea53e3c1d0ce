"""What an encoder was fed with, so that a colleague can feed it alike."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lightly_dira.data import ToPixels
from lightly_dira.data.white import Window
from lightly_dira.transforms.dira_transform import DiRATransform
from lightly_dira.transforms.taking_apart import find_normalisation


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What an encoder was fed with; called with an image it makes such an input.

    Attributes:
        channels: Channels of the views.
        size: (H, W) or (D, H, W) of the views.
        window: The values that became black and white, as in `DiRATransform`.
        mean: Of the normalisation, for each channel; none if views were not normalised.
        std: The same.

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

    @classmethod
    def of(cls, transform: DiRATransform, image: Any) -> Inputs:
        """Looks at what a transform makes of an image."""
        view = transform(image).view
        known = find_normalisation(transform.transform)
        channels, *size = view.shape
        facts = cls(channels, tuple(size), transform.window)
        if known is None or not known.fits(view):
            return facts
        # Some normalisations are of values up to 255.
        scale = 255 if known.mean.max() > 1 else 1
        mean, std = (tuple((each / scale).flatten().tolist()) for each in known)
        return dataclasses.replace(facts, mean=mean, std=std)

    @classmethod
    def from_json(cls, kept: Mapping[str, Any]) -> Inputs:
        """Reads what `dataclasses.asdict` wrote as JSON, which has lists for tuples."""
        own: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in kept.items()
        }
        return cls(**own)

    def __call__(self, image: Any) -> Tensor:
        """Makes an input of an image or a volume, whole and without distortion.

        Raises:
            ValueError: If the image has other channels; grey becomes as many as needed.
        """
        dims = len(self.size)
        pixels = ToPixels(self.size, window=self.window, spatial_dims=dims)(image)
        if len(pixels) not in (1, self.channels):
            raise ValueError(
                f"Inputs: expected a grey image or one of {self.channels} channels, "
                f"got {len(pixels)}."
            )
        pixels = pixels.expand(self.channels, *self.size)
        if not self.mean:
            return pixels.contiguous()
        shape = (-1, *(dims * [1]))
        mean, std = (
            torch.tensor(each).reshape(shape) for each in (self.mean, self.std)
        )
        normalised: Tensor = (pixels - mean) / std
        return normalised
