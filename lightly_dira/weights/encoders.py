"""The encoder's weights under the names of torchvision's and timm's models."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Mapping

import torch
import torchvision
from torch import Tensor, nn

from lightly_dira.core.modes import evaluating
from lightly_dira.features.pyramid import FeaturePyramid
from lightly_dira.weights.names import pair_names


def export_encoder(backbone: nn.Module, like: nn.Module | str) -> dict[str, Tensor]:
    """Returns the backbone's weights under the names of another library's model.

    Layers are recognised by name, after any prefix, or else by order, kind and
    shape: `nn.Sequential(*list(resnet.children())[:-1])` fits a torchvision or timm
    ResNet. Both must have the same layers, except for a classifier at the end of
    either.

    Args:
        backbone: The trained encoder.
        like: A model of torchvision or timm, or the name of one.

    Returns:
        A copy of the weights on the CPU. A check has shown that `like` outputs the
        backbone's feature maps with them. They load into `like` with ``strict=True``
        if it has no classifier; otherwise only the classifier is missing.

    Raises:
        TypeError: If `like` is neither a model nor a name.
        ValueError: If one has layers that the other lacks, the maps differ, or neither
            library knows the name.

    Examples:
        >>> import torchvision
        >>> from torch import nn
        >>> from lightly_dira.weights import export_encoder
        >>> resnet = torchvision.models.resnet18()
        >>> backbone = nn.Sequential(*list(resnet.children())[:-1])
        >>> classifier = torchvision.models.resnet18(num_classes=14)
        >>> weights = export_encoder(backbone, like=classifier)
        >>> classifier.load_state_dict(weights, strict=False).missing_keys
        ['fc.weight', 'fc.bias']
    """
    model = _named_model(like) if isinstance(like, str) else like
    if not isinstance(model, nn.Module):
        raise TypeError(
            "export_encoder: like must be a model of torchvision or timm or its name, "
            f"got {type(model).__name__}."
        )
    source, target = backbone.state_dict(), model.state_dict()
    pairs = pair_names(source, target, into=type(model).__name__)
    # The model's own state dict also holds versions, which MNASNet asks for.
    weights = model.state_dict()
    for name in [*weights]:
        if name not in pairs:
            del weights[name]
    weights.update({new: copied(source[old]) for new, old in pairs.items()})
    _check_same_maps(backbone, model, weights)
    return weights


def _named_model(name: str) -> nn.Module:
    if name in torchvision.models.list_models():
        model: nn.Module = torchvision.models.get_model(name, weights=None)
        return model
    with contextlib.suppress(ImportError):
        import timm

        if timm.is_model(name):
            return timm.create_model(name, pretrained=False)
    raise ValueError(
        f"export_encoder: neither torchvision nor timm, if installed, has a model "
        f"{name!r}. Pass the model itself."
    )


@torch.no_grad()
def _check_same_maps(
    backbone: nn.Module, model: nn.Module, weights: Mapping[str, Tensor]
) -> None:
    """Compares all maps, since layers of equal shape may still differ."""
    model = copy.deepcopy(model).to(next(backbone.parameters()))
    model.load_state_dict(weights, strict=False)
    ours, theirs = FeaturePyramid(backbone), FeaturePyramid(model)
    image = image_for(ours)
    with evaluating(backbone, model):
        maps = [*zip(ours(image), theirs(image), strict=False)]
    # In one of the two, a later layer may have rectified the last map in place.
    equal = all(close(a.relu(), b.relu()) for a, b in maps)
    if not equal or len(ours.layers) != len(theirs.layers):
        raise ValueError(
            "export_encoder: the weights fit, but the feature maps differ: layers of "
            "the same shape come in another order, or one of them computes something "
            "else."
        )


def image_for(pyramid: FeaturePyramid) -> Tensor:
    """Returns a ramp of grey values that the backbone can be run on."""
    shape = pyramid.image_shape
    ramp = torch.linspace(0, 1, math.prod(shape)).reshape(1, *shape)
    return ramp.to(next(pyramid.backbone.parameters()))


def close(ours: Tensor, theirs: Tensor) -> bool:
    """Whether two maps are the same up to rounding."""
    return ours.shape == theirs.shape and bool(
        (ours - theirs).abs().max() <= 1e-3 * ours.abs().max().clamp_min(1)
    )


def copied(value: Tensor) -> Tensor:
    """Copies a tensor to the CPU."""
    return value.detach().cpu().clone(memory_format=torch.contiguous_format)
