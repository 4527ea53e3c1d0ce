"""What `DiRATransform` does differently with images and with volumes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lightly_dira.transforms.alignment import Draws, as_array
from lightly_dira.transforms.images import (
    SMALLEST,
    Window,
    limits_of,
    to_pixels,
    to_target,
    to_tensor,
    without_alpha,
)
from lightly_dira.transforms.monai_steps import (
    keys_of,
    puts_channels_first,
    with_metadata_of,
)
from lightly_dira.transforms.volume_pipeline import VolumePipeline
from lightly_dira.transforms.volumes import (
    check_volume,
    from_array,
    orthogonal_slices,
    to_volume_target,
    to_volume_tensor,
    to_voxels,
)


class Images:
    """Images: of PIL, arrays (H, W, C) or tensors (C, H, W).

    Args:
        window: Values that become black and white.
        colour: Whether the base transform normalises three channels.
        expand: Whether a grey view becomes one of three channels.
    """

    dimensions = 3

    def __init__(self, window: Window | None, *, colour: bool, expand: bool) -> None:
        """Keeps the settings."""
        self.window = window
        self.colour = colour
        self.expand = expand

    def prepare(self, image: Any) -> Any:
        """Returns what the steps of the base transform are given."""
        if isinstance(image, Image.Image):
            image = without_alpha(image)
        plain = isinstance(image, Image.Image) and image.mode in ("L", "RGB")
        if not plain or self.window is not None or min(image.size) < SMALLEST:
            image = to_pixels(image, self.window)
        if not self.colour:
            return image
        if isinstance(image, Image.Image):
            return image if image.mode == "RGB" else image.convert("RGB")
        image = np.atleast_3d(image)
        return image[..., :3] if image.shape[2] > 2 else image[..., [0, 0, 0]]

    def prepare_whole(self, image: Any) -> Any:
        """Returns what a base transform without known steps is given."""
        return image

    def tensor(self, view: Any) -> Tensor:
        """Returns a view as a tensor."""
        return to_tensor(view)

    def finish(self, view: Any) -> Tensor:
        """Returns a finished view."""
        tensor = to_tensor(view)
        return tensor.expand(3, -1, -1) if self.expand and len(tensor) == 1 else tensor

    def target(self, clean: Any, channels: int) -> Tensor:
        """Returns a target."""
        return to_target(clean, channels)

    def distort(self, distortion: Any, view: Any, draws: Draws) -> Any:
        """Returns a distorted view."""
        if isinstance(view, Tensor) and view.ndim != 3:
            return view
        (array,) = draws.apply(distortion, as_array(view))
        if isinstance(view, Image.Image):
            return Image.fromarray(array)
        if isinstance(view, Tensor):
            return torch.from_numpy(array).movedim(-1, 0)
        return array

    def picture(self, view: Tensor) -> Tensor:
        """Returns a view as an image to be shown."""
        return view


class Volumes:
    """Volumes: tensors (C, D, H, W), alone or in a dictionary of MONAI's.

    Args:
        window: Values that become black and white.
        transform: The base transform.
    """

    dimensions = 4

    def __init__(self, window: Window | None, transform: Any) -> None:
        """Looks for the key of the dictionaries that the base transform takes."""
        self.window = window
        self.pipeline = transform if isinstance(transform, VolumePipeline) else None
        keys = dict.fromkeys(keys_of(transform))
        self.key = "image" if "image" in keys else next(iter(keys), None)
        self.as_it_is = puts_channels_first(transform)

    def prepare(self, volume: Any) -> Any:
        """Returns what the steps of the base transform are given."""
        if self.pipeline is not None:
            return self._for_pipeline(check_volume(volume))
        if isinstance(volume, Mapping):
            if self.key is None or self.key not in volume:
                raise ValueError(
                    "DiRATransform: the base transform takes no dictionary with the "
                    f"keys {', '.join(map(str, volume))}; it takes "
                    f"{self.key or 'arrays'}."
                )
            return {**volume, self.key: self.prepare(volume[self.key])}
        # MONAI's own steps may read files, and scale the values that are in them.
        if isinstance(volume, (str, os.PathLike)):
            return volume
        checked = self._scaled(check_volume(volume))
        if self.as_it_is and np.ndim(volume) == 3:
            checked = checked[0]
        return with_metadata_of(volume, checked)

    def _for_pipeline(self, volume: Tensor) -> tuple[Tensor, Window | None]:
        """Says what is white in the whole volume, not in each crop of it."""
        if self.window is None and volume.dtype == torch.uint8:
            return volume, None
        return volume, limits_of(volume.numpy(), self.window)

    def _scaled(self, checked: Tensor) -> Tensor:
        return checked if self.window is None else to_voxels(checked, self.window)

    def prepare_whole(self, volume: Any) -> Any:
        """Returns what a base transform without known steps is given."""
        if self.window is None:
            return volume
        voxels = to_voxels(volume, self.window).numpy()
        return voxels[0] if np.ndim(volume) == 3 else voxels

    def tensor(self, view: Any) -> Tensor:
        """Returns a view as a tensor."""
        return to_volume_tensor(self._volume_in(view))

    finish = tensor

    def target(self, clean: Any, channels: int) -> Tensor:
        """Returns a target."""
        return to_volume_target(self._volume_in(clean), channels)

    def distort(self, distortion: Any, view: Any, draws: Draws) -> Any:
        """Returns a distorted view."""
        if isinstance(view, Mapping):
            distorted = self.distort(distortion, view[self.key], draws)
            return {**view, self.key: distorted}
        tensor = check_volume(view)
        if tensor.dtype != torch.uint8:
            tensor = to_volume_tensor(tensor)
        (array,) = draws.apply(distortion, as_array(tensor))
        return with_metadata_of(view, from_array(array))

    def picture(self, view: Tensor) -> Tensor:
        """Returns the middle slices of a view."""
        return orthogonal_slices(view[None])[0]

    def _volume_in(self, output: Any) -> Any:
        return output[self.key] if isinstance(output, Mapping) else output
