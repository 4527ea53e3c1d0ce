"""The steps of a base transform, run on samples instead of images."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor, nn
from torchvision import transforms as v1
from torchvision.transforms import v2

from lightly_dira.core.randomness import set_states_on_cpu, states_on_cpu
from lightly_dira.core.tensors import tensors_in
from lightly_dira.transforms.albumentations_steps import Draws, is_albumentation
from lightly_dira.transforms.kinds import (
    THROUGH_BOTH,
    Stated,
    geometry_of,
    is_of_library,
    may_change,
)
from lightly_dira.transforms.monai_steps import (
    is_of_monai,
    library_of,
    looks_into_the_volume,
    run_seeded,
)
from lightly_dira.transforms.step_images import (
    FOR_TENSORS,
    OF_BYTES,
    as_array,
    as_torchvision,
    brightest,
    copied,
    from_array,
    in_range,
    say_if_dark,
    with_channels_of,
)

# Images on which the user's steps show that copies of them draw the same.
_PROOFS = 8


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
        # Whether it moves pixels in [0, 1], and whether its numbers are those of bytes.
        self.clamps = self.of_bytes = False
        self._proofs = 0

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
        if sample.deep and self.of_bytes and brightest(sample.view):
            raise ValueError(f"DiRATransform: {name_of(self.transform)} {OF_BYTES}")
        if self.kind == "normalisation":
            view = with_channels_of(self.transform, sample.view)
            sample = dataclasses.replace(sample, view=view)
        view_only = self.after_geometry or self.kind in ("photometric", "normalisation")
        same = sample.view is sample.target and self.kind != "mixed"
        shared = self.kind in THROUGH_BOTH or same
        images: tuple[Any, ...] = (sample.view,)
        if not (view_only or shared):
            images = sample.view, sample.target
        # What a step changes in place may be a part of what the other one keeps.
        if self._may_change and (view_only or len(images) > 1):
            images = tuple(map(copied, images))
        bright = brightest(sample.view) if self._may_change else 0.0
        if view_only or shared:
            (out,) = self._run(extras, sample.draws, *images)
            view, rest = (out, ()) if self.kind in THROUGH_BOTH else _split(out)
            target = sample.target if view_only else view
        else:
            out, other = self._run(extras, sample.draws, *images)
            view, rest = _split(out)
            target, _ = _split(other)
        if self._may_change:
            say_if_dark(name_of(self.transform), bright, brightest(view))
        sample = dataclasses.replace(sample, view=view, target=target)
        return (sample, *rest) if rest else sample

    @functools.cached_property
    def _may_change(self) -> bool:
        return may_change(self.transform)

    @functools.cached_property
    def _is_own(self) -> bool:
        """Whether it is a step of the user's own."""
        known = (
            library_of(c) or is_of_library(c) for c in type(self.transform).__mro__
        )
        return not any(known)

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
            images = tuple(map(as_torchvision, images))
            if type(call) is v1.ToPILImage and isinstance(images[0], Image.Image):
                return [*images]
            own = name_of(call) if is_of_library(type(call)) else ""
            if isinstance(images[0], Tensor) and own in FOR_TENSORS:
                call = FOR_TENSORS[own](call)
        results: list[Any] = []
        states = states_on_cpu() if len(images) > 1 else None
        first = self._repeatable(call, images[0], extras) if states else call
        for image in images:
            if results and states is not None:
                set_states_on_cpu(states)
            step = call if results else first
            step = self.twin if results and self.kind == "mixed" else step
            try:
                results.append(self._clamped(step(image, *extras), image))
            except Exception as error:
                if str(error).startswith("DiRA"):
                    raise
                raise ValueError(_failed(self.transform, image, error)) from error
        return results

    def _repeatable(self, call: Any, image: Any, extras: tuple[Any, ...]) -> Any:
        """Returns a step with the same draws to come, for the first of two images.

        Steps of libraries draw from the global generators, others may have their own,
        which are copied with them. The first images prove it.
        """
        try:
            twin = copy.deepcopy(call) if self._is_own else None
        except Exception as error:
            why = f"cannot be copied: {error}"
            raise ValueError(_not_repeatable(call, why)) from error
        if twin is None:
            return call
        if self._proofs < _PROOFS:
            self._proofs += 1
            states, made = states_on_cpu(), []
            for step in map(copy.deepcopy, (call, call)):
                made.append(_split(step(copied(image), *extras))[0])
                set_states_on_cpu(states)
            once, twice = map(np.asarray, made)
            if not np.array_equal(once, twice):
                raise ValueError(_not_repeatable(call, "has draws of its own"))
        return twin

    def _clamped(self, output: Any, given: Any) -> Any:
        """Returns pixels in [0, 1] if they were, as bicubic interpolation leaves it."""
        if isinstance(output, Mapping):
            return {k: self._clamped(v, given.get(k)) for k, v in output.items()}
        image, rest = _split(output)
        if self.clamps and not in_range(image) and in_range(given):
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
                results.append(self._clamped(run_seeded(step, image, seed), image))
            return results
        except (TypeError, ValueError, RuntimeError) as error:
            if str(error).startswith("DiRA"):
                raise
            raise ValueError(_failed(self.transform, images[0], error)) from error


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


def _not_repeatable(call: Any, why: str) -> str:
    return (
        f"DiRATransform: {name_of(call)} has to move view and target alike, and {why}. "
        "Draw from the global generators of PyTorch, NumPy or Python, make it a class "
        "that can be copied, or put it before the steps that change pixels."
    )


def _split(out: Any) -> tuple[Any, tuple[Any, ...]]:
    """Separates an image from what else a step returned."""
    return (out[0], tuple(out[1:])) if isinstance(out, tuple) else (out, ())
