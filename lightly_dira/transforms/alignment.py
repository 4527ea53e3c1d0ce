"""The steps of a base transform, run on samples instead of images."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torchvision import transforms as v1
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from lightly_dira.core.randomness import set_states_on_cpu, states_on_cpu
from lightly_dira.core.tensors import tensors_in
from lightly_dira.data.pixels import to_tensor
from lightly_dira.transforms.albumentations_steps import Draws, is_albumentation
from lightly_dira.transforms.kinds import (
    THROUGH_BOTH,
    Stated,
    geometry_of,
    is_of_library,
)
from lightly_dira.transforms.monai_steps import (
    is_of_monai,
    looks_into_the_volume,
    run_seeded,
)


@dataclasses.dataclass(frozen=True)
class Sample:
    """A view and its target, which go through the base transform together."""

    view: Any
    target: Any
    draws: Draws
    distort: Callable[[Any, Draws], Any] | None
    # Whether it has more than the 8 bits of PIL's colours.
    deep: bool = False

    def distorted(self) -> Sample:
        """Distorts the view, unless it is distorted already."""
        if self.distort is None:
            return self
        pairs = zip(tensors_in(self.view), tensors_in(self.target), strict=False)
        if any(
            view.is_floating_point() and not target.is_floating_point()
            for view, target in pairs
            if view.ndim == 4
        ):
            raise ValueError(
                "DiRATransform: steps of the base transform made floats of the view's "
                "integers and left the target's, so that the scales of the two differ. "
                "Scale the volume first: DiRATransform(..., window=(low, high)), or "
                "MONAI's ScaleIntensityRange as the first step."
            )
        view = self.distort(self.view, self.draws)
        return dataclasses.replace(self, view=view, distort=None)


class Step(nn.Module):
    """One step of the base transform, for samples instead of images.

    Anything else that the step takes or returns, such as a mask, passes through
    unchanged.
    """

    def __init__(
        self,
        transform: Callable[..., Any],
        kind: str,
        stated: Stated | None = None,
    ) -> None:
        """Wraps an image transform of the given kind."""
        super().__init__()
        self.transform = transform
        self.kind = kind
        self.stated = stated or {}
        self.after_geometry = False
        self.after_distortion = False
        # Whether it moves pixels in [0, 1].
        self.clamps = False

    @staticmethod
    def is_left_whole(replaced: Any) -> bool:
        """Whether a base transform could not be taken apart, and is one such step."""
        return isinstance(replaced, Step) and replaced.kind == "unknown"

    def __getstate__(self) -> dict[str, Any]:
        """Leaves out the twin, which is made again when it is needed."""
        return {k: v for k, v in self.__dict__.items() if k != "twin"}

    @functools.cached_property
    def twin(self) -> Any:
        """The step for the target: the same draws, but no change of pixel values."""
        mixed = self.kind == "mixed"
        return geometry_of(self.transform, self.stated) if mixed else self.transform

    def forward(self, sample: Sample, *extras: Any) -> Any:
        """Transforms the sample's view and, depending on the kind, its target."""
        if self.after_distortion:
            sample = sample.distorted()
        if sample.deep and type(self.transform) in (v1.ToPILImage, v2.ToPILImage):
            return sample  # which steps take as tensors, too
        if self.kind == "normalisation":
            view = with_channels_of(self.transform, sample.view)
            sample = dataclasses.replace(sample, view=view)
        view_only = self.after_geometry or self.kind in ("photometric", "normalisation")
        same = sample.view is sample.target and self.kind != "mixed"
        shared = self.kind in THROUGH_BOTH or same
        if view_only or shared:
            (out,) = self._run(extras, sample.draws, sample.view)
            view, rest = (out, ()) if self.kind in THROUGH_BOTH else _split(out)
            target = sample.target if view_only else view
        else:
            images = sample.view, sample.target
            out, other = self._run(extras, sample.draws, *images)
            view, rest = _split(out)
            target, _ = _split(other)
        sample = dataclasses.replace(sample, view=view, target=target)
        return (sample, *rest) if rest else sample

    def _run(self, extras: tuple[Any, ...], draws: Draws, *images: Any) -> list[Any]:
        """Applies the transform to every image, with the same draws."""
        if is_albumentation(self.transform):
            arrays = [*map(as_array, images)]
            outputs = draws.apply(self.transform, *arrays, twin=self.twin)
            pairs = zip(outputs, arrays, strict=True)
            return [from_array(self._clamped(*pair)) for pair in pairs]
        if is_of_monai(self.transform):
            return self._run_monai(draws, *images)
        call = self.transform
        # Steps of the user's own get what the data set gives, as without DiRA.
        if any(map(is_of_library, type(call).__mro__)):
            images = tuple(map(_as_torchvision, images))
            own = name_of(call) if is_of_library(type(call)) else ""
            if isinstance(images[0], Tensor) and own in _FOR_TENSORS:
                call = _FOR_TENSORS[own](call)
        results: list[Any] = []
        states = states_on_cpu() if len(images) > 1 else None
        for image in images:
            if results and states is not None:
                set_states_on_cpu(states)
            step = self.twin if results and self.kind == "mixed" else call
            try:
                results.append(self._clamped(step(image, *extras), image))
            except Exception as error:
                if str(error).startswith("DiRA"):
                    raise
                raise ValueError(_failed(self.transform, image, error)) from error
        return results

    def _clamped(self, output: Any, given: Any) -> Any:
        """Returns pixels in [0, 1] if they were, as bicubic interpolation leaves it."""
        image, rest = _split(output)
        if self.clamps and not _in_range(image) and _in_range(given):
            array = isinstance(image, np.ndarray)
            image = image.clip(0, 1) if array else image.clamp(0, 1)
        return (image, *rest) if rest else image

    def _run_monai(self, draws: Draws, *images: Any) -> list[Any]:
        if len(images) > 1 and looks_into_the_volume(self.transform):
            raise ValueError(
                f"DiRATransform: {name_of(self.transform)} looks at the voxels, which "
                "differ in view and target once an intensity was changed, so that the "
                "two would be cropped differently. Put it before such steps."
            )
        seed = draws.seed()
        twins = [self.transform, *[self.twin] * (len(images) - 1)]
        # Steps of the user's own may draw from the global generators, too.
        states = states_on_cpu() if len(images) > 1 else None
        results: list[Any] = []
        try:
            for step, image in zip(twins, images, strict=True):
                if results and states is not None:
                    set_states_on_cpu(states)
                results.append(run_seeded(step, image, seed))
            return results
        except (TypeError, ValueError, RuntimeError) as error:
            if str(error).startswith("DiRA"):
                raise
            raise ValueError(_failed(self.transform, images[0], error)) from error


def with_channels_of(normalisation: Any, view: Any) -> Any:
    """Returns a grey view with as many channels as are normalised."""
    channels = len(getattr(normalisation, "mean", ()))
    grey = isinstance(view, Tensor) and view.ndim == 3 and len(view) == 1
    if not grey or channels < 2:
        return view
    in_place = getattr(normalisation, "inplace", False)
    return view.repeat(channels, 1, 1) if in_place else view.expand(channels, -1, -1)


def name_of(transform: Any) -> str:
    """Returns a step's name: that of its class, or its own if it is a function."""
    return getattr(transform, "__name__", type(transform).__name__)


def _failed(transform: Any, image: Any, error: Exception) -> str:
    if isinstance(image, Tensor) and image.ndim > 3:
        return (
            f"DiRATransform: {name_of(transform)} failed on a volume of shape "
            f"{tuple(image.shape)} and type {image.dtype}: {error}. Steps get volumes "
            "as tensors (C, D, H, W): leave out those that add or move channels."
        )
    mode = image.mode if isinstance(image, Image.Image) else None
    kind = mode or getattr(image, "dtype", "")
    return (
        f"DiRATransform: {name_of(transform)} failed on {type(image).__name__} of type "
        f"{kind}: {error}. A step gets images of more than 8 bits, of 2 or 4 channels "
        "or with a window as tensors of floats. Leave the step out for such images, or "
        "convert them to 8 bits and 1 or 3 channels first."
    )


def _in_range(image: Any) -> bool:
    """Whether all floats of an image lie in [0, 1]; True of what is not floats."""
    if isinstance(image, np.ndarray) and image.dtype.kind == "f" and image.size:
        return bool(image.min() >= 0 and image.max() <= 1)
    if isinstance(image, Tensor) and image.is_floating_point() and image.numel():
        low, high = image.aminmax()
        return bool(low >= 0 and high <= 1)
    return True


def _split(out: Any) -> tuple[Any, tuple[Any, ...]]:
    """Separates an image from what else a step returned."""
    return (out[0], tuple(out[1:])) if isinstance(out, tuple) else (out, ())


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


def _as_torchvision(image: Any) -> Any:
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


_FOR_TENSORS: dict[str, Callable[[Any], Callable[..., Any]]] = {
    # These two are of torchvision's v1, which does not convert tensors.
    "ToTensor": lambda _: to_tensor,
    "PILToTensor": lambda _: lambda image: image,
    "GaussianBlur": lambda b: _blur_for_tensors(b) if hasattr(b, "sigmas") else b,
    "RandomSolarization": _solarize_for_tensors,
    "Jigsaw": lambda jigsaw: lambda image: jigsaw(F.to_pil_image(image)),
}
