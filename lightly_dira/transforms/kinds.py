"""What a step of a transform does to an image: move its pixels or change them."""

from __future__ import annotations

import copy
import types
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from lightly_dira.transforms.albumentations_steps import (
    choices_in,
    geometry_of_albumentation,
    is_albumentation,
    kind_of_lambda,
)
from lightly_dira.transforms.monai_steps import (
    choices_of,
    geometry_of_choices,
    kind_of_volume_step,
    library_of,
)

# Names of classes of torchvision (v1 and v2 share them), Lightly, albumentations and
# kornia, which count only in the modules of these libraries. The name of a class counts
# before the names of those it inherits from.
_NAMES = {
    # Moves pixels: the target is moved in the same way.
    "geometric": """
        CenterCrop ElasticTransform Pad RandomAffine RandomCrop RandomHorizontalFlip
        RandomHorizontalFlipWithLocation RandomIoUCrop RandomPerspective RandomResize
        RandomResizedCrop RandomResizedCropAndFlip RandomResizedCropWithLocation
        RandomRotate RandomRotation RandomShortestSize RandomVerticalFlip
        RandomVerticalFlipWithLocation RandomZoomOut Resize ScaleJitter
        UniformTemporalSubsample
        DualTransform Transform3D
        GeometricAugmentationBase2D GeometricAugmentationBase3D
        """,
    # Changes pixels where they are: the target stays as it was.
    "photometric": """
        AddGridTransform AmplitudeRescaleTransform AugMix ClampBoundingBoxes
        ClampKeyPoints ColorJitter ConvertBoundingBoxFormat GaussianBlur
        GaussianMixtureMask GaussianNoise Grayscale Identity IRFFT2DTransform JPEG
        PhaseShiftTransform RandomAdjustSharpness RandomAutocontrast
        RandomChannelPermutation RandomEqualize RandomErasing
        RandomFrequencyMaskTransform RandomGrayscale RandomInvert
        RandomPhotometricDistort RandomPosterize RandomSolarization RandomSolarize
        RFFT2DTransform RGB SanitizeBoundingBoxes SanitizeKeyPoints SetClampingMode
        ImageOnlyTransform
        BaseDropout CoarseDropout CoarseDropout3D ConstrainedCoarseDropout Erasing
        GridDropout MaskDropout Morphological NoOp OverlayElements PixelDropout
        XYMasking
        IntensityAugmentationBase2D IntensityAugmentationBase3D
        """,
    # Does one or the other: the target is moved, but does not change otherwise.
    "mixed": "AutoAugment RandAugment TrivialAugmentWide",
    # Comes after the distortion, so that black is black.
    "conversion": """
        ConvertImageDtype PILToTensor ToDtype ToImage ToPILImage ToPureTensor ToTensor
        ToTensor3D ToTensorV2
        """,
    "normalisation": "LinearTransformation Normalize",
    # Turns the image into something that cannot be a target.
    "stack": "Jigsaw",
    # Cannot be a step of one view.
    "several images": "CutMix FiveCrop MixAugmentationBaseV2 MixUp Mosaic TenCrop",
}
_KIND_OF = {name: kind for kind, names in _NAMES.items() for name in names.split()}
_LIBRARIES = ("torchvision", "lightly", "albumentations", "kornia")

# Both view and target go through these.
THROUGH_BOTH = ("unknown", "stack")
# What users may say of their own steps.
KINDS = ("geometric", "photometric", "conversion", "normalisation")

# Operations of torchvision's automatic augmentations that move pixels.
_MOVES = {"ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate"}

Stated = Mapping[Any, str]
"""Kinds that the user gives: by class, by name of a class, or by the step itself."""


def kind_of(transform: Any, stated: Stated) -> str:
    """Says what a step does.

    Args:
        transform: The step.
        stated: What the user says of some steps; it takes precedence.

    Returns:
        "geometric", "photometric", "mixed", "conversion", "normalisation", "stack" or
        "unknown".

    Raises:
        TypeError: If it mixes images or makes several of one.
    """
    classes = type(transform).__mro__
    hashable = [transform] if type(transform).__hash__ is not None else []
    for key in (*hashable, *classes, *(cls.__name__ for cls in classes)):
        if key in stated:
            return stated[key]
    choices = choices_of(transform)
    choices = choices_in(transform) if choices is None else choices
    choices = _choices_in(transform) if choices is None else choices
    if choices is not None:
        return _kind_of_all({kind_of(part, stated) for part in choices})
    kind = kind_of_lambda(transform) or kind_of_volume_step(transform)
    if kind is None:
        names = (cls.__name__ for cls in classes if is_of_library(cls))
        kind = next((_KIND_OF[name] for name in names if name in _KIND_OF), "unknown")
        # A `forward` of the user's own may call anything.
        forward = getattr(type(transform), "forward", None)
        if kind == "mixed" and not forward.__module__.startswith(_LIBRARIES):
            kind = "unknown"
        if kind == "mixed" and type(transform).__module__.startswith("kornia."):
            kind = "unknown"  # a policy, whose moves cannot be had alone
    if kind == "several images":
        raise TypeError(
            f"DiRATransform: {type(transform).__name__} mixes images or makes several "
            "of one, and cannot be a step of a view. Give a list of transforms, one "
            "for each view, and mix images of a batch in the training loop."
        )
    return kind


def parts_in_order(transform: Any) -> list[Any] | None:
    """Returns the parts of a container that runs them all, one after the other.

    None for all else: a class with a `forward` of its own may do anything.
    """
    if _is(transform, "torchvision", "Compose"):
        return list(transform.transforms)
    if _is(transform, "kornia", *_OF_KORNIA):
        return None if transform.random_apply else list(transform)
    plain = getattr(type(transform), "forward", None) is nn.Sequential.forward
    return list(transform) if plain else None


def _choices_in(transform: Any) -> list[Any] | None:
    """Returns the parts of a container that draws from them."""
    if _is(transform, "torchvision", "RandomApply", "RandomChoice", "RandomOrder"):
        return list(transform.transforms)
    drawn = _is(transform, "kornia", *_OF_KORNIA) and transform.random_apply
    return list(transform) if drawn else None


def _is(transform: Any, library: str, *names: str) -> bool:
    """Whether a step is of a class of a library that has one of these names."""
    own = type(transform)
    return own.__name__ in names and own.__module__.startswith(f"{library}.")


_OF_KORNIA = ("AugmentationSequential", "ImageSequential")


def treats_channels_alike(transform: Any, kind: str) -> bool:
    """Whether a grey image of one channel becomes what one of three would.

    It is said of exact classes of torchvision and Lightly only.

    Args:
        transform: A step.
        kind: Its kind.
    """
    own = type(transform)
    if own.__module__.partition(".")[0] not in ("torchvision", "lightly"):
        return False
    if not isinstance(getattr(transform, "fill", None), (int, float, type(None))):
        return False  # a colour
    if getattr(transform, "mode", None) is not None or kind_of(transform, {}) != kind:
        return False  # a mode of colour, or what the user says
    alike = ("geometric", "conversion", "normalisation")
    return kind in alike or own.__name__ in _ALIKE


_ALIKE = (
    "ColorJitter",
    "GaussianBlur",
    "Identity",
    "RandomAdjustSharpness",
    "RandomAutocontrast",
    "RandomEqualize",
    "RandomGrayscale",
    "RandomInvert",
    "RandomPosterize",
    "RandomSolarization",
    "RandomSolarize",
)


def may_change(step: Any) -> bool:
    """Whether a step may change in place what it is given."""
    kind = type(step)
    own = kind.__module__.startswith("lightly_dira.") or library_of(kind)
    known = own or (is_of_library(kind) and kind.__name__ != "Lambda")
    parts = [*getattr(step, "transforms", ())]
    parts += step.children() if isinstance(step, nn.Sequential) else []
    return (
        not known
        or bool(getattr(step, "inplace", False))
        or any(map(may_change, parts))
    )


def is_of_library(cls: type) -> bool:
    """Whether a class comes from a library whose names are known.

    A class of the user's that has such a name is not that step.
    """
    return cls.__module__.partition(".")[0] in _LIBRARIES


def geometry_of(transform: Any, stated: Stated) -> Any:
    """Returns a copy of a mixed step that has the same draws but only moves pixels."""
    if choices_of(transform) is not None:
        return geometry_of_choices(
            transform, lambda part: _geometry_or_none(part, stated)
        )
    if is_albumentation(transform):
        return geometry_of_albumentation(
            transform, lambda step: kind_of(step, stated) == "geometric"
        )
    if isinstance(transform, nn.Module) and hasattr(
        transform, "_apply_image_or_video_transform"
    ):
        return _of_class(transform, _apply_image_or_video_transform=_only_move)
    return types.MethodType(_with_moves_only(type(transform).forward), transform)


def _geometry_or_none(transform: Any, stated: Stated) -> Any:
    kind = kind_of(transform, stated)
    if kind == "mixed":
        return geometry_of(transform, stated)
    return transform if kind == "geometric" else None


def _kind_of_all(kinds: set[str]) -> str:
    """Returns the kind of a step that contains steps of these kinds."""
    if len(kinds) == 1:
        return kinds.pop()
    if not kinds or "unknown" in kinds:
        return "unknown"
    return "mixed" if kinds & {"geometric", "mixed"} else "photometric"


def _of_class(transform: Any, **methods: Callable[..., Any]) -> Any:
    """Returns a copy whose class has these methods."""
    twin = copy.copy(transform)
    cls = type(transform)
    twin.__class__ = type(cls.__name__, (cls,), {**methods, "inherits": cls})
    return twin


def _only_move(self: Any, image: Any, operation: str, *args: Any, **kwargs: Any) -> Any:
    if operation not in _MOVES:
        return image
    method = self.inherits._apply_image_or_video_transform
    return method(self, image, operation, *args, **kwargs)


def _with_moves_only(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Returns torchvision's v1 `forward` with an `_apply_op` that only moves pixels."""
    names = forward.__globals__
    apply = names["_apply_op"]

    def only_move(image: Any, operation: str, *args: Any, **kwargs: Any) -> Any:
        moves = operation in _MOVES
        return apply(image, operation, *args, **kwargs) if moves else image

    return types.FunctionType(
        forward.__code__, {**names, "_apply_op": only_move}, forward.__name__
    )
