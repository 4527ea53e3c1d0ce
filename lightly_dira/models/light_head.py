"""Heads for an encoder: the published one, and lighter ones of a given cost."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lightly_dira.core.modes import evaluating
from lightly_dira.models.head_layout import by_axis, doublings
from lightly_dira.models.restoration_head import RestorationHead

# Fewest channels of a block of a light head.
_NARROWEST = 8


class Features(Protocol):
    """What a head has to know of an encoder; a `FeaturePyramid` knows it."""

    backbone: nn.Module
    layers: list[str]
    channels: list[int]
    strides: list[int | tuple[int, ...]]
    spatial_dims: int
    image_shape: tuple[int, ...]


def head_for(
    features: Features, out_channels: int, activation: str | None = "sigmoid"
) -> RestorationHead:
    """Makes the published decoder, with as many blocks as full resolution needs."""
    _, reached = doublings(by_axis(features.strides, features.spatial_dims))
    blocks = len(features.channels) - 1 + round(math.log2(max(reached)))
    head = RestorationHead(
        features.channels,
        spatial_dims=features.spatial_dims,
        decoder_channels=[min(256, 16 * 2**block) for block in reversed(range(blocks))],
        out_channels=out_channels,
        activation=activation,
        strides=features.strides,
    )
    head.layers = tuple(features.layers)
    return head


def light_head(
    features: Features, *, cost: float = 0.1, out_channels: int = 1
) -> RestorationHead:
    """Makes a decoder that costs a given part of its encoder's multiplications.

    The published decoder is as heavy as a ResNet-50. Restoration is there to train the
    encoder, and the decoder is thrown away, so a lighter one may do. All widths of the
    published decoder are halved until it is light enough, down to 8 channels.

    For images of 224 x 224 pixels; "step" is a training step of MoCo with restoration
    and no adversary over one without (two threads, `tests/benchmarks`):

    | encoder   | cost | decoder_channels     | parameters | multiplications | step |
    |-----------|------|----------------------|------------|-----------------|------|
    | ResNet-50 | -    | 256, 128, 64, 32, 16 | 9.0 M      | 4.05 G          | 1.51 |
    | ResNet-50 | 0.25 | 64, 32, 16, 8, 8     | 2.0 M      | 0.77 G          |      |
    | ResNet-50 | 0.1  | 16, 8, 8, 8, 8       | 0.5 M      | 0.31 G          | 1.16 |
    | ResNet-18 | 0.25 | 64, 32, 16, 8, 8     | 0.6 M      | 0.34 G          |      |

    With the light head of the ResNet-50 and ``restored_share=0.25`` the step is 1.06.

    Args:
        features: The `FeaturePyramid` of the encoder.
        cost: Largest part of the encoder's multiplications, above 0.
        out_channels: Channels of the restored images.

    Raises:
        ValueError: If `cost` is not above 0, or no decoder is as light.

    Examples:
        >>> import torch, torchvision
        >>> from lightly_dira import DiRA
        >>> from lightly_dira.features import FeaturePyramid
        >>> from lightly_dira.models import light_head
        >>> backbone = torchvision.models.resnet18()
        >>> features = FeaturePyramid(backbone)
        >>> head = light_head(features, cost=0.25)
        >>> dira = DiRA(backbone, head=head, features=features, restored_share=0.25)
    """
    if not cost > 0:
        raise ValueError(f"light_head: cost must be above 0, got {cost}.")
    published = head_for(features, out_channels)
    images, of_encoder, maps = _encoder_cost(features)
    widths = list(published.settings["decoder_channels"])
    while True:
        settings = published.settings | {"decoder_channels": widths}
        with torch.device("meta"):
            own = _multiplications(RestorationHead(**settings), maps, images)
        if own <= cost * of_encoder:
            head = RestorationHead(**settings)
            head.layers = published.layers
            return head
        if max(widths) <= _NARROWEST:
            raise ValueError(
                f"light_head: the lightest decoder costs {own / of_encoder:.2f} of its "
                f"encoder, more than cost={cost}. Allow more, or take fewer maps: "
                "FeaturePyramid(backbone, layers=...)."
            )
        widths = [max(_NARROWEST, width // 2) for width in widths]


def _multiplications(module: nn.Module, *inputs: object) -> int:
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad(), evaluating(module):
        module(*inputs)
    return counter.get_total_flops()


def _encoder_cost(
    features: Features,
) -> tuple[torch.Size, int, list[torch.Tensor]]:
    """Returns sides of images, the encoder's multiplications, and its maps, empty."""
    weight = next(features.backbone.parameters())
    images = weight.new_zeros(1, *features.image_shape)
    sides = images.shape[2:]
    maps = [
        torch.empty(
            1,
            channels,
            *(math.ceil(side / step) for side, step in zip(sides, stride, strict=True)),
            device="meta",
        )
        for channels, stride in zip(
            features.channels,
            by_axis(features.strides, features.spatial_dims),
            strict=True,
        )
    ]
    return sides, _multiplications(features.backbone, images), maps
