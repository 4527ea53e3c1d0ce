"""Backbones of volumes: their maps are found, and decode at sizes of every kind."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from volume_backbones import VOLUME_BACKBONES, Volumes

from lightly_dira import DiRA, DiRAViews
from lightly_dira.features import FeaturePyramid

pytestmark = pytest.mark.slow

ALL = pytest.mark.parametrize(
    "known", [pytest.param(b, id=name) for name, b in VOLUME_BACKBONES.items()]
)


@ALL
def test_found_and_decoded(known: Volumes) -> None:
    torch.manual_seed(0)
    backbone = known.make()
    pyramid = FeaturePyramid(backbone, input_size=known.input_size)
    assert pyramid.channels == known.channels
    assert pyramid.strides == known.strides
    assert pyramid.spatial_dims == 3
    optimizer = torch.optim.SGD(backbone.parameters(), lr=0.0)
    dira = DiRA(backbone, optimizer, features=pyramid)
    assert dira.head.spatial_dims == dira.discriminator.spatial_dims == 3
    for size in known.sizes:
        views = torch.rand(2, 2, dira.features.image_shape[0], *size)
        out = backbone(views[0])
        while isinstance(out, (list, tuple)):
            out = out[0]
        batch = DiRAViews([*views], target=torch.rand(2, 1, *size))
        dira(out.float().mean(), batch).backward()
        assert 0 < dira.components.restorative < 1
        assert all(p.grad is not None for p in dira.head.parameters())
        optimizer.step()
        optimizer.zero_grad()
    restored = dira.restore(views[0])
    assert restored.shape == (2, 1, *size)


def test_patches_of_unknown_shape_are_not_guessed() -> None:
    """With 4 x 4 x 4 tokens of 8 x 16 x 16 voxels, other grids have as many."""

    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8 * 16 * 16, 24)
            self.blocks = nn.Sequential(*(nn.Linear(24, 24) for _ in range(4)))

        def forward(self, x):
            patches = x.unfold(2, 8, 8).unfold(3, 16, 16).unfold(4, 16, 16)
            return self.blocks(self.linear(patches.flatten(5).flatten(2, 4)[:, 0]))

    with pytest.raises(ValueError, match="at least two resolutions"):
        FeaturePyramid(Tokens(), input_size=(32, 64, 64))
