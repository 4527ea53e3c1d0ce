"""Heads for an encoder, at a part of its cost."""

from __future__ import annotations

import pytest
import timm
import torch
import torchvision
from methods import tiny_backbone
from torch.utils.flop_counter import FlopCounterMode

from lightly_dira import DiRA
from lightly_dira.features import FeaturePyramid
from lightly_dira.models import light_head


def flops(function) -> int:
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        function()
    return counter.get_total_flops()


@pytest.mark.parametrize("cost", [0.1, 0.25, 0.5])
@pytest.mark.parametrize(
    "make",
    [
        torchvision.models.resnet18,
        torchvision.models.resnet50,
        lambda: timm.create_model("vit_small_patch16_224"),
    ],
)
def test_the_cost_is_kept(make, cost: float) -> None:
    """Counted over a whole pass, at another size than that of the dry pass."""
    backbone = make().eval()
    features = FeaturePyramid(backbone)
    head = light_head(features, cost=cost).eval()
    size = 224 if features.image_shape[-1] == 224 else 128
    images = torch.rand(1, 3, size, size)
    encoder = flops(lambda: backbone(images))
    maps = features(images)
    own = flops(lambda: head(maps, (size, size)))
    assert own / encoder <= 1.1 * cost
    assert head(maps, (size, size)).shape == (1, 1, size, size)
    wider = [2 * width for width in head.settings["decoder_channels"]]
    if max(wider) <= 256:
        heavier = type(head)(**head.settings | {"decoder_channels": wider})
        assert flops(lambda: heavier(maps, (size, size))) > cost * encoder


def test_of_volumes() -> None:
    backbone = tiny_backbone(width=32, spatial_dims=3)
    features = FeaturePyramid(backbone)
    head = light_head(features, cost=4.0)
    dira = DiRA(backbone, head=head, features=features)
    assert dira.restore(torch.rand(1, 3, 16, 24, 16)).shape == (1, 1, 16, 24, 16)


def test_the_encoder_stays_as_it_is() -> None:
    backbone = torchvision.models.resnet18().train()
    features = FeaturePyramid(backbone)
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    light_head(features)
    assert backbone.training
    assert all(torch.equal(v, before[k]) for k, v in backbone.state_dict().items())
    assert not features.was_run


def test_errors() -> None:
    features = FeaturePyramid(torchvision.models.resnet18())
    with pytest.raises(ValueError, match=r"costs 0\.\d+ of its encoder, more than"):
        light_head(features, cost=0.001)
    with pytest.raises(ValueError, match="cost must be above 0"):
        light_head(features, cost=0)
