"""Taking a transform apart: its steps, run on samples instead of images."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from lightly.transforms.multi_view_transform import MultiViewTransform
from torch import nn


@dataclass(frozen=True)
class Sample:
    """Goes through the base transform in the image's place."""

    view: Any
    target: Any
    distort: Callable[[Any], Any] | None

    def distorted(self) -> Sample:
        """Distorts the view, unless that has been done."""
        if self.distort is None:
            return self
        return replace(self, view=self.distort(self.view), distort=None)

    def split(self) -> list[Sample]:
        """Makes a sample of each view, if a step has made several views at once."""
        if not isinstance(self.view, (list, tuple)):
            return [self]
        return [Sample(view, view, self.distort) for view in self.view]


class _Step(nn.Module):
    """One step of the base transform, for samples instead of images."""

    def __init__(self, transform: Callable[[Any], Any], kind: str) -> None:
        super().__init__()
        self.transform = transform
        self.kind = kind
        self.after_geometry = False
        self.after_distortion = False

    def forward(self, sample: Sample) -> Sample:
        if self.after_distortion:
            sample = sample.distorted()
        if self.kind == "unknown":
            (view,) = self._apply(sample.view)
            return replace(sample, view=view, target=view)
        if self.after_geometry or self.kind in ("photometric", "normalisation"):
            (view,) = self._apply(sample.view)
            return replace(sample, view=view)
        if sample.view is sample.target:
            (view,) = self._apply(sample.view)
            return replace(sample, view=view, target=view)
        view, target = self._apply(sample.view, sample.target)
        return replace(sample, view=view, target=target)

    def _apply(self, *images: Any) -> list[Any]:
        """Applies the transform to every image, with the same draws."""
        if _is_albumentation(self.transform):
            return seeded(self.transform, [np.asarray(image) for image in images])
        results: list[Any] = []
        state = _random_state() if len(images) > 1 else None
        for image in images:
            if results and state is not None:
                _set_random_state(state)
            results.append(self.transform(image))
        return results


def take_apart(transform: Callable[[Any], Any], aligned: bool) -> Any:
    """Replaces the steps of every view's transform by steps for samples."""
    if not isinstance(transform, MultiViewTransform):
        return _take_view_apart(transform, aligned)
    # Views often share one transform.
    unique = {id(view): view for view in transform.transforms}
    views = {key: _take_view_apart(view, aligned) for key, view in unique.items()}
    transform = copy.copy(transform)
    transform.transforms = [views[id(view)] for view in transform.transforms]
    return transform


def _take_view_apart(transform: Callable[[Any], Any], aligned: bool) -> Any:
    steps: list[_Step] = []
    replaced = _replace_steps(transform, steps)
    if not aligned:
        for step in steps:
            if type(step.transform).__name__ in _FLIPS:
                step.kind = "photometric"
    for step in reversed(steps):
        if step.kind in ("geometric", "unknown"):
            break
        step.after_geometry = True
    for step in steps:
        converts = step.kind == "conversion" and step.after_geometry
        step.after_distortion = converts or step.kind == "normalisation"
    return replaced


def _replace_steps(transform: Any, steps: list[_Step]) -> Any:
    sequence = type(transform).__name__ in ("Compose", "Sequential")
    if _is_albumentation(transform) and sequence and transform.p == 1:
        return nn.Sequential(*(_replace_steps(t, steps) for t in transform.transforms))
    if isinstance(transform, nn.Sequential):
        return nn.Sequential(*(_replace_steps(t, steps) for t in transform))
    attributes = dict(getattr(transform, "__dict__", {}))
    attributes.update(attributes.get("_modules", {}))
    name = next((name for name in _CONTENTS if name in attributes), None)
    if name is None or _is_albumentation(transform):
        steps.append(_Step(transform, _kind(transform)))
        return steps[-1]
    container = copy.copy(transform)
    if isinstance(container, nn.Module):
        container._modules = dict(container._modules)
    contents: Any = attributes[name]
    if isinstance(contents, Iterable):
        parts = [_replace_steps(part, steps) for part in contents]
        several = isinstance(contents, nn.ModuleList)
        contents = nn.ModuleList(parts) if several else parts
    else:
        contents = _replace_steps(contents, steps)
    setattr(container, name, contents)
    return container


# Attributes in which containers keep what they are made of.
_CONTENTS = ("transforms", "transform", "tr")
_FLIPS = ("RandomHorizontalFlip", "HorizontalFlip")

# Names of classes of torchvision (v1 and v2 share them), Lightly and albumentations.
_KINDS = {
    "geometric": """
        CenterCrop ElasticTransform Pad RandomAffine RandomCrop RandomHorizontalFlip
        RandomPerspective RandomResize RandomResizedCrop RandomRotate RandomRotation
        RandomShortestSize RandomVerticalFlip RandomZoomOut Resize ScaleJitter
        DualTransform
        """,
    "photometric": """
        AmplitudeRescaleTransform ColorJitter GaussianBlur GaussianMixtureMask
        GaussianNoise Grayscale IRFFT2DTransform JPEG PhaseShiftTransform
        RandomAdjustSharpness RandomAutocontrast RandomChannelPermutation
        RandomEqualize RandomErasing RandomFrequencyMaskTransform RandomGrayscale
        RandomInvert RandomPhotometricDistort RandomPosterize RandomSolarization
        RandomSolarize RFFT2DTransform RGB
        ImageOnlyTransform
        """,
    "conversion": """
        ConvertImageDtype PILToTensor ToDtype ToImage ToPILImage ToPureTensor ToTensor
        ToTensorV2
        """,
    "normalisation": "LinearTransformation Normalize",
}
_KIND_OF = {name: kind for kind, names in _KINDS.items() for name in names.split()}


def _kind(transform: Any) -> str:
    """Says what a step does, by the names of its class and of the classes above it."""
    if _is_albumentation(transform) and hasattr(transform, "transforms"):
        kinds = {_kind(part) for part in transform.transforms}
        return kinds.pop() if len(kinds) == 1 else "unknown"
    names = (cls.__name__ for cls in type(transform).__mro__)
    return next((_KIND_OF[name] for name in names if name in _KIND_OF), "unknown")


def _is_albumentation(transform: Any) -> bool:
    return hasattr(transform, "set_random_state")


def seeded(transform: Any, images: Sequence[Any]) -> list[Any]:
    """Applies an albumentations transform with draws that PyTorch's generator seeds."""
    seed = int(torch.randint(2**62, ()))
    results = []
    for image in images:
        transform.set_random_state(np.random.default_rng(seed), random.Random(seed))
        results.append(transform(image=image)["image"])
    return results


def _random_state() -> tuple[Any, ...]:
    return torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002


def _set_random_state(state: tuple[Any, ...]) -> None:
    torch.set_rng_state(state[0])
    np.random.set_state(state[1])  # noqa: NPY002
    random.setstate(state[2])
