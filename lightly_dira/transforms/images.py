"""Images of any kind: read, checked, scaled, and turned into tensors and targets."""

from __future__ import annotations

import functools
from typing import Any, Literal

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from lightly_dira.core.user_warnings import warn

Window = tuple[float, float] | Literal["percentiles"]
"""The lowest and the highest value of interest, in the units of the image.

"percentiles" stands for 0.5 and 99.5 of each image.
"""
# Fewest pixels that an image may have along its shorter side.
SMALLEST = 16
# The highest value of 12 bits, which use a sixteenth of the range of 16 bits.
_SIXTEENTH = 4095
# Values that percentiles are taken of.
_VALUES = 2**19
# Modes of PIL that are not arrays of grey values or of red, green and blue.
_MODES_OF_COLOUR = ("P", "PA", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV")
# Pixels up to which exact area interpolation takes no time to speak of.
_SMALL = 512 * 512
# Weights of red, green and blue, by ITU-R BT.601.
_LUMINANCE = torch.tensor([0.299, 0.587, 0.114])


def to_pixels(image: Any, window: Window | None = None) -> NDArray[Any]:
    """Returns an image as uint8, or as float32 in [0, 1] if 8 bits are not enough.

    Args:
        image: PIL image, array (H, W) or (H, W, C) or tensor (C, H, W), of 1 to 4
            channels and at least 16 x 16 pixels.
        window: Values that become 0 and 1, or "percentiles" (0.5 and 99.5 of the
            image); values outside are clipped. Without one, uint8 is divided by 255,
            uint16 and 16 bits stored in wider integers by
            65535, and floats must lie in [0, 1].

    Returns:
        (H, W) or (H, W, C).

    Raises:
        TypeError: If `image` is not an image, or of an unsupported type.
        ValueError: If its shape or its values cannot be used.
    """
    if isinstance(image, Image.Image):
        image = np.asarray(without_alpha(image))
    elif isinstance(image, Tensor):
        image = image.detach().cpu()
        if image.dtype in (torch.float16, torch.bfloat16):
            image = image.float()
        image = image.numpy()
        image = np.moveaxis(image, 0, -1) if image.ndim == 3 else image
    elif not isinstance(image, np.ndarray):
        raise TypeError(
            "DiRATransform: expected a PIL image, a NumPy array (H, W) or (H, W, C) or "
            f"a tensor (C, H, W), got {type(image).__name__}."
        )
    if not image.dtype.isnative:
        image = image.astype(image.dtype.newbyteorder("="))
    shape = image.shape
    if image.ndim not in (2, 3) or (image.ndim == 3 and not 1 <= shape[2] <= 4):
        raise ValueError(
            "DiRATransform: expected an image (H, W), an array (H, W, C) or a tensor "
            f"(C, H, W) with 1 to 4 channels; as an array it has shape {shape}."
        )
    if min(shape[:2]) < SMALLEST:
        raise ValueError(
            f"DiRATransform: expected at least {SMALLEST} x {SMALLEST} pixels, got "
            f"{shape[0]} x {shape[1]}. Enlarge the image or leave it out."
        )
    return image if image.dtype == np.uint8 and window is None else scale(image, window)


def without_alpha(image: Image.Image) -> Image.Image:
    """Returns an image of PIL in grey or RGB, without palette and transparency."""
    grey = image.mode in ("LA", "La")
    if grey or image.mode in _MODES_OF_COLOUR:
        return image.convert("L" if grey else "RGB")
    return image


def resize_area(image: NDArray[Any], height: int, width: int) -> NDArray[Any]:
    """Averages over the area of each new pixel, so that borders lie on borders.

    OpenCV's own area interpolation is exact, but fast only if it halves both sides.
    Bilinear interpolation to half the size gives the same average, and is also fast
    along one side. So each side of a large image is halved while it is at least twice
    as long as wanted, then enlarged to exactly twice the wanted length and halved once
    more. One that is not divisible is enlarged by a few pixels before.
    """
    high, wide = image.shape[:2]
    whole = divisible(high, height) == high and divisible(wide, width) == wide
    if not whole and high >= height and wide >= width and high * wide <= _SMALL:
        return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    rows, columns = _halvings(high, height), _halvings(wide, width)
    high, wide = -(-high >> rows), -(-wide >> columns)
    sizes = [
        (wide << max(0, columns - step), high << max(0, rows - step))
        for step in range(max(rows, columns) + 1)
    ]
    # Only sides that are still too long are enlarged for the last halving.
    double = width * (1 + (wide > width)), height * (1 + (high > height))
    for size in (*sizes, double, (width, height)):
        if size != image.shape[1::-1]:
            image = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
    return image


def divisible(length: int, new: int) -> int:
    """Returns the largest length up to this one that halves on the way to `new`."""
    steps = _halvings(length, new)
    return length >> steps << steps


def _halvings(length: int, new: int) -> int:
    return max(0, (length // new).bit_length() - 1)


def to_tensor(image: Any) -> Tensor:
    """Returns an image as float (C, H, W), integers divided by their largest value."""
    if isinstance(image, Tensor):
        tensor = image.as_subclass(Tensor)  # without torchvision's own class
    else:
        array = np.asarray(image)
        array = array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
        known = {"f": 1.0, "b": 1.0}.get(array.dtype.kind)
        known = 255.0 if array.dtype == np.uint8 else known
        top = white_of(array) if known is None else known
        return torch.from_numpy(
            np.divide(array, np.float32(top), dtype=np.float32, order="C")
        )
    if tensor.dtype.is_floating_point:
        return tensor
    top = 255.0 if tensor.dtype == torch.uint8 else white_of(tensor.numpy())
    return tensor.to(torch.float32) / top


def to_target(image: Any, channels: int) -> Tensor:
    """Returns an image as a restoration target, (channels, H, W) in [0, 1].

    Raises:
        ValueError: If it is not a single image, has values outside [0, 1] or the wrong
            number of channels.
    """
    if isinstance(image, Image.Image) and channels == 1:
        image = image.convert("L") if image.mode in ("RGB", "RGBA") else image
    target = to_tensor(image)
    if target.ndim != 3:
        raise ValueError(
            "DiRATransform: the view that the target is taken from must be an image "
            f"(C, H, W), got shape {tuple(target.shape)}. Choose another `target_view`."
        )
    if len(target) > channels == 1:
        if len(target) == 2:
            target = target.mean(dim=0, keepdim=True)
        else:
            target = torch.einsum("c,chw->hw", _LUMINANCE, target[:3])[None]
    elif len(target) != channels:
        if len(target) != 1:
            raise ValueError(
                f"DiRATransform: an image of {len(target)} channels cannot give a "
                f"target of {channels}; target_channels must be 1 or {len(target)}."
            )
        target = target.expand(channels, -1, -1)
    # Bytes, of PIL or in an array, cannot leave the range.
    plain = getattr(image, "mode", None) in ("L", "RGB")
    if plain or getattr(image, "dtype", None) == np.uint8:
        return target
    low, high = (value.item() for value in target.aminmax())
    if 0 <= low <= high <= 1:
        return target
    # Rounding in resizing may leave the range by some units in the last place.
    if not -1e-3 <= low <= high <= 1 + 1e-3:
        raise ValueError(
            "DiRATransform: targets are pixels in [0, 1], but the clean view reaches "
            f"from {low:.4g} to {high:.4g}. Give the base transform as a torchvision "
            "or albumentations `Compose`, so that its normalisation can be left out "
            "of the target, or normalise in the model."
        )
    return target.clamp(0, 1)


def scale(image: NDArray[Any], window: Window | None) -> NDArray[Any]:
    """Returns pixels as float32 in [0, 1], or bits as uint8; see `to_pixels`."""
    if image.dtype == np.bool_:
        return np.where(image, np.uint8(255), np.uint8(0))
    if image.dtype.kind not in "uif" or image.dtype.itemsize > 8:
        raise TypeError(
            "DiRATransform: expected pixels that are integers, float16 to float64 or "
            f"bool, got {image.dtype}."
        )
    limits = [float(image.min()), float(image.max())] if image.dtype.kind == "f" else 0
    if not np.isfinite(limits).all():
        raise ValueError(
            "DiRATransform: the image holds NaN or infinite pixels. Replace them, for "
            "example with `numpy.nan_to_num`."
        )
    black, white = limits_of(image, window)
    scaled = image.astype(np.float32)
    scaled -= np.float32(black)
    scaled /= np.float32(white - black)
    return scaled.clip(0, 1, out=scaled)


def limits_of(image: NDArray[Any], window: Window | None) -> tuple[float, float]:
    """Returns the values that become 0 and 1."""
    if window is None:
        return 0.0, white_of(image)
    if not isinstance(window, str):
        return window
    flat = image.reshape(-1)
    # Some hundred thousand values tell the percentiles of large volumes.
    low, high = np.percentile(flat[:: max(1, flat.size // _VALUES)], (0.5, 99.5))
    return float(low), float(
        max(high, np.nextafter(np.float32(low), np.float32(np.inf)))
    )


def white_of(image: NDArray[Any]) -> float:
    """Returns the value of white, which the type alone does not always determine.

    Raises:
        ValueError: If the value of white is unclear.
    """
    if image.dtype == np.bool_:
        return 1.0
    low, high = float(image.min()), float(image.max())
    top = 1.0 if image.dtype.kind == "f" else 65535.0
    # PIL and some readers give 16 bits as wider integers; 8 bits come as bytes.
    wide = image.dtype.itemsize > 2 and (high > 255 or high == 0)
    fits = top == 1 or image.dtype == np.uint16 or wide
    if not (fits and low >= 0 and high <= top):
        raise ValueError(
            f"DiRATransform: without a window {image.dtype} pixels must be "
            f"{'floats in [0, 1]' if top == 1 else 'uint8, or unsigned of 16 bits'}, "
            f"got values from {low:g} to {high:g}. Say which values are black and "
            "white, DiRATransform(..., window=(low, high)), or take those of each "
            'image, window="percentiles".'
        )
    if top > 1 and 0 < high <= _SIXTEENTH:
        _warn_of_few_bits()
    return top


@functools.cache
def _warn_of_few_bits() -> None:
    """Warns, once in a process."""
    warn(
        "DiRATransform: an image of 16 bits uses at most a sixteenth of their range "
        "(0 to 4095) and becomes almost black. If all images do, as those of 12 bits, "
        "give their range: DiRATransform(..., window=(0, 4095))."
    )
