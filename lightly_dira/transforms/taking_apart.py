"""Taking transforms of any supported library apart into their steps."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightly_dira.core.private_torch import with_own_children
from lightly_dira.transforms.albumentations_steps import is_albumentation, steps_of
from lightly_dira.transforms.alignment import Sample, Step, name_of
from lightly_dira.transforms.kinds import (
    THROUGH_BOTH,
    Stated,
    is_of_library,
    kind_of,
    parts_in_order,
)
from lightly_dira.transforms.monai_steps import parts_of


def take_apart(transform: Any, aligned: bool, stated: Stated) -> Any:
    """Replaces the steps of every view's transform by steps for samples.

    Args:
        transform: The transform; it is left as it is.
        aligned: Whether flips touch the target.
        stated: What the user says of the kinds of steps.

    Returns:
        A transform of samples: a single `Step` where nothing could be taken apart.
    """
    several = {cls.__name__ for cls in type(transform).__mro__} & _MULTI_VIEW
    if not several or not _is_container(transform):
        return _take_view_apart(transform, aligned, stated)
    # Views often share one transform.
    views = {id(view): view for view in transform.transforms}
    views = {
        key: _take_view_apart(view, aligned, stated) for key, view in views.items()
    }
    transform = copy.copy(transform)
    transform.transforms = [views[id(view)] for view in transform.transforms]
    mask_fn = getattr(transform, "mask_fn", None)
    if mask_fn is not None:
        transform.mask_fn = functools.partial(_call_with_view, mask_fn)
    return transform


def steps_in(replaced: Any) -> Iterator[Step]:
    """Yields the steps of what `take_apart` returned."""
    if isinstance(replaced, Step):
        yield replaced
    elif isinstance(replaced, Iterable):
        for part in replaced:
            yield from steps_in(part)
    else:
        contents = _contents(replaced)[1]
        if contents is not None:
            yield from steps_in(contents)


def _take_view_apart(transform: Any, aligned: bool, stated: Stated) -> Any:
    steps: list[Step] = []
    if isinstance(transform, tuple):  # of `ImageGridTransform`: one after the other
        replaced: Any = tuple(_replace_steps(part, steps, stated) for part in transform)
    else:
        replaced = _replace_steps(transform, steps, stated)
    if not aligned:
        for step in steps:
            if name_of(step.transform) in FLIPS:
                step.kind = "photometric"
    for step in reversed(steps):
        if step.kind in ("geometric", "mixed", *THROUGH_BOTH):
            break
        step.after_geometry = True
    for step in steps:
        converts = step.kind == "conversion" and step.after_geometry
        step.after_distortion = converts or step.kind == "normalisation"
    return replaced


def _replace_steps(transform: Any, steps: list[Step], stated: Stated) -> Any:
    parts = parts_of(transform)
    if is_albumentation(transform):
        parts = steps_of(transform)
    elif parts is None and isinstance(transform, nn.Sequential):
        parts = parts_in_order(transform)
    if parts is not None:
        return nn.Sequential(*(_replace_steps(part, steps, stated) for part in parts))
    if is_albumentation(transform):
        pass  # a choice, which stays one step
    elif isinstance(transform, nn.Sequential):
        pass  # with a `forward` of its own
    elif _is_container(transform):
        if isinstance(transform, nn.Module):
            container: Any = with_own_children(transform)
        else:
            container = copy.copy(transform)
        name, contents = _contents(transform)
        if isinstance(contents, Iterable):
            parts = [_replace_steps(part, steps, stated) for part in contents]
            several = isinstance(contents, nn.ModuleList)
            setattr(container, name, nn.ModuleList(parts) if several else parts)
        else:
            setattr(container, name, _replace_steps(contents, steps, stated))
        return container
    steps.append(Step(transform, kind_of(transform, stated), stated))
    return steps[-1]


def _is_container(transform: Any) -> bool:
    """Whether a transform only passes an image on to other transforms.

    True for containers of torchvision and Lightly, and for classes that inherit their
    call. Other classes might look into the image themselves.
    """
    if _contents(transform)[0] == "" or name_of(transform) in _LOOK_INTO_THE_IMAGE:
        return False
    call = type(transform).forward if isinstance(transform, nn.Module) else None
    call = call or type(transform).__call__
    return call.__module__.split(".")[0] in ("lightly", "torchvision")


def _contents(transform: Any) -> tuple[str, Any]:
    """Returns name and value of the attribute that holds other transforms, if any."""
    attributes = dict(getattr(transform, "__dict__", {}))
    attributes.update(attributes.get("_modules", {}))
    found = (name for name in ("transforms", "transform", "tr") if name in attributes)
    name = next(found, "")
    return name, attributes.get(name)


_MULTI_VIEW = {"MultiViewTransform", "MultiViewTransformV2", "ImageGridTransform"}
_LOOK_INTO_THE_IMAGE = {"Jigsaw"}
FLIPS = ("RandomHorizontalFlip", "HorizontalFlip")


class Normalisation(NamedTuple):
    """Mean and standard deviation of each channel, (C, 1, 1)."""

    mean: Tensor
    std: Tensor

    def fits(self, view: Tensor) -> bool:
        """Whether a view has these channels; one number is for all."""
        return len(self.mean) in (1, len(view))

    def equals(self, other: Normalisation) -> bool:
        """Whether the numbers are the same."""
        return torch.equal(self.mean, other.mean) and torch.equal(self.std, other.std)

    def undone(self, view: Tensor) -> Tensor:
        """Returns the pixels that a view was made from."""
        return view * self.std + self.mean

    def done(self, pixels: Tensor) -> Tensor:
        """Returns normalised pixels."""
        return (pixels - self.mean) / self.std


def find_normalisation(transform: Any) -> Normalisation | None:
    """Returns mean and standard deviation of a normalisation inside a transform."""
    classes = filter(is_of_library, type(transform).__mro__)
    known = any(cls.__name__ == "Normalize" for cls in classes)
    # Those of albumentations may go by each image.
    known &= getattr(transform, "normalization", "standard") == "standard"
    if known and hasattr(transform, "mean"):
        shape = (-1, 1, 1)
        mean, std = torch.as_tensor(transform.mean), torch.as_tensor(transform.std)
        return Normalisation(mean.reshape(shape), std.reshape(shape))
    several = isinstance(transform, tuple)  # of `ImageGridTransform`
    contents = transform if several else _contents(transform)[1]
    parts = contents if isinstance(contents, Iterable) else [contents]
    found = (find_normalisation(part) for part in parts if part is not None)
    return next((pair for pair in found if pair is not None), None)


def _call_with_view(function: Callable[[Any], Any], sample: Sample) -> Any:
    return function(sample.view)


def sample_in(output: Any) -> Sample | None:
    """Returns the sample in an output, which may also hold masks and grids."""
    parts = output if isinstance(output, tuple) else (output,)
    return next((part for part in parts if isinstance(part, Sample)), None)
