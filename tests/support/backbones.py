"""Backbones of every family, as small as they get, for the tests to decode."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import timm
import torchvision.models as tv
from lightly.models import ResNetGenerator
from lightly.models.modules import (
    MaskedVisionTransformerTIMM,
    MaskedVisionTransformerTorchvision,
)
from torch import nn
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.efficientnet import MBConvConfig
from torchvision.models.mobilenetv3 import InvertedResidualConfig
from torchvision.models.regnet import BlockParams
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.models.vgg import make_layers

FIVE = (2, 4, 8, 16, 32)


class Backbone(NamedTuple):
    make: Callable[[int], nn.Module]  # for images of this size
    strides: tuple[int, ...]
    channels: tuple[int, ...]
    sizes: tuple[int, int] = (64, 65)
    in_channels: int = 3


BACKBONES: dict[str, Backbone] = {}


def add(name, strides, channels, sizes=(64, 65), in_channels=3):
    def register(make):
        BACKBONES[name] = Backbone(make, strides, channels, sizes, in_channels)
        return make

    return register


def headless(model: nn.Module, count: int = 1) -> nn.Sequential:
    """As Lightly's examples cut a classifier off."""
    return nn.Sequential(*list(model.children())[:-count])


# torchvision


def resnet(block=BasicBlock, **settings) -> nn.Module:
    return tv.ResNet(block, [1, 1, 1, 1], num_classes=4, **settings)


BASIC = (64, 64, 128, 256, 512)
BOTTLENECK = (64, 256, 512, 1024, 2048)


@add("torchvision resnet", FIVE, BASIC)
def _(size):
    return resnet()


@add("torchvision resnet without classifier", FIVE, BASIC)
def _(size):
    return headless(resnet())


@add("torchvision resnet, one channel", FIVE, BASIC, in_channels=1)
def _(size):
    model = resnet()
    model.conv1 = nn.Conv2d(1, 64, 7, 2, 3, bias=False)
    return model


@add("torchvision resnet, four channels", FIVE, BASIC, in_channels=4)
def _(size):
    model = resnet()
    model.conv1 = nn.Conv2d(4, 64, 7, 2, 3, bias=False)
    return model


@add("torchvision resnet, CIFAR stem", (1, 2, 4, 8), BASIC[1:], sizes=(32, 33))
def _(size):
    model = resnet()
    model.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
    model.maxpool = nn.Identity()
    return headless(model)


@add("torchvision resnet, dilated", (2, 4, 8), (64, 256, 2048))
def _(size):
    return resnet(Bottleneck, replace_stride_with_dilation=[False, True, True])


@add("torchvision resnext", FIVE, BOTTLENECK)
def _(size):
    return resnet(Bottleneck, groups=8, width_per_group=4)


@add("lightly resnet generator", (1, 2, 4, 8), (16, 32, 64, 128), sizes=(32, 33))
def _(size):
    return headless(ResNetGenerator("resnet-9", width=0.25))


@add("torchvision densenet", FIVE, (8, 12, 10, 9, 8))
def _(size):
    return tv.DenseNet(4, (1, 1, 1, 1), num_init_features=8, num_classes=4)


@add("torchvision efficientnet", FIVE, (8, 8, 16, 16, 64))
def _(size):
    blocks = [
        MBConvConfig(expand, 3, stride, inputs, outputs, 1, 1, 1)
        for expand, stride, inputs, outputs in (
            (1, 1, 8, 8),
            (2, 2, 8, 8),
            (2, 2, 8, 16),
            (2, 2, 16, 16),
            (2, 2, 16, 16),
        )
    ]
    return tv.EfficientNet(blocks, dropout=0.0, num_classes=4)


@add("torchvision convnext", FIVE[1:], (8, 16, 24, 32))
def _(size):
    widths = (8, 16, 24, 32, None)
    return tv.ConvNeXt(
        [CNBlockConfig(widths[i], widths[i + 1], 1) for i in range(4)], num_classes=4
    )


@add("torchvision mobilenet v3", FIVE, (8, 8, 16, 16, 96))
def _(size):
    make = functools.partial(InvertedResidualConfig, width_mult=1.0)
    blocks = [
        make(8, 3, 8, 8, True, "RE", 2, 1),
        make(8, 3, 16, 16, False, "RE", 2, 1),
        make(16, 5, 32, 16, True, "HS", 2, 1),
        make(16, 5, 32, 16, True, "HS", 2, 1),
    ]
    blocks[0] = make(8, 3, 8, 8, True, "RE", 2, 1)
    return tv.MobileNetV3(blocks, last_channel=32, num_classes=4)


@add("torchvision regnet", FIVE, (32, 8, 16, 24, 32))
def _(size):
    parameters = BlockParams(
        [1] * 4, [8, 16, 24, 32], [8] * 4, [1.0] * 4, [2] * 4, 0.25
    )
    return tv.RegNet(parameters, num_classes=4)


@add("torchvision vgg with batch norm", (1, *FIVE), (8, 16, 16, 32, 32, 32))
def _(size):
    layers = make_layers([8, "M", 16, "M", 16, "M", 32, "M", 32, "M"], batch_norm=True)
    return headless(tv.VGG(layers, num_classes=4))


@add("torchvision maxvit", FIVE, (8, 8, 16, 16, 32), sizes=(64, 63))
def _(size):
    return tv.MaxVit(
        (size, size), 8, 2, [8, 16, 16, 32], [1] * 4, 8, 0.0, num_classes=4
    )


@add("torchvision swin", FIVE[1:], (8, 16, 32, 64))
def _(size):
    return tv.SwinTransformer([4, 4], 8, [1] * 4, [1, 2, 2, 2], [3, 3], num_classes=4)


@add("torchvision vit", (15,) * 4, (16,) * 4, sizes=(60, 45))
def _(size):
    return tv.VisionTransformer(size, 15, 5, 2, 16, 32, num_classes=4)


@add("torchvision vit, two blocks", (9,) * 2, (16,) * 2, sizes=(36, 27))
def _(size):
    return tv.VisionTransformer(size, 9, 2, 2, 16, 32, num_classes=4)


@add("lightly masked vit of torchvision", (15,) * 4, (16,) * 4, sizes=(60, 45))
def _(size):
    vit = tv.VisionTransformer(size, 15, 4, 2, 16, 32)
    return MaskedVisionTransformerTorchvision(vit)


# timm: whole models, without classifier and as `features_only`


def timm_pair(name, model, strides, channels, sizes=(64, 65), last=None, **settings):
    """Registers a model and and its features, which may differ in the last map."""

    @add(f"timm {name}", strides, channels, sizes)
    def _(size):
        return timm.create_model(model, num_classes=0, **settings)

    @add(
        f"timm {name}, features", strides, (*channels[:-1], last or channels[-1]), sizes
    )
    def _(size):
        return timm.create_model(model, features_only=True, **settings)


timm_pair("resnet", "resnet18", FIVE, BASIC, layers=(1, 1, 1, 1))
timm_pair(
    "resnext",
    "resnext50_32x4d",
    FIVE,
    BOTTLENECK,
    layers=(1, 1, 1, 1),
    cardinality=4,
)
timm_pair(
    "densenet",
    "densenet121",
    FIVE,
    (8, 12, 10, 9, 8),
    block_config=(1, 1, 1, 1),
    growth_rate=4,
)
timm_pair(
    "efficientnet",
    "test_efficientnet",
    FIVE,
    (16, 24, 32, 48, 256),
    last=64,
)
timm_pair("convnext", "test_convnext", FIVE[1:], (24, 32, 48, 64))
timm_pair("mobilenet v3", "mobilenetv3_small_050", FIVE, (16, 8, 16, 24, 288))
timm_pair("regnet", "regnetx_002", FIVE, (32, 24, 56, 152, 368))


@add("timm vgg with batch norm", (1, *FIVE), (8, 16, 16, 32, 32, 32))
def _(size):
    widths = [8, "M", 16, "M", 16, "M", 32, "M", 32, "M"]
    return timm.models.vgg.VGG(widths, norm_layer=nn.BatchNorm2d, mlp_ratio=0.01)


@add("timm vgg, features", (1, *FIVE), (64, 128, 256, 512, 512, 512), sizes=(32, 33))
def _(size):
    return timm.create_model("vgg11_bn", features_only=True)


def sized(name, model, strides, channels, sizes, **settings):
    """Registers a timm model that is made for one size of images."""

    @add(f"timm {name}", strides, channels, sizes)
    def _(size):
        return timm.create_model(model, img_size=size, num_classes=0, **settings)

    @add(f"timm {name}, features", strides, channels, sizes)
    def _(size):
        return timm.create_model(model, img_size=size, features_only=True, **settings)


sized(
    "maxvit",
    "maxvit_pico_rw_256",
    FIVE,
    (32, 32, 32, 64, 64),
    (64, 63),
    embed_dim=(32, 32, 64, 64),
    depths=(1, 1, 1, 1),
)
sized(
    "swin",
    "swin_tiny_patch4_window7_224",
    FIVE[1:],
    (8, 16, 32, 64),
    (64, 63),
    embed_dim=8,
    depths=(1, 1, 1, 1),
    num_heads=(1, 2, 2, 2),
    window_size=4,
)
sized(
    "vit",
    "vit_tiny_patch16_224",
    (15,) * 4,
    (16,) * 4,
    (60, 45),
    embed_dim=16,
    depth=6,
    num_heads=2,
    patch_size=15,
)
sized(
    "vit, registers, odd patches",
    "vit_small_patch14_reg4_dinov2",
    (7,) * 3,
    (16,) * 3,
    (56, 63),
    embed_dim=16,
    depth=4,
    num_heads=2,
    patch_size=7,
)
sized(
    "vit, no class token",
    "vit_tiny_patch16_224",
    (9,) * 4,
    (16,) * 4,
    (36, 45),
    embed_dim=16,
    depth=5,
    num_heads=1,
    patch_size=9,
    class_token=False,
    global_pool="avg",
    qk_norm=True,
)


@add("timm vit of any size", (16,) * 4, (16,) * 4, sizes=(64, 65))
def _(size):
    return timm.create_model(
        "vit_tiny_patch16_224",
        num_classes=0,
        embed_dim=16,
        depth=4,
        num_heads=2,
        dynamic_img_size=True,
        dynamic_img_pad=True,
    )


@add("lightly masked vit of timm", (15,) * 4, (16,) * 4, sizes=(60, 45))
def _(size):
    vit = timm.create_model(
        "vit_tiny_patch16_224",
        img_size=size,
        patch_size=15,
        embed_dim=16,
        depth=4,
        num_heads=2,
    )
    return MaskedVisionTransformerTIMM(vit)
