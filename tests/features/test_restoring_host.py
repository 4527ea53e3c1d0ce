"""What stands in for a pyramid if the host restores by itself."""

from __future__ import annotations

import pytest
import timm
import torch
from methods import tiny_backbone
from torch import nn

from lightly_dira import Adversary
from lightly_dira.features.restoring_host import RestoringHost


@pytest.mark.parametrize(
    ("make", "dims", "channels"),
    [
        (lambda: tiny_backbone(in_channels=1), 2, 1),
        (lambda: tiny_backbone(in_channels=2, spatial_dims=3), 3, 2),
        (lambda: timm.create_model("test_vit", in_chans=4), 2, 4),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(12, 12)), 2, 3),
    ],
)
def test_its_first_convolution_tells_of_its_images(make, dims, channels) -> None:
    host = RestoringHost(make())
    assert (host.spatial_dims, host.image_channels) == (dims, channels)


def test_nothing_is_hooked_and_a_compiled_one_is_seen_through() -> None:
    backbone = tiny_backbone()
    host = RestoringHost(torch.compile(backbone, backend="eager"))
    assert host.backbone is backbone
    assert not any(part._forward_hooks for part in backbone.modules())
    assert not any(part._forward_pre_hooks for part in backbone.modules())


def test_there_are_no_maps_to_ask_for() -> None:
    adversary = Adversary(nn.Conv2d(3, 3, 3, padding=1), target_channels=3)
    with pytest.raises(RuntimeError, match=r"no feature maps.*Run the host"):
        adversary.features(torch.rand(1, 3, 8, 8))
