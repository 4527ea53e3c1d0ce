"""Steps that change values alike in every image, of MONAI and torchio most of all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from lightly_dira.transforms.kinds import is_of_library
from lightly_dira.transforms.monai_steps import (
    has_fixed_numbers,
    is_random,
    library_of,
)


def scales_by_fixed_numbers(transform: Any) -> bool:
    """Whether a step scales values with units by fixed numbers."""
    names = _names_of(transform)
    if "RescaleIntensity" in names:
        return getattr(transform, "in_min_max", None) is not None
    fixed = "NormalizeIntensity" in names and has_fixed_numbers(transform)
    return fixed or "ScaleIntensityRange" in names


def changes_values_by_rule(transform: Any) -> bool:
    """Whether a step changes the values of every image, by numbers or by its own."""
    own = any(
        ".intensity." in f"{cls.__module__}."
        for cls in type(transform).__mro__
        if library_of(cls)
    )
    always = type(transform).__name__ in _CURVES and getattr(transform, "p", 0) >= 1
    return always or (own and not is_random(transform))


def makes_grey(transform: Any) -> bool:
    """Whether a step takes the colours of every image."""
    return type(transform).__name__ in _GREY and getattr(transform, "p", 1) >= 1


# Steps of torchvision and albumentations that draw nothing but whether they act.
_CURVES = {"RandomAutocontrast", "RandomEqualize", "RandomInvert", "RandomPosterize"}
_CURVES |= {"RandomSolarize", "CLAHE", "Equalize", "InvertImg", "Posterize", "Solarize"}
_GREY = {"Grayscale", "RandomGrayscale", "ToGray"}


def counts_in_bytes(transform: Any) -> bool:
    """Whether means or colours of a step of a library are numbers up to 255."""
    if not any(map(is_of_library, type(transform).__mro__)):
        return False
    normalises = "Normalize" in type(transform).__name__
    # Steps of kornia keep them in a dictionary.
    known = {**vars(transform), **getattr(transform, "flags", {})}
    numbers = [known.get(name) for name in _COLOURS[normalises]]
    return any(number > 1 for number in _numbers_in(numbers))


# Attributes of steps that fill with a colour, and of those that normalise.
_COLOURS = (("fill", "fill_value", "value"), ("mean",))


def _numbers_in(value: Any) -> Iterator[float]:
    if isinstance(value, (np.ndarray, torch.Tensor)):
        value = value.tolist()
    if isinstance(value, (int, float)):
        yield value
    elif isinstance(value, (list, tuple, Mapping)):
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from _numbers_in(each)


def window_of(transform: Any) -> tuple[float, float] | None:
    """Returns the values that a step turns into 0 and 1, if it does that to any."""
    names = _names_of(transform)
    # Steps of dictionaries hold the step that they apply.
    step = getattr(transform, "scaler", transform)
    if "ScaleIntensityRange" in names and (step.b_min, step.b_max) == (0, 1):
        return float(step.a_min), float(step.a_max)
    if "RescaleIntensity" in names and (step.out_min, step.out_max) == (0, 1):
        window: tuple[float, float] | None = getattr(step, "in_min_max", None)
        return window
    return None


def _names_of(transform: Any) -> set[str]:
    """Returns the classes of MONAI or torchio of a step, those of arrays."""
    return {
        cls.__name__.rstrip("dD") for cls in type(transform).__mro__ if library_of(cls)
    }
