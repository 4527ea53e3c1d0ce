"""What tests of training loops share: views, parts of them, and watched backbones."""

from __future__ import annotations

import timm
import torch
from lightly.models.modules import MaskedVisionTransformerTIMM
from torch import Tensor, nn

from lightly_dira import DiRAViews
from lightly_dira.features.pyramid import FeaturePyramid


def frozen_statistics(*modules: nn.Module) -> None:
    """The batches of one window must not depend on one another."""
    for module in modules:
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.eval()


def make_views(batch: int = 4, size: int = 32, dtype=torch.float32) -> DiRAViews:
    views = torch.rand(2, batch, 3, size, size, dtype=dtype)
    targets = torch.rand(2, batch, 1, size, size, dtype=dtype)
    return DiRAViews(views, dict(enumerate(targets)), target_view=None)


def part_of(views: DiRAViews, rows: slice) -> DiRAViews:
    targets = {i: target[rows] for i, target in enumerate(views.targets)}
    return DiRAViews([view[rows] for view in views], targets, target_view=None)


def make_vit(**options) -> nn.Module:
    vit = timm.create_model(
        "vit_tiny_patch16_224",
        **dict(embed_dim=8, depth=2, num_heads=1, img_size=32, patch_size=8) | options,
    )
    return MaskedVisionTransformerTIMM(vit)


class Watched:
    """A backbone whose own hooks tell which maps belong to which input."""

    def __init__(self, backbone: nn.Module, **options) -> None:
        self.backbone = backbone
        frozen_statistics(backbone)
        self.pyramid = FeaturePyramid(backbone, **options)

    def expected(self, images: Tensor) -> list[Tensor]:
        """The maps of these images, from a pass of their own."""
        with torch.no_grad():
            return [value.clone() for value in self.pyramid(images)]

    def check(self, views, seen: int, rows=None) -> None:
        number, maps = self.pyramid.take_first(*views)
        assert number == seen
        for found, expected in zip(maps, self.expected(views[seen]), strict=True):
            assert torch.allclose(found, expected, atol=1e-5)
