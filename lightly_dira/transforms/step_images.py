"""Images in the forms that steps of transforms take, and steps that take tensors."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sized
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from lightly_dira.core.user_warnings import warn
from lightly_dira.data.pixels import to_tensor


def copied(image: Any) -> Any:
    """Returns a copy of an image, and anything else as it is."""
    if isinstance(image, Tensor):
        return image.clone()
    return image.copy() if isinstance(image, (np.ndarray, Image.Image)) else image


def in_range(image: Any) -> bool:
    """Whether all floats of an image lie in [0, 1]; True of what is not floats."""
    limits = _limits_of(image)
    return limits is None or bool(limits[0] >= 0 and limits[1] <= 1)


def brightest(image: Any) -> float:
    """Returns the highest of floats in [0, 1], and 0 of anything else."""
    floats = getattr(image, "dtype", None) in (np.float32, np.float64, torch.float32)
    limits = _limits_of(image) if floats else None
    if limits is None or not (limits[0] >= 0 and limits[1] <= 1):
        return 0.0
    return limits[1]


def say_if_dark(name: str, before: float, after: float) -> None:
    """Warns if a step has made pixels in [0, 1] many times darker."""
    if 0 < after < before / _DARK:
        _warn_of_darkness(name)


# Times that a step may darken an image.
_DARK = 200


@functools.cache
def _warn_of_darkness(name: str) -> None:
    """Warns, once in a process."""
    warn(
        f"DiRATransform: {name} made pixels in [0, 1] almost black. Images of 16 bits "
        "and of files that say what is white come as floats in [0, 1]: leave out its "
        "division, or say what is white by DiRATransform(window=(low, high))."
    )


OF_BYTES = (
    "has numbers that count from 0 to 255, and here pixels are floats in [0, 1]. "
    "Divide its numbers by 255."
)


def _limits_of(image: Any) -> tuple[float, float] | None:
    """Returns the lowest and the highest of an image's floats, if it has any."""
    if isinstance(image, np.ndarray) and image.dtype.kind == "f" and image.size:
        return float(image.min()), float(image.max())
    if isinstance(image, Tensor) and image.is_floating_point() and image.numel():
        low, high = image.aminmax()
        return float(low), float(high)
    return None


def with_channels_of(normalisation: Any, view: Any) -> Any:
    """Returns a grey view with as many channels as are normalised."""
    mean = getattr(normalisation, "mean", ())
    channels = len(mean) if isinstance(mean, Sized) else 1
    grey = isinstance(view, Tensor) and view.ndim == 3 and len(view) == 1
    if not grey or channels < 2:
        return view
    return view.expand(channels, -1, -1)


def as_array(image: Any) -> NDArray[Any]:
    """Returns an image (H, W) or (H, W, C), or a volume (D, H, W, C), as an array."""
    if isinstance(image, Tensor):
        array: NDArray[Any] = image.movedim(0, -1).contiguous().numpy()
        return array
    return np.asarray(image)


def from_array(volume: Any) -> Any:
    """Returns an array (D, H, W, C) as a tensor (C, D, H, W), and others unchanged."""
    if not isinstance(volume, np.ndarray) or volume.ndim != 4:
        return volume
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(volume, -1, 0)))


def as_torchvision(image: Any) -> Any:
    """Returns a PIL image, or a tensor where PIL would lose precision or channels."""
    if not isinstance(image, np.ndarray):
        return image
    if image.dtype == np.uint8 and (image.ndim == 2 or image.shape[2] in (3, 4)):
        return Image.fromarray(image)
    array = np.ascontiguousarray(np.atleast_3d(image))
    return tv_tensors.Image(torch.from_numpy(array).movedim(-1, 0))


def _blur_for_tensors(blur: Any) -> Callable[[Tensor], Tensor]:
    """Blurs like Lightly's `GaussianBlur`, with its draws, but not in 8 bits."""

    def apply(image: Tensor) -> Tensor:
        if np.random.random_sample() >= blur.prob:  # noqa: NPY002
            return image
        sigma = np.random.uniform(*blur.sigmas)  # noqa: NPY002
        size = 2 * round(4 * sigma) + 1
        # Its default border is the mirror that torchvision pads with.
        blurred = [cv2.GaussianBlur(p, (size, size), sigma) for p in image.numpy()]
        return torch.from_numpy(np.stack(blurred))

    return apply


def _solarize_for_tensors(solarize: Any) -> Callable[[Tensor], Tensor]:
    """Solarises tensors; Lightly's `RandomSolarization` takes PIL images only."""

    def apply(image: Tensor) -> Tensor:
        if np.random.random_sample() >= solarize.prob:  # noqa: NPY002
            return image
        top = 1.0 if image.is_floating_point() else torch.iinfo(image.dtype).max
        solarized: Tensor = F.solarize(image, solarize.threshold / 255 * top)
        return solarized

    return apply


FOR_TENSORS: dict[str, Callable[[Any], Callable[..., Any]]] = {
    # These two are of torchvision's v1, which does not convert tensors.
    "ToTensor": lambda _: to_tensor,
    "PILToTensor": lambda _: lambda image: image,
    "GaussianBlur": lambda b: _blur_for_tensors(b) if hasattr(b, "sigmas") else b,
    "RandomSolarization": _solarize_for_tensors,
    "Jigsaw": lambda jigsaw: lambda image: jigsaw(F.to_pil_image(image)),
}
