"""What `DiRATransform` is given: checked, and the published parts by default."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from lightly.transforms.multi_view_transform import MultiViewTransform
from torch import nn

from lightly_dira.core.user_warnings import warn
from lightly_dira.data.pixels import MOST_CHANNELS
from lightly_dira.data.white import Window
from lightly_dira.transforms.albumentations_steps import Albumentation, is_albumentation
from lightly_dira.transforms.alignment import Step, name_of
from lightly_dira.transforms.distortion import Distortion, OneOf, Sequential
from lightly_dira.transforms.fixed_scaling import (
    counts_in_bytes,
    scales_by_fixed_numbers,
)
from lightly_dira.transforms.grey_curves import NonLinearIntensity
from lightly_dira.transforms.kinds import KINDS, treats_channels_alike
from lightly_dira.transforms.paintings import InPainting, OutPainting
from lightly_dira.transforms.published_distortions import published_for
from lightly_dira.transforms.published_pipeline import PublishedPipeline
from lightly_dira.transforms.shuffling import PatchShuffling, PixelShuffling
from lightly_dira.transforms.taking_apart import FLIPS
from lightly_dira.transforms.volume_pipeline import VolumePipeline


def check_numbers(
    target_channels: int,
    target_view: int | None,
    input_size: int | tuple[int, int, int] | None,
) -> None:
    """Raises a ValueError if a number is out of range."""
    sides = (input_size,) if isinstance(input_size, int) else input_size or (1,)
    channels = 1 <= target_channels <= MOST_CHANNELS
    if not channels or (target_view or 0) < 0 or min(sides) < 1:
        raise ValueError(
            f"DiRATransform: target_channels must be 1 to {MOST_CHANNELS}, target_view "
            "at least 0 or None and input_size at least 1, got "
            f"{target_channels}, {target_view} and {input_size}."
        )


def base_transform(
    transform: Any,
    spatial_dims: int,
    size: int | tuple[int, int, int] | None,
    aligned: bool,
) -> Any:
    """Returns the base transform: a published pipeline if there is none."""
    if spatial_dims not in (2, 3):
        raise ValueError(
            "DiRATransform: spatial_dims must be 2 for images or 3 for volumes, got "
            f"{spatial_dims}."
        )
    several = isinstance(transform, (list, tuple))
    views = transform if several else [transform]
    if not views or not all(view is None or callable(view) for view in views):
        raise TypeError(
            "DiRATransform: transform must be callable, or a list of callables, got "
            f"{transform!r}."
        )
    pipelines = {2: PublishedPipeline, 3: VolumePipeline}
    if isinstance(transform, pipelines[5 - spatial_dims]):
        raise ValueError(
            "DiRATransform: PublishedPipeline makes views of images, and "
            f"VolumePipeline of volumes; spatial_dims is {spatial_dims}."
        )
    if several:
        return MultiViewTransform(transform)
    if transform is not None:
        return transform
    if spatial_dims == 3:
        size = (size,) * 3 if isinstance(size, int) else size
        return VolumePipeline() if size is None else VolumePipeline(size)
    if not isinstance(size, (int, type(None))):
        raise ValueError(
            "DiRATransform: input_size must be the side of the views, in pixels, got "
            f"{size}. Volumes: spatial_dims=3."
        )
    return PublishedPipeline(224 if size is None else size, aligned)


def distortion_of(distortion: Any, spatial_dims: int) -> Distortion | None:
    """Returns the distortion: the published one by its name, or one adapted.

    Raises:
        TypeError: If it cannot be called with an image and a generator.
    """
    if distortion == "published":
        return published_for(spatial_dims)
    if is_albumentation(distortion):
        return Albumentation(distortion)
    if distortion is None:
        return None
    try:
        if isinstance(distortion, nn.Module):
            raise TypeError  # of torchvision or kornia: it would let arrays through
        inspect.signature(distortion).bind(None, None)
    except (TypeError, ValueError):
        raise TypeError(
            "DiRATransform: distortion must be called with an array and a NumPy "
            "generator, an albumentations transform, 'published' or None, got "
            f"{distortion!r}."
        ) from None
    called: Distortion = distortion
    return called


def checked_kinds(kinds: Mapping[Any, str] | None) -> dict[Any, str]:
    """Returns what the user says of steps, or raises a ValueError."""
    stated = dict(kinds or {})
    if not set(stated.values()) <= set(KINDS):
        raise ValueError(
            f"DiRATransform: kinds must be of {', '.join(KINDS)}, got "
            f"{', '.join(map(repr, stated.values()))}."
        )
    return stated


def check_steps(
    parts: Iterable[Step], aligned: bool, window: Window | None, spatial_dims: int
) -> list[Any]:
    """Looks for steps that do not go together with the other arguments.

    Returns:
        The steps that scale values by fixed numbers.
    """
    steps = [part.transform for part in parts]
    if not (aligned or any(name_of(step) in FLIPS for step in steps)):
        raise ValueError(
            "DiRATransform: aligned=False leaves out of the target the horizontal "
            f"flips of {' and '.join(FLIPS)}, and the base transform has none. Leave "
            "it at True."
        )
    fixed = list(filter(scales_by_fixed_numbers, steps))
    if window is not None and fixed:
        raise ValueError(
            f"DiRATransform: {name_of(fixed[0])} scales values by fixed numbers, which "
            "window= has scaled to [0, 1] before. Leave one of the two out."
        )
    for part in parts:
        moves = part.kind in ("geometric", "mixed")
        # Of volumes only where it may interpolate: looking at them takes a while.
        module = f"{type(part.transform).__module__}."
        part.clamps = moves and (spatial_dims == 2 or ".spatial." in module)
        part.of_bytes = spatial_dims == 2 and counts_in_bytes(part.transform)
    return fixed


def treat_channels_alike(steps: Iterable[Step], distortion: Distortion | None) -> bool:
    """Whether nothing in a transform tells a grey image from one of three channels."""
    alike = all(treats_channels_alike(step.transform, step.kind) for step in steps)
    return alike and _is_the_same_for_all_channels(distortion)


def _is_the_same_for_all_channels(distortion: Distortion | None) -> bool:
    if isinstance(distortion, (OneOf, Sequential)):
        return all(map(_is_the_same_for_all_channels, distortion.distortions))
    black = getattr(distortion, "fill", "black") == "black"
    return distortion is None or (type(distortion) in _OWN and black)


_OWN = (InPainting, OutPainting, PatchShuffling, PixelShuffling, NonLinearIntensity)


def say_what_is_unknown(steps: Iterable[Step], *, whole: bool) -> str:
    """Warns of steps of unknown kind, and returns what to do about them.

    Args:
        steps: The steps.
        whole: Whether the only one is a base transform that is left whole.
    """
    kinds = {name_of(step.transform): step.kind for step in steps}
    unknown = [name for name, kind in kinds.items() if kind == "unknown"]
    if whole:
        warn(
            f"DiRATransform: {unknown[0]} is left whole, so that its finished views "
            "are restored, with any blur and change of colours. To restore clean "
            "images, give the steps of each view: DiRATransform([compose, compose])."
        )
        return ""
    if not unknown:
        return ""
    names = ", ".join(unknown)
    cure = (
        "Say what it does: DiRATransform(transform, "
        f'kinds={{"{unknown[-1]}": "photometric"}}), or "geometric".'
    )
    warn(
        f"DiRATransform: the effect of {names} on an image is not known, so it is "
        "applied to the target as well, with any change of colours or holes. "
        f"{cure}"
    )
    return f"Targets pass through {names}, too. {cure}"
