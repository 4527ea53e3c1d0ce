"""Weights of encoders and heads of volumes."""

from __future__ import annotations

import timm_3d
import torch
from monai.networks.nets import resnet10
from torch import nn

from lightly_dira import DiRA
from lightly_dira.weights import export_encoder, from_pretrained, save_pretrained


def small(**options) -> nn.Module:
    return resnet10(n_input_channels=1, widen_factor=1 / 8, **options)


def test_export_to_monai() -> None:
    backbone, model = small(feed_forward=False), small(num_classes=3)
    for encoder in (backbone, nn.Sequential(*backbone.children())):
        weights = export_encoder(encoder, like=model)
        missing, unexpected = model.load_state_dict(weights, strict=False)
        assert (missing, unexpected) == (["fc.weight", "fc.bias"], [])
    x = torch.rand(1, 1, 16, 32, 32)
    model.fc = nn.Identity()
    assert torch.equal(backbone.eval()(x), model.eval()(x))


def test_export_to_timm_3d() -> None:
    backbone, model = (
        timm_3d.create_model("resnet18", in_chans=1, num_classes=n) for n in (0, 4)
    )
    weights = export_encoder(backbone, like=model)
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert (missing, unexpected) == (["fc.weight", "fc.bias"], [])


def test_saved_and_read(tmp_path) -> None:
    backbone = small(feed_forward=False)
    dira = DiRA(backbone)
    save_pretrained(tmp_path, backbone, dira.head)
    other = small(feed_forward=False)
    head = from_pretrained(tmp_path, other)
    assert head.spatial_dims == 3
    assert head.settings == dira.head.settings
    x = torch.rand(1, 1, 16, 32, 32)
    restored = DiRA(other, head=head).restore(x)
    assert torch.equal(restored, dira.restore(x))
