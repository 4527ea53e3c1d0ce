"""The one boundary: whatever holds an image or a volume becomes pixels in [0, 1].

Values come from files, PIL, arrays, tensors and MONAI's MetaTensors.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from lightly_dira.data.white import Window, scale, white_of

# Fewest pixels along a side of images, and of volumes.
SMALLEST = {2: 16, 3: 2}
MOST_CHANNELS = 32
# Modes of PIL that are not arrays of grey values or of red, green and blue.
_MODES_OF_COLOUR = ("P", "PA", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV")
# Weights of red, green and blue, by ITU-R BT.601.
LUMINANCE = torch.tensor([0.299, 0.587, 0.114])


def values_of(image: Any, spatial_dims: int = 2) -> NDArray[Any]:
    """Returns the checked values of an image or a volume, (C, ...), in their own type.

    Args:
        image: Of two dimensions a PIL image, an array (H, W) or (H, W, C) or a tensor
            (H, W) or (C, H, W). Of three an array or a tensor (D, H, W) or
            (C, D, H, W).
        spatial_dims: 2 or 3.

    Raises:
        TypeError: If it is not an image or a volume, or of an unsupported type.
        ValueError: If its shape cannot be used.
    """
    last = spatial_dims == 2
    if isinstance(image, Tensor):
        image = image.detach().cpu().as_subclass(Tensor)
        if image.dtype in (torch.float16, torch.bfloat16):
            image = image.float()
        image, last = image.numpy(), False
    elif isinstance(image, Image.Image) and spatial_dims == 2:
        image = np.asarray(without_alpha(image))
    elif not isinstance(image, np.ndarray):
        raise TypeError(_NO_VALUES[spatial_dims].format(type(image).__name__))
    if image.dtype.kind not in "uifb" or image.dtype.itemsize > 8:
        raise TypeError(
            "DiRATransform: expected values that are integers, float16 to float64 or "
            f"bool, got {image.dtype}."
        )
    if not image.dtype.isnative:
        image = image.astype(image.dtype.newbyteorder("="))
    values = image[None] if image.ndim == spatial_dims else image
    if last and image.ndim == 3:
        values = image.transpose(2, 0, 1)
    if values.ndim != spatial_dims + 1 or not 1 <= len(values) <= MOST_CHANNELS:
        raise ValueError(_NO_SHAPE[spatial_dims].format(image.shape))
    sides, smallest = values.shape[1:], SMALLEST[spatial_dims]
    if min(sides) < smallest:
        raise ValueError(
            f"DiRATransform: expected at least {smallest} x {smallest} pixels, got "
            f"{' x '.join(map(str, sides))}. Enlarge the image or leave it out."
            if spatial_dims == 2
            else "DiRATransform: expected at least two voxels along every axis of a "
            f"volume, got shape {image.shape}. Images: leave spatial_dims at 2."
        )
    checked: NDArray[Any] = values
    return checked


_NO_VALUES = {
    2: "DiRATransform: expected a PIL image, a NumPy array (H, W) or (H, W, C) or a "
    "tensor (C, H, W), got {}.",
    3: "DiRATransform: with spatial_dims=3 expected an array or a tensor (D, H, W) or "
    "(C, D, H, W), got {}. Read files with `lightly_dira.transforms.read_volume`.",
}
_NO_SHAPE = {
    2: "DiRATransform: expected an image (H, W), an array (H, W, C) or a tensor "
    f"(C, H, W) with 1 to {MOST_CHANNELS} channels, got shape {{}}. Volumes: pass "
    "spatial_dims=3.",
    3: "DiRATransform: with spatial_dims=3 expected a volume (D, H, W) or (C, D, H, W) "
    f"of up to {MOST_CHANNELS} channels, got shape {{}}. Volumes with their channels "
    "last: move them, `numpy.moveaxis(volume, -1, 0)`; images: leave spatial_dims at "
    "2.",
}


def to_pixels(
    image: Any, window: Window | None = None, spatial_dims: int = 2
) -> NDArray[Any]:
    """Returns pixels (C, ...): uint8, or float32 in [0, 1] if 8 bits are not enough.

    Args:
        image: See `values_of`.
        window: Values that become 0 and 1, or "percentiles" (0.5 and 99.5 of the
            image); values outside are clipped. Without one, uint8 is divided by 255,
            uint16 and 16 bits stored in wider integers by 65535 (of DICOM by the
            highest value of its bits), and floats must lie in [0, 1].
        spatial_dims: 2 or 3.

    Raises:
        TypeError: If `image` is not an image, or of an unsupported type.
        ValueError: If its shape or its values cannot be used.
    """
    values = values_of(image, spatial_dims)
    known = getattr(values, "white", None) is not None
    if values.dtype == np.uint8 and window is None and not known:
        return values
    return scale(values, window)


def to_array(pixels: NDArray[Any]) -> NDArray[Any]:
    """Returns pixels (C, H, W) as steps of images take them: (H, W) or (H, W, C)."""
    return pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)


def without_alpha(image: Image.Image) -> Image.Image:
    """Returns an image of PIL in grey or RGB, without palette and transparency."""
    image = image.convert("LA") if image.mode == "La" else image
    grey = image.mode == "LA"
    if grey or image.mode in _MODES_OF_COLOUR:
        return image.convert("L" if grey else "RGB")
    return image


def with_channels(image: Tensor, channels: int, *, alpha: bool) -> Tensor:
    """Repeats grey to so many channels, and averages colours that are not as many.

    Args:
        image: (C, ...).
        channels: Channels of the result.
        alpha: Whether the last of two or four channels is alpha, which is dropped.
    """
    if alpha and len(image) in (2, 4) and len(image) != channels:
        image = image[:-1]
    if len(image) == channels:
        return image
    grey = image.mean(dim=0, keepdim=True)
    return grey.expand(channels, *image.shape[1:])


def to_tensor(view: Any, spatial_dims: int = 2) -> Tensor:
    """Returns what a step made as float (C, ...), integers divided by their white."""
    if isinstance(view, Tensor):
        tensor = view.as_subclass(Tensor)  # without torchvision's or MONAI's own class
        if spatial_dims == 3 and tensor.ndim == 3:
            tensor = tensor[None]
        if tensor.is_floating_point():
            return tensor
        white = 255.0 if tensor.dtype == torch.uint8 else white_of(tensor.numpy())
        return tensor.to(torch.float32) / white
    array = np.asarray(view)
    if getattr(view, "mode", None) == "F" and array.max() > 1:
        array = array / np.float32(255)  # the scale that PIL converts them with
    if array.ndim == spatial_dims:
        array = array[None]
    elif spatial_dims == 2:
        array = array.transpose(2, 0, 1)
    known = {"f": 1.0, "b": 1.0}.get(array.dtype.kind)
    known = 255.0 if array.dtype == np.uint8 else known
    top = white_of(array) if known is None else known
    return torch.from_numpy(
        np.divide(array, np.float32(top), dtype=np.float32, order="C")
    )


def to_target(
    clean: Any, channels: int, spatial_dims: int = 2, *, hint: str = ""
) -> Tensor:
    """Returns a clean view as a restoration target, (channels, ...) in [0, 1].

    Args:
        clean: The view.
        channels: Channels of the target.
        spatial_dims: 2 or 3.
        hint: What else may be wrong if values lie outside [0, 1].

    Raises:
        ValueError: If it is not a single image, has values outside [0, 1] or the wrong
            number of channels.
    """
    if channels == 1 and getattr(clean, "mode", None) in ("RGB", "RGBA"):
        clean = clean.convert("L")
    target = to_tensor(clean, spatial_dims)
    if target.ndim != spatial_dims + 1:
        raise ValueError(
            "DiRATransform: the view that the target is taken from must be an image "
            f"(C, H, W), got shape {tuple(target.shape)}. Choose another `target_view`."
        )
    if len(target) > channels == 1:
        if spatial_dims == 2 and len(target) in (3, 4):
            target = torch.einsum("c,chw->hw", LUMINANCE, target[:3].float())[None]
        else:
            target = target.mean(dim=0, keepdim=True)
    elif len(target) != channels:
        if len(target) != 1 or spatial_dims == 3:
            raise ValueError(
                f"DiRATransform: an image of {len(target)} channels cannot give a "
                f"target of {channels}; target_channels must be 1 or {len(target)}."
            )
        target = target.expand(channels, -1, -1)
    # Bytes, of PIL or in an array, cannot leave the range.
    plain = getattr(clean, "mode", None) in ("L", "RGB")
    if plain or getattr(clean, "dtype", None) in (np.uint8, torch.uint8):
        return target
    low, high = (value.item() for value in target.aminmax())
    # Rounding in resizing may leave the range by some units in the last place.
    if not -1e-3 <= low <= high <= 1 + 1e-3:
        raise ValueError(
            "DiRATransform: targets are pixels in [0, 1], but the clean view reaches "
            f"from {low:.4g} to {high:.4g}. {hint or _CURES[spatial_dims]}"
        )
    inside = 0 <= low <= high <= 1
    return target.float() if inside else target.float().clamp(0, 1)


_CURES = {
    2: "Give the base transform as a torchvision or albumentations `Compose`, so that "
    "its normalisation can be left out of the target, or normalise in the model. Steps "
    "that return other values, such as 0 to 255: let them return uint8.",
    3: "Say which values are black and white, DiRATransform(..., window=(low, high)) "
    'or window="percentiles", or scale the volume as the first step of the base '
    "transform (in MONAI: ScaleIntensityRange).",
}
