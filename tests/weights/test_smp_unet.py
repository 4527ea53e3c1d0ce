"""Encoder and head as a U-Net of segmentation_models_pytorch."""

from __future__ import annotations

import pytest
import timm
import torch
import torchvision
from backbones import BACKBONES, headless
from torch import Tensor, nn
from torch.nn import functional as F
from trained import restore, trained, u_net

from lightly_dira import DiRA, RestorationHead
from lightly_dira.features.pyramid import FeaturePyramid
from lightly_dira.weights.smp_unet import to_smp_unet


class TestSmpUnet:
    @pytest.mark.parametrize(
        "name",
        [
            "resnet18",
            "resnet34",
            "resnet50",
            "resnet101",
            "resnet152",
            "resnext50_32x4d",
        ],
    )
    def test_same_output_then_fine_tuning(self, name: str) -> None:
        backbone, head = u_net(headless(torchvision.models.get_model(name)))
        unet = to_smp_unet(backbone, head).eval()
        assert unet.name == f"u-{name}"
        images = torch.rand(2, 3, 96, 64)
        restored = restore(backbone, head, images)
        assert restored.std() > 1e-3
        torch.testing.assert_close(unet(images), restored, rtol=0, atol=1e-5)

        unet.train()
        optimizer = torch.optim.SGD(unet.parameters(), lr=0.01)
        mask = (torch.rand(2, 1, 96, 64) > 0.5).float()
        before = unet.encoder.conv1.weight.detach().clone()
        F.binary_cross_entropy(unet(images), mask).backward()
        optimizer.step()
        assert not torch.equal(unet.encoder.conv1.weight, before)

    def test_light_head_grey_images_and_logits(self) -> None:
        backbone = torchvision.models.resnet18()
        backbone.conv1 = nn.Conv2d(1, 64, 7, 2, 3, bias=False)
        head = RestorationHead(
            [64, 64, 128, 256, 512],
            decoder_channels=(64, 32, 16, 16, 8),
            out_channels=2,
            activation=None,
        )
        trained(backbone).eval(), trained(head).eval()
        unet = to_smp_unet(backbone, head).eval()
        images = torch.rand(1, 1, 64, 64)
        torch.testing.assert_close(
            unet(images), restore(backbone, head, images), rtol=0, atol=1e-4
        )

    def test_encoder_of_timm_by_name(self) -> None:
        backbone, head = u_net(timm.create_model("resnet18", num_classes=0))
        unet = to_smp_unet(backbone, head, encoder_name="tu-resnet18").eval()
        images = torch.rand(1, 3, 64, 64)
        torch.testing.assert_close(
            unet(images), restore(backbone, head, images), rtol=0, atol=1e-5
        )

    def test_no_such_encoder(self) -> None:
        backbone = torchvision.models.regnet_y_400mf()
        with pytest.raises(ValueError, match=r"no encoder with maps of.*440"):
            to_smp_unet(backbone, DiRA(backbone).head)

    @pytest.mark.parametrize(
        "name",
        ["torchvision resnet, CIFAR stem", "torchvision vit", "torchvision swin"],
    )
    def test_no_such_decoder(self, name: str) -> None:
        backbone = BACKBONES[name].make(BACKBONES[name].sizes[0])
        with pytest.raises(ValueError, match="finest has stride 2; this head"):
            to_smp_unet(backbone, DiRA(backbone).head)

    def test_other_layers(self) -> None:
        names = ["relu", "layer1.0", "layer2.0", "layer3.0", "layer4.0"]
        backbone = torchvision.models.resnet18()
        dira = DiRA(backbone, features=FeaturePyramid(backbone, layers=names))
        with pytest.raises(ValueError, match="outputs differ"):
            to_smp_unet(trained(backbone), trained(dira.head), layers=names)

    def test_maps_from_elsewhere(self) -> None:
        class Shuffled(torchvision.models.ResNet):
            def forward(self, x: Tensor) -> Tensor:
                return super().forward(x.flip(-1))

        block = torchvision.models.resnet.BasicBlock
        backbone, head = u_net(Shuffled(block, [2, 2, 2, 2]))
        with pytest.raises(ValueError, match="outputs differ"):
            to_smp_unet(backbone, head)
