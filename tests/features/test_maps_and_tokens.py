"""Tensors that are read as maps: tokens, channels last, and what is no map."""

from __future__ import annotations

import pytest
import timm
import torch
import torchvision
from lightly.models.modules import MaskedVisionTransformerTIMM
from maps_by_hand import images
from torch import Tensor, nn

from lightly_dira.features.maps_and_tokens import DroppedTokensError
from lightly_dira.features.pyramid import FeaturePyramid


class TestDiscovery:
    def test_tokens_are_put_back_where_they_lie(self) -> None:
        vit = torchvision.models.VisionTransformer(64, 16, 4, 2, 8, 16)
        seen = []
        vit.encoder.layers[3].register_forward_hook(lambda *a: seen.append(a[2]))
        pyramid = FeaturePyramid(vit)
        maps = pyramid(images(size=64))
        tokens = seen[-1][:, 1:]
        for row in range(4):
            for column in range(4):
                place = maps[3][:, :, row, column]
                torch.testing.assert_close(place, tokens[:, 4 * row + column])

    def test_wide_images_of_a_transformer(self) -> None:
        vit = timm.create_model(
            "vit_tiny_patch16_224",
            dynamic_img_size=True,
            embed_dim=8,
            depth=2,
            num_heads=1,
        )
        maps = FeaturePyramid(vit)(torch.rand(2, 3, 32, 96))
        assert [tuple(m.shape) for m in maps] == [(2, 8, 2, 6)] * 2

    def test_dropped_tokens(self) -> None:
        vit = timm.create_model(
            "vit_tiny_patch16_224", embed_dim=8, depth=2, num_heads=1, img_size=64
        )
        backbone = MaskedVisionTransformerTIMM(vit)
        pyramid = FeaturePyramid(backbone)
        x = images(size=64)
        backbone(x, idx_keep=torch.arange(9).expand(3, 9))
        with pytest.raises(RuntimeError, match=r"\(3, 9, 8\).*about 4 x 4.*drops"):
            pyramid.take(x)

    @pytest.mark.parametrize(
        ("size", "kept"), [(128, 54), (128, 48), (64, 12), (64, 15)]
    )
    def test_dropped_tokens_that_fill_another_grid(self, size: int, kept: int) -> None:
        """Found: 54 of 64 tokens were taken for 9 x 6 positions, in silence."""
        vit = timm.create_model(
            "vit_tiny_patch16_224", embed_dim=8, depth=2, num_heads=1, img_size=size
        )
        backbone = MaskedVisionTransformerTIMM(vit)
        pyramid = FeaturePyramid(backbone)
        x = images(size=size)
        backbone(x, idx_keep=torch.arange(kept + 1).expand(len(x), kept + 1))
        with pytest.raises(RuntimeError, match="drops tokens"):
            pyramid.take(x)

    @pytest.mark.parametrize("registers_first", [True, False])
    @pytest.mark.parametrize("registers", [0, 1, 4, 5, 8])
    @pytest.mark.parametrize("convolution", [True, False])
    def test_registers_before_or_behind(self, registers_first, registers, convolution):
        class Vit(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.patches = nn.Conv2d(3, 8, 16, 16) if convolution else None
                self.embed = nn.Linear(8 if convolution else 768, 8)
                self.extra = nn.Parameter(torch.rand(1, registers, 8))
                self.blocks = nn.Sequential(*[nn.Linear(8, 8) for _ in range(4)])

            def forward(self, x: Tensor) -> Tensor:
                if self.patches is None:
                    x = nn.functional.unfold(x, 16, stride=16).movedim(1, 2)
                else:
                    x = self.patches(x).flatten(2).movedim(1, 2)
                self.tokens = self.embed(x)
                extra = self.extra.expand(len(x), -1, -1)
                parts = (
                    [extra, self.tokens] if registers_first else [self.tokens, extra]
                )
                return self.blocks(torch.cat(parts, dim=1))

        vit = Vit()
        pyramid = FeaturePyramid(vit)
        assert pyramid.layers == ["blocks.0", "blocks.1", "blocks.2", "blocks.3"]
        maps = pyramid(images(size=64))
        expected = vit.blocks[0](vit.tokens).movedim(1, 2).unflatten(2, (4, 4))
        torch.testing.assert_close(maps[0], expected)

    def test_overlapping_patches(self) -> None:
        class Tokens(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return x.flatten(2).transpose(1, 2)

        blocks = nn.Sequential(*[nn.Linear(8, 8) for _ in range(4)])
        backbone = nn.Sequential(nn.Conv2d(3, 8, 16, 10), Tokens(), blocks)
        pyramid = FeaturePyramid(backbone)
        for size, side in ((64, 5), (96, 9), (224, 21)):
            assert pyramid(images(size=size))[0].shape == (3, 8, side, side)

    def test_tokens_out_of_order_are_no_map(self) -> None:
        """timm's Hiera keeps tokens by windows; only what is by rows is taken."""
        settings = dict(img_size=224, embed_dim=16, num_heads=1, stages=(1, 2, 1, 1))
        hiera = timm.create_model("hiera_tiny_224", **settings).eval()
        pyramid = FeaturePyramid(hiera)
        assert pyramid.layers == ["patch_embed.proj", "blocks.4"]
        x = torch.rand(1, 3, 224, 224)
        maps = pyramid(x)
        expected = hiera.forward_intermediates(x, indices=[3], intermediates_only=True)
        torch.testing.assert_close(maps[1], expected[0])
        hiera = timm.create_model("hiera_tiny_224", features_only=True, **settings)
        assert FeaturePyramid(hiera).strides == [4, 8, 16, 32]

    def test_channels_that_look_like_a_side(self) -> None:
        swin = torchvision.models.SwinTransformer(
            [4, 4], 36, [1] * 3, [3] * 3, [3, 3], num_classes=4
        )
        assert FeaturePyramid(swin).strides == [4, 8, 16]


@pytest.mark.parametrize(
    ("size", "rate"),
    [((96, 128), 0.25), ((224, 320), 0.25), ((224, 320), 0.05), ((96, 160), 0.2)],
)
def test_what_is_left_of_dropped_tokens_is_no_other_grid(size, rate: float) -> None:
    """Found: 36 of 6 x 8 tokens were taken for 6 x 6, and decoded as the image."""
    vit = timm.create_model(
        "vit_tiny_patch16_224",
        embed_dim=24,
        num_heads=2,
        depth=4,
        dynamic_img_size=True,
        patch_drop_rate=rate,
    )
    pyramid = FeaturePyramid(vit)
    images = torch.rand(2, 3, *size)
    vit(images)
    with pytest.raises(DroppedTokensError, match="tokens cannot be restored"):
        pyramid.take(images)
    vit.eval()
    vit(images)
    grid = size[0] // 16, size[1] // 16
    assert pyramid.take(images)[-1].shape[2:] == grid
