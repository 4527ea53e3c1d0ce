"""Pre-trained encoders go back into the U-Nets of nnU-Net and MONAI."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lightly_dira import DiRA, DiRAViews

SIDES = (32, 32, 32)


def pretrain(backbone: nn.Module, channels: int) -> DiRA:
    """One step of a loop around an encoder that returns a list of maps."""
    optimizer = torch.optim.SGD(backbone.parameters(), lr=0.1)
    dira = DiRA(backbone, optimizer, adversarial_start=None)
    views = DiRAViews(torch.rand(2, 2, channels, *SIDES), torch.rand(2, 1, *SIDES))
    z0, z1 = (backbone(view)[-1].mean(dim=(2, 3, 4)) for view in views)
    loss = dira((z0 - z1).square().mean(), views)
    assert dira.components.restorative > 0
    loss.backward()
    optimizer.step()
    assert dira.restore(views[0]).shape == (2, 1, *SIDES)
    return dira


def plain(classes: int) -> nn.Module:
    module = pytest.importorskip("dynamic_network_architectures.architectures.unet")
    return module.PlainConvUNet(n_conv_per_stage=[1, 1, 1], **nnunet(classes))


def residual(classes: int) -> nn.Module:
    module = pytest.importorskip("dynamic_network_architectures.architectures.unet")
    return module.ResidualEncoderUNet(n_blocks_per_stage=[1, 1, 1], **nnunet(classes))


def nnunet(classes: int) -> dict[str, object]:
    return dict(
        input_channels=1,
        n_stages=3,
        features_per_stage=[8, 16, 32],
        conv_op=nn.Conv3d,
        kernel_sizes=[3, 3, 3],
        strides=[1, 2, 2],
        num_classes=classes,
        n_conv_per_stage_decoder=[1, 1],
        conv_bias=True,
        norm_op=nn.InstanceNorm3d,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU,
    )


@pytest.mark.slow
@pytest.mark.parametrize("make", [plain, residual])
def test_nnunet(make: Callable[[int], nn.Module], tmp_path) -> None:
    """Its file is one that nnU-Net's `-pretrained_weights` takes."""
    unet = make(2)
    pretrain(unet.encoder, 1)
    torch.save({"network_weights": unet.state_dict()}, tmp_path / "pretrained.pth")
    weights = torch.load(tmp_path / "pretrained.pth")["network_weights"]
    # nnU-Net takes all weights by their names, but those of the last layers.
    other = make(5)
    own = other.state_dict()
    taken = {name: w for name, w in weights.items() if ".seg_layers." not in name}
    assert {*own} - {*taken} == {name for name in own if ".seg_layers." in name}
    assert all(own[name].shape == weight.shape for name, weight in taken.items())
    other.load_state_dict(own | taken)
    volumes = torch.rand(1, 1, *SIDES)
    for found, expected in zip(
        other.eval().encoder(volumes), unet.eval().encoder(volumes), strict=True
    ):
        assert found.equal(expected)
    assert learns(other, volumes, classes=5)


def test_monai() -> None:
    nets = pytest.importorskip("monai.networks.nets")
    unet = nets.FlexibleUNet(1, 3, "resnet10", spatial_dims=3)
    # Pre-trained by itself, or inside the U-Net.
    options = dict(n_input_channels=1, feed_forward=False, shortcut_type="B")
    encoder = nets.resnet10(spatial_dims=3, bias_downsample=False, **options)
    unet.encoder.load_state_dict(encoder.state_dict())
    before = unet.encoder.conv1.weight.detach().clone()
    pretrain(unet.encoder, 1)
    assert not unet.encoder.conv1.weight.equal(before)
    assert learns(unet, torch.rand(2, 1, *SIDES), classes=3)


def learns(unet: nn.Module, volumes: Tensor, *, classes: int) -> bool:
    """Whether a step of fine-tuning changes encoder and decoder."""
    masks = torch.randint(classes, (len(volumes), *SIDES))
    before = {name: p.detach().clone() for name, p in unet.named_parameters()}
    optimizer = torch.optim.SGD(unet.parameters(), lr=0.1)
    nn.functional.cross_entropy(unet.train()(volumes), masks).backward()
    optimizer.step()
    changed = {n for n, p in unet.named_parameters() if not p.equal(before[n])}
    return any("encoder" in n for n in changed) and any("decoder" in n for n in changed)
