"""Layers are recognised whatever their names, and none is dropped in silence."""

from __future__ import annotations

import pytest
import timm
import torch
import torchvision
from backbones import headless
from torch import Tensor, nn
from trained import trained

from lightly_dira.weights.encoders import export_encoder
from lightly_dira.weights.names import pair_names


class TestExportEncoder:
    def test_classifier_beside_a_norm(self) -> None:
        backbone = timm.create_model("test_convnext", num_classes=0)
        classifier = timm.create_model("test_convnext", num_classes=3)
        weights = export_encoder(trained(backbone), like=classifier)
        lacking = classifier.load_state_dict(weights, strict=False)
        assert lacking.missing_keys == ["head.fc.weight", "head.fc.bias"]

    @pytest.mark.parametrize(
        ("ours", "theirs", "missing"),
        [
            (
                "resnet34",
                "resnet18",
                r"they have layer1.2.conv1.weight \(64, 64",
            ),
            (
                "resnet18",
                "resnet34",
                r"ResNet has layer1.2.conv1.weight \(64, 64",
            ),
            ("resnet18", "resnet50", r"layer1.0.conv1.weight"),
            ("resnet18", "densenet121", r"features"),
        ],
    )
    @pytest.mark.parametrize("whole", [True, False])
    def test_other_architecture(self, ours, theirs, missing, whole) -> None:
        backbone = torchvision.models.get_model(ours)
        backbone = backbone if whole else headless(backbone)
        with pytest.raises(ValueError, match="same architecture"):
            export_encoder(backbone, like=theirs)
        if whole:
            with pytest.raises(ValueError, match=missing):
                export_encoder(backbone, like=theirs)

    @pytest.mark.parametrize(
        ("ours", "theirs"),
        [
            (dict(init_values=0.1), {}),
            ({}, dict(qkv_bias=False)),
            ({}, dict(final_norm=False)),
            (dict(final_norm=False), {}),
            (dict(depth=4), dict(depth=2)),
            (dict(depth=2), dict(depth=4)),
        ],
    )
    def test_not_a_parameter_is_dropped(self, ours, theirs) -> None:
        def make(**settings):
            settings = dict(depth=2) | settings
            return timm.create_model(
                "vit_tiny_patch16_224",
                img_size=64,
                embed_dim=16,
                num_heads=2,
                num_classes=0,
                **settings,
            )

        with pytest.raises(ValueError, match="do not fit"):
            export_encoder(make(**ours), like=make(**theirs))

    def test_twin_encoders(self) -> None:
        class Twins(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.student = torchvision.models.resnet18()
                self.teacher = torchvision.models.resnet18()

            def forward(self, x: Tensor) -> Tensor:
                return self.student(x)

        with pytest.raises(ValueError, match=r"do not fit|fit .* behind"):
            export_encoder(Twins(), like="resnet18")

    def test_no_weights(self) -> None:
        """Found: the minimum of an empty list."""
        with pytest.raises(ValueError, match=r"do not fit.*conv1.weight"):
            export_encoder(nn.Identity(), like="resnet18")

    def test_other_channels(self) -> None:
        like = timm.create_model("resnet18", in_chans=1)
        with pytest.raises(ValueError, match=r"conv1.weight \(64, 1, 7, 7\).*input"):
            export_encoder(torchvision.models.resnet18(), like=like)

    def test_transformer_of_another_size(self) -> None:
        sizes = [
            torchvision.models.VisionTransformer(s, 16, 2, 2, 8, 8) for s in (64, 48)
        ]
        with pytest.raises(ValueError, match="pos_embedding"):
            export_encoder(sizes[0], like=sizes[1])


def small_vit() -> nn.Module:
    torch.manual_seed(0)
    return timm.models.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=24, depth=3, num_heads=2, num_classes=0
    )


def test_blocks_that_were_compiled_one_by_one() -> None:
    """Found: all of them counted as a classifier, and stayed random in silence."""
    wrapped = small_vit()
    for number, block in enumerate(wrapped.blocks):
        wrapped.blocks[number] = torch.compile(block, backend="eager")
    names = [*small_vit().state_dict()]
    pairs = pair_names(wrapped.state_dict(), small_vit().state_dict(), into="ViT")
    assert [*pairs] == names
    back = pair_names(small_vit().state_dict(), wrapped.state_dict(), into="ViT")
    assert [*back.values()] == names
    weights = export_encoder(trained(wrapped), like=small_vit())
    assert [*weights] == names


def test_blocks_under_other_names() -> None:
    """Found: the same of blocks in chunks, as DINOv2 names them."""
    chunked = small_vit()
    chunked.blocks = nn.Sequential(chunked.blocks[:2], chunked.blocks[2:])
    with pytest.raises(ValueError, match=r"do not fit.*blocks\.0"):
        pair_names(chunked.state_dict(), small_vit().state_dict(), into="ViT")
