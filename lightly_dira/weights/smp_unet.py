"""Encoder and decoder as a U-Net of segmentation_models_pytorch."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from lightly_dira.core.extras import extra
from lightly_dira.core.modes import evaluating
from lightly_dira.features.pyramid import FeaturePyramid
from lightly_dira.models.decoded_layers import layers_for
from lightly_dira.models.restoration_head import RestorationHead
from lightly_dira.weights.encoders import close, image_for
from lightly_dira.weights.names import pair_names
from lightly_dira.weights.pretrained import check_head

OFFICIAL = {"blocks": "decoder.blocks.", "to_image": "segmentation_head.0."}


def to_smp_unet(
    backbone: nn.Module,
    head: RestorationHead,
    *,
    encoder_name: str | None = None,
    layers: Sequence[str] | None = None,
) -> nn.Module:
    """Returns an `smp.Unet` with the weights, and hence the output, of both.

    Needs ``pip install lightly-dira[smp]``. The result has been compared with backbone
    and head on an image. The encoders of smp that take their maps from the same places
    are ResNets, ResNeXts and MobileNetV2.

    Args:
        backbone: The trained encoder.
        head: The trained head, `dira.head`.
        encoder_name: Its name in smp, for example "tu-resnet50"; by default the first
            encoder that the weights fit.
        layers: Names of the layers whose maps the head decodes; by default those that
            it knows of, `head.layers`.

    Raises:
        ImportError: If segmentation_models_pytorch is not installed.
        TypeError: If the head is not a `RestorationHead`.
        ValueError: If smp has no such encoder or decoder.

    Examples:
        >>> import torchvision
        >>> from lightly_dira import DiRA
        >>> from lightly_dira.weights import to_smp_unet
        >>> backbone = torchvision.models.resnet18()
        >>> unet = to_smp_unet(backbone, DiRA(backbone).head)
        >>> unet.name
        'u-resnet18'
    """
    with extra("smp"):
        import segmentation_models_pytorch as smp
    check_head("to_smp_unet", head)
    settings = head.settings
    channels, blocks = settings["encoder_channels"], settings["decoder_channels"]
    if len(blocks) != len(channels) or any(True for _ in head.enlarge.parameters()):
        raise ValueError(
            "to_smp_unet: smp.Unet doubles the size once for each of its encoder's "
            f"maps, so that the finest has stride 2; this head has {len(channels)} "
            f"maps, strides {settings['strides']} and {len(blocks)} decoder blocks. "
            "Use backbone and head as they are: both are ordinary modules."
        )
    if layers is None:
        layers = layers_for(head, backbone)
    pyramid = FeaturePyramid(backbone, layers=layers)
    source = backbone.state_dict()
    reasons = []
    for name in [encoder_name] if encoder_name else _with_maps(smp, channels):
        make = functools.partial(
            smp.Unet,
            name,
            encoder_depth=len(channels),
            encoder_weights=None,
            decoder_channels=blocks,
            in_channels=pyramid.image_shape[0],
            classes=settings["out_channels"],
            activation=settings["activation"],
        )
        with torch.device("meta"):
            shapes = make().encoder.state_dict()
        try:
            pairs = pair_names(source, shapes, into=name)
        except ValueError as error:
            reasons.append(str(error))
            continue
        weights = {f"encoder.{new}": source[old] for new, old in pairs.items()}
        for old, value in head.state_dict().items():
            weights[official_name(old)] = value
        unet: nn.Module = make()
        unet.load_state_dict(weights)
        unet.to(next(head.parameters())).train(head.training)
        _check_equal(pyramid, head, unet)
        return unet
    raise ValueError(
        "to_smp_unet: segmentation_models_pytorch has no encoder with maps of "
        f"{channels} channels that these weights fit. Name one with "
        "`encoder_name=` or use backbone and head as they are. " + " ".join(reasons[:1])
    )


def official_name(name: str) -> str:
    """Returns the name that a tensor of the head has in a U-Net of smp."""
    part, _, rest = name.partition(".")
    return OFFICIAL[part] + rest


def _with_maps(smp: Any, channels: tuple[int, ...]) -> list[str]:
    """Lists the encoders of smp whose maps have these channels."""
    known = {n: e["params"]["out_channels"] for n, e in smp.encoders.encoders.items()}
    depth = len(channels) + 1
    return [name for name, found in known.items() if tuple(found[1:depth]) == channels]


@torch.no_grad()
def _check_equal(
    pyramid: FeaturePyramid, head: RestorationHead, unet: nn.Module
) -> None:
    image = image_for(pyramid)
    with evaluating(pyramid.backbone, head, unet):
        restored, theirs = head(pyramid(image), image.shape[2:]), unet(image)
    if not close(restored, theirs):
        raise ValueError(
            "to_smp_unet: the weights fit, but the outputs differ by up to "
            f"{(restored - theirs).abs().max().item():.2g}: the encoder of smp.Unet "
            "takes its maps from other places than the backbone. Use backbone and "
            "head as they are."
        )
