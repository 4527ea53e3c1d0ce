"""What steps of MONAI and torchio do, told by the modules that define them.

MONAI keeps its steps apart: `spatial` and `croppad` move voxels, `intensity` changes
them, and what draws at random is `Randomizable`. Nothing here imports MONAI.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

# Parts of the modules' names, in the order in which they are looked for.
_KINDS = {
    "monai.transforms": {
        ".spatial.": "geometric",
        ".croppad.": "geometric",
        ".intensity.": "photometric",
        ".io.": "geometric",
    },
    "torchio.transforms": {
        ".preprocessing.": "geometric",
        ".spatial.": "geometric",
        ".intensity.": "photometric",
    },
}
# Classes that their modules do not tell of, without MONAI's suffix of dictionaries.
_NAMES = {
    "geometric": """
        AddCoordinateChannels AsChannelLast EnsureChannelFirst RandSmoothDeform
        RepeatChannel SqueezeDim Transpose
        """,
    "photometric": """
        Identity RandSimulateLowResolution RandSmoothFieldAdjustContrast
        RandSmoothFieldAdjustIntensity
        """,
    "conversion": """
        CastToType EnsureType ToCupy ToDevice ToNumpy ToPIL ToTensor
        """,
    "normalisation": "NormalizeIntensity ZNormalization",
    "several images": """
        CutMix CutOut MixUp RandCropByLabelClasses RandCropByPosNegLabel
        RandSpatialCropSamples RandWeightedCrop SplitDim
        """,
}
_KIND_OF = {name: kind for kind, names in _NAMES.items() for name in names.split()}


def is_of_monai(transform: Any) -> bool:
    """Whether a step is MONAI's, or inherits from one that is."""
    return _library(transform) == "monai.transforms"


def kind_of_volume_step(transform: Any) -> str | None:
    """Says what a step of MONAI or torchio does; None for one of other libraries.

    Intensities that are changed by a fixed rule, such as `ScaleIntensityRange`, are
    changed in the target, too, like a step that moves voxels.
    """
    library = _library(transform)
    if library == "":
        return None
    for cls in type(transform).__mro__:
        if not cls.__module__.startswith(library):
            continue
        plain = cls.__name__
        for suffix in ("Dict", "D", "d"):
            if cls.__module__.endswith(".dictionary"):
                plain = plain.removesuffix(suffix)
        if plain == "NormalizeIntensity" and has_fixed_numbers(transform):
            return "geometric"  # the same for every image
        if plain in _KIND_OF:
            return _KIND_OF[plain]
        for part, kind in _KINDS[library].items():
            if part in f"{cls.__module__}.":
                fixed = kind == "photometric" and not is_random(transform)
                return "geometric" if fixed else kind
    return "unknown"


def parts_of(transform: Any) -> list[Any] | None:
    """Returns the steps of a `Compose` of MONAI or torchio that runs all in order.

    Raises:
        TypeError: If it is lazy: its steps are then not run one by one.
    """
    if _library(transform) == "" or type(transform).__name__ != "Compose":
        return None
    if getattr(transform, "lazy", False):
        raise TypeError(
            "DiRATransform: a lazy Compose of MONAI runs its steps together, so that "
            "none can be left out for the target. Make it with lazy=False."
        )
    return [*transform.transforms]


def choices_of(transform: Any) -> list[Any] | None:
    """Returns the steps among which MONAI's `OneOf`, `SomeOf` or `RandomOrder` draw."""
    if is_of_monai(transform) and hasattr(transform, "transforms"):
        return [*transform.transforms]
    return None


def keys_of(transform: Any) -> Iterator[str]:
    """Yields the keys of the dictionaries that a step of MONAI takes."""
    for part in getattr(transform, "transforms", None) or ():
        yield from keys_of(part)
    if is_of_monai(transform):
        yield from map(str, getattr(transform, "keys", ()))


def puts_channels_first(transform: Any) -> bool:
    """Whether a transform holds MONAI's `EnsureChannelFirst`, which finds the channels.

    It then has to be given volumes as they are, not (C, D, H, W) already.
    """
    parts = getattr(transform, "transforms", None) or ()
    names = {cls.__name__ for cls in type(transform).__mro__}
    own = is_of_monai(transform) and names & {
        "EnsureChannelFirst",
        "EnsureChannelFirstd",
    }
    return bool(own) or any(map(puts_channels_first, parts))


def run_seeded(transform: Any, volume: Any, seed: int) -> Any:
    """Runs a step of MONAI with all its draws from a seed.

    It gets a copy, as some steps change what they are given in place. MONAI's own that
    move voxels read them only: of theirs the output is copied, where it would be a part
    of the volume. A crop then costs what it keeps.
    """
    if hasattr(transform, "set_random_state"):
        transform.set_random_state(seed=seed)
    reads_only = _reads_only(transform)
    given = _for_each(_alias if reads_only else _copied, volume)
    # A lazy step would only note what it is to do, for a Compose that is not there.
    at_once = {"lazy": False} if getattr(transform, "lazy", False) else {}
    outputs = transform(given, **at_once)
    if isinstance(outputs, (list, tuple)):
        raise TypeError(
            f"DiRATransform: {type(transform).__name__} makes several volumes of one, "
            "and cannot be a step of a view. Give a list of transforms, one for each "
            "view."
        )
    if reads_only:
        values = given.values() if isinstance(given, Mapping) else [given]
        places = {_place_of(value) for value in values} - {None}
        outputs = _for_each(
            lambda value: _copied(value) if _place_of(value) in places else value,
            outputs,
        )
    return outputs


def with_metadata_of(volume: Any, voxels: Any) -> Any:
    """Returns voxels with the affine and the history of a MetaTensor of MONAI's."""
    if not is_of_metadata(volume) or not isinstance(voxels, Tensor):
        return voxels
    return type(volume)(
        voxels, meta=dict(volume.meta), applied_operations=[*volume.applied_operations]
    )


def is_of_metadata(volume: Any) -> bool:
    """Whether a volume is a MetaTensor, told without importing MONAI."""
    return type(volume).__name__ == "MetaTensor" and hasattr(volume, "meta")


def geometry_of_choices(transform: Any, geometry: Callable[[Any], Any]) -> Any:
    """Returns a copy of `OneOf` and the like with the same draws, which only moves."""
    from monai.transforms.transform import Randomizable, Transform

    class Nothing(Randomizable, Transform):
        """Takes a random state, as the step does that it replaces."""

        def __call__(self, data: Any, *args: Any, **kwargs: Any) -> Any:
            return data

    class FixedNothing(Transform):
        def __call__(self, data: Any, *args: Any, **kwargs: Any) -> Any:
            return data

    twin = copy.copy(transform)
    twin.transforms = [
        geometry(part)
        or (Nothing() if isinstance(part, Randomizable) else FixedNothing())
        for part in transform.transforms
    ]
    return twin


def looks_into_the_volume(transform: Any) -> bool:
    """Whether a step that moves voxels decides by their values where to."""
    # Steps of dictionaries hold the step that they apply.
    step = getattr(transform, "cropper", transform)
    return any(cls.__name__ == "CropForeground" for cls in type(step).__mro__)


def has_fixed_numbers(transform: Any) -> bool:
    """Whether a `NormalizeIntensity` has numbers for all images."""
    # Steps of dictionaries hold the step that they apply.
    step = getattr(transform, "normalizer", transform)
    return getattr(step, "subtrahend", None) is not None and (
        getattr(step, "divisor", None) is not None
    )


def _library(transform: Any) -> str:
    return next(filter(None, map(library_of, type(transform).__mro__)), "")


def library_of(cls: type) -> str:
    """Returns "monai.transforms", "torchio.transforms" or nothing."""
    return next((name for name in _KINDS if cls.__module__.startswith(name)), "")


def is_random(transform: Any) -> bool:
    """Whether a step draws at random."""
    if is_of_monai(transform):
        return hasattr(transform, "set_random_state")
    return any("Random" in cls.__name__ for cls in type(transform).__mro__)


def _reads_only(transform: Any) -> bool:
    """Whether a step is MONAI's own, of those that move voxels."""
    module = f"{type(transform).__module__}."
    moves = ".spatial." in module or ".croppad." in module
    return moves and _is_monais_alone(transform)


def _is_monais_alone(part: Any) -> bool:
    """Whether a step, and all functions and steps that it holds, are MONAI's own."""
    held = getattr(part, "__dict__", {}).values()
    functions = (x for x in held if callable(x) and not isinstance(x, type))
    module = getattr(part, "__module__", None) or ""
    return module.startswith("monai.") and all(map(_is_monais_alone, functions))


def _for_each(function: Callable[[Any], Any], volume: Any) -> Any:
    """Calls a function with a volume, or with each value of a dictionary."""
    if isinstance(volume, Mapping):
        return {key: function(value) for key, value in volume.items()}
    return function(volume)


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else copy.copy(value)


def _alias(value: Any) -> Any:
    """Returns the same voxels with metadata of their own; a copy of anything else."""
    if _place_of(value) is None:
        return _copied(value)
    alias = value[...]
    alias.__dict__.update(copy.deepcopy(value.__dict__))
    return alias


def _place_of(value: Any) -> int | None:
    """Returns where the voxels of a tensor lie."""
    if not isinstance(value, Tensor) or value.layout is not torch.strided:
        return None
    return value.untyped_storage().data_ptr()
