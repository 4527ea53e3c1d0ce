"""Makes the parts of `DiRA` that the user does not give."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn

from lightly_dira.features.pyramid import FeaturePyramid
from lightly_dira.features.restoring_host import RestoringHost
from lightly_dira.models.patch_discriminator import PatchDiscriminator
from lightly_dira.models.restoration_head import head_for
from lightly_dira.training.randomness import same_randomness


class Parts(NamedTuple):
    """What watches the backbone, the decoder and the critic."""

    features: FeaturePyramid | RestoringHost
    head: nn.Module
    discriminator: nn.Module


def make_parts(
    backbone: nn.Module,
    *,
    head: nn.Module | None,
    discriminator: nn.Module | None,
    target_channels: int,
    input_size: int | tuple[int, ...] | None,
    layers: Sequence[str] | None,
    restores: bool,
    conditional: bool,
) -> Parts:
    """Makes parts on the backbone's device, without a change of the random state.

    The arguments are those of `DiRA`.

    Raises:
        ValueError: If the backbone has no maps, or a host gets what only a decoder of
            ours needs.
    """
    weight = next(backbone.parameters())
    features: FeaturePyramid | RestoringHost
    if restores:
        features = FeaturePyramid(backbone, input_size=input_size, layers=layers)
    elif (head, input_size, layers) == (None, None, None):
        features, head = RestoringHost(backbone), nn.Identity()
    else:
        raise ValueError(
            "DiRA: with restores=False the host restores by itself. Leave out head, "
            "input_size and layers."
        )
    with same_randomness(weight.device):
        if head is None:
            assert isinstance(features, FeaturePyramid)
            head = head_for(
                features.channels,
                features.strides,
                target_channels,
                spatial_dims=features.spatial_dims,
            )
        if discriminator is None:
            seen = features.image_channels if conditional else 0
            discriminator = PatchDiscriminator(
                target_channels + seen, spatial_dims=features.spatial_dims
            )
    # Losses and Adam's step are computed in at least 32 bits.
    precise = torch.promote_types(weight.dtype, torch.float32)
    return Parts(
        features,
        head.to(weight.device, weight.dtype),
        discriminator.to(weight.device, precise),
    )
