"""What the steps of a base transform are given, and what becomes of their outputs."""

from __future__ import annotations

import contextlib
import functools
import math
import os
from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.utils import make_grid

from lightly_dira.core.user_warnings import warn
from lightly_dira.data.pixels import (
    SMALLEST,
    to_array,
    to_pixels,
    to_target,
    to_tensor,
    values_of,
    without_alpha,
)
from lightly_dira.data.white import (
    Window,
    check_finite,
    limits_of,
    scale,
    white_of,
)
from lightly_dira.transforms.albumentations_steps import Draws
from lightly_dira.transforms.distortion import Distortion
from lightly_dira.transforms.monai_steps import (
    keys_of,
    puts_channels_first,
    with_metadata_of,
)
from lightly_dira.transforms.preview import orthogonal_slices
from lightly_dira.transforms.step_images import as_array
from lightly_dira.transforms.taking_apart import Normalisation
from lightly_dira.transforms.volume_pipeline import VolumePipeline

# So many images must be white in succession, from the first on.
_LOOKED_AT = 4


@functools.cache
def _warn_of_alpha(channels: int) -> None:
    """Warns, once in a process."""
    warn(
        f"DiRATransform: of images of {channels} channels the last one is taken for "
        "alpha and left out, as the base transform normalises red, green and blue. If "
        "it is none, leave the normalisation out (in Lightly: normalize=None)."
    )


class Boundary:
    """Between the user's images or volumes, the steps, and finished tensors.

    Images go to the steps as PIL has them if that loses nothing, else as arrays (H, W)
    or (H, W, C) in [0, 1]. Volumes are tensors (C, D, H, W), alone or in a dictionary
    of MONAI's, and keep their units if there is no window: the steps may scale them.

    Args:
        transform: The base transform.
        window: Values that become black and white.
        spatial_dims: 2 for images, 3 for volumes.
        normalisation: What the base transform normalises views by.
        expand: Whether a grey view becomes one of three channels.
        alike: Whether steps and distortion do the same to a grey image of one channel
            as to one of three, so that one is enough until it is normalised.
        of_monai: Whether MONAI's steps are among those of images.
        in_units: Whether steps scale values with units by fixed numbers.
        hint: What may be wrong if a target lies outside [0, 1].
    """

    def __init__(
        self,
        transform: Any,
        window: Window | None,
        spatial_dims: int,
        *,
        normalisation: Normalisation | None = None,
        expand: bool = False,
        alike: bool = False,
        of_monai: bool = False,
        in_units: bool = False,
        hint: str = "",
    ) -> None:
        """Looks for the key of the dictionaries that the base transform takes."""
        self.window = window
        self.spatial_dims = spatial_dims
        self.normalisation = normalisation
        self.colour = normalisation is not None and len(normalisation.mean) == 3
        self.expand = expand
        self.alike = alike
        self.of_monai = of_monai
        self.in_units = in_units
        self.hint = hint
        self.crops_before_scaling = isinstance(transform, VolumePipeline)
        keys = dict.fromkeys(keys_of(transform))
        self.key = "image" if "image" in keys else next(iter(keys), None)
        self.finds_channels = puts_channels_first(transform)
        self._white_images = 0

    def enter(self, image: Any) -> Any:
        """Returns what the steps of the base transform are given."""
        if self.spatial_dims == 2:
            self._look_for_clipping(image)
            return self._for_monai(image) if self.of_monai else self._enter_image(image)
        if self.crops_before_scaling:
            values = values_of(image, 3)
            check_finite(values)
            plain = values.dtype == np.uint8 and self.window is None
            # White is decided for the whole volume, not for each crop of it.
            return values, None if plain else limits_of(values, self.window)
        if isinstance(image, Mapping):
            if self.key is None or self.key not in image:
                raise ValueError(
                    "DiRATransform: the base transform takes no dictionary with the "
                    f"keys {', '.join(map(str, image))}; it takes "
                    f"{self.key or 'arrays'}."
                )
            return {**image, self.key: self.enter(image[self.key])}
        # MONAI's own steps may read files, and scale the values that are in them.
        if isinstance(image, (str, os.PathLike)):
            if self.window is not None:
                raise ValueError(
                    "DiRATransform: window= scales volumes, and MONAI reads them from "
                    f"files here, such as {image}. Read them before, with "
                    "`VolumeFiles`, or scale by ScaleIntensityRange after LoadImage."
                )
            return image
        values = values_of(image, 3)
        known = getattr(values, "white", None) is not None and not self.in_units
        if self.window is not None or known:
            values = scale(values, self.window)
        elif self.in_units:
            # PyTorch knows little of unsigned integers of 16 bits.
            check_finite(values)
            values = values.astype(np.float32)
        elif values.dtype.kind == "f":
            check_finite(values)
        elif values.dtype.kind in "ui" and values.dtype.itemsize > 2:
            # White of 16 bits in wider integers is decided here, not for each crop.
            with contextlib.suppress(ValueError):
                white_of(values)
                values = values.astype(np.uint16)
        if self.finds_channels and np.ndim(image) == 3:
            values = values[0]
        return with_metadata_of(image, torch.from_numpy(np.ascontiguousarray(values)))

    def _enter_image(self, image: Any) -> Any:
        if isinstance(image, Image.Image):
            image = without_alpha(image)
            plain = image.mode in ("L", "RGB") and min(image.size) >= SMALLEST[2]
            if plain and self.window is None:
                colour = self.colour and image.mode == "L" and not self.alike
                return image.convert("RGB") if colour else image
        pixels = to_pixels(image, self.window)
        if self.colour:
            if len(pixels) > 4:
                raise ValueError(
                    "DiRATransform: the base transform normalises three channels, and "
                    f"the image has {len(pixels)}. Leave its normalisation out (in "
                    "Lightly: normalize=None), or give numbers for all channels."
                )
            if len(pixels) in (2, 4):
                _warn_of_alpha(len(pixels))
            if len(pixels) < 3 and self.alike:
                pixels = pixels[:1]
            elif len(pixels) < 3 and not isinstance(image, Tensor):
                # Pixel by pixel in memory, which later steps are faster with.
                return cv2.cvtColor(pixels[0], cv2.COLOR_GRAY2RGB)
            else:
                pixels = pixels[:3] if len(pixels) > 2 else pixels[[0, 0, 0]]
        if isinstance(image, Tensor):
            return torch.from_numpy(pixels)
        return to_array(pixels)

    def _for_monai(self, image: Any) -> Tensor:
        """Returns an image as MONAI's steps take it, with its channels first."""
        values = values_of(image)
        if self.in_units:
            check_finite(values)
            values = values.astype(np.float32)
        else:
            values = to_pixels(image, self.window)
            if values.dtype == np.uint8:
                values = values.astype(np.float32) / 255
        if self.finds_channels and not isinstance(image, Tensor):
            values = to_array(values)  # as the file has it
        return torch.from_numpy(np.ascontiguousarray(values))

    def _look_for_clipping(self, image: Any) -> None:
        """Warns if the first images look as PIL makes RGB of 16 bits."""
        number = self._white_images
        if not 0 <= number < _LOOKED_AT or getattr(image, "mode", None) != "RGB":
            return
        red, green, blue = np.reshape(image.histogram(), (3, 256))
        same = (red == green).all() and (red == blue).all()
        white = same and red[255] > 0.5 * red.sum()
        self._white_images = number + 1 if white else -1
        if self._white_images == _LOOKED_AT:
            warn(
                "DiRATransform: most pixels of the first images are white and grey, as "
                "where LightlyDataset or ImageFolder reads files of 16 bits: PIL clips "
                "them to 8. Read such files by `lightly_dira.data.ImageFiles`."
            )

    def enter_whole(self, image: Any) -> Any:
        """Returns what a base transform without known steps is given."""
        if self.spatial_dims == 2:
            self._look_for_clipping(image)
        if self.window is None:
            return image
        pixels = to_pixels(image, self.window, self.spatial_dims)
        if self.spatial_dims == 3:
            return pixels[0] if np.ndim(image) == 3 else pixels
        # PIL has no colour of more than 8 bits.
        if isinstance(image, np.ndarray):
            return to_array(pixels)
        return tv_tensors.Image(torch.from_numpy(np.ascontiguousarray(pixels)))

    def tensor(self, view: Any) -> Tensor:
        """Returns a view as a tensor."""
        return to_tensor(self._image_in(view), self.spatial_dims)

    def finish(self, view: Any) -> Tensor:
        """Returns a finished view."""
        tensor = self.tensor(view)
        return tensor.expand(3, -1, -1) if self.expand and len(tensor) == 1 else tensor

    def target(self, clean: Any, channels: int) -> Tensor:
        """Returns a target."""
        clean = self._image_in(clean)
        return to_target(clean, channels, self.spatial_dims, hint=self.hint)

    def distort(self, distortion: Distortion, view: Any, draws: Draws) -> Any:
        """Returns a distorted view."""
        if isinstance(view, Mapping):
            distorted = self.distort(distortion, view[self.key], draws)
            return {**view, self.key: distorted}
        image = view
        if self.spatial_dims == 3 and getattr(view, "dtype", None) != torch.uint8:
            image = self.tensor(view)
        if isinstance(image, Tensor) and image.ndim != self.spatial_dims + 1:
            return view  # a stack of patches
        given = as_array(image)
        array = distortion(given, draws.random)
        if not isinstance(array, np.ndarray) or (
            (array.shape, array.dtype) != (given.shape, given.dtype)
        ):
            got = getattr(array, "dtype", type(array).__name__)
            raise ValueError(
                "DiRATransform: a distortion returns an array like the one that it is "
                f"given, {given.dtype} of shape {given.shape}, got {got} of shape "
                f"{getattr(array, 'shape', ())}."
            )
        if isinstance(image, Image.Image):
            return Image.fromarray(array)
        if isinstance(image, Tensor):
            return with_metadata_of(view, torch.from_numpy(array).movedim(-1, 0))
        return array

    def picture(self, pixels: Tensor) -> Tensor:
        """Returns an image to be shown: of a volume its middle slices."""
        return pixels if self.spatial_dims == 2 else orthogonal_slices(pixels[None])[0]

    def picture_of_view(self, view: Tensor) -> Tensor:
        """Returns a finished view as an image to be shown."""
        if view.ndim > self.spatial_dims + 1:  # a stack of patches
            parts = torch.stack([self.picture_of_view(part) for part in view])
            grid: Tensor = make_grid(parts, nrow=math.isqrt(len(parts)))
            return grid
        known = self.normalisation
        if known is not None and known.fits(view):
            view = known.undone(view)
        if known is not None and known.mean.max() > 1:  # of values up to 255
            view = view / 255
        return self.picture(view)

    def _image_in(self, output: Any) -> Any:
        if not isinstance(output, Mapping):
            return output
        if self.key not in output:
            raise ValueError(
                "DiRATransform: expected images from the base transform, got a "
                f"dictionary with the keys {', '.join(map(str, output))}. Take the "
                "images out of it: DiRATransform(lambda image: [view[key] for view in "
                "transform(image)])."
            )
        return output[self.key]
