"""Networks of volumes, with the maps that must be found in them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import timm_3d
import torchvision
from monai.networks import nets
from torch import Tensor, nn

Stride = int | tuple[int, ...]


class Volumes(NamedTuple):
    """A backbone, the channels and strides of its maps, and sizes that it accepts."""

    make: Callable[[], nn.Module]
    channels: list[int]
    strides: list[Stride]
    sizes: tuple[tuple[int, int, int], ...] = ((32, 48, 64), (33, 47, 51), (16, 64, 32))
    input_size: tuple[int, int, int] | None = None


class BasicUNetEncoder(nn.Module):
    """The way down of MONAI's `BasicUNet`."""

    def __init__(self) -> None:
        super().__init__()
        unet = nets.BasicUNet(3, 1, 2, features=(8, 8, 16, 32, 64, 8))
        self.first = unet.conv_0
        self.down = nn.Sequential(unet.down_1, unet.down_2, unet.down_3, unet.down_4)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.first(x))


EVEN = ((32, 48, 64), (16, 64, 32))
WIDE = ((64, 32, 64),)

VOLUME_BACKBONES = {
    "monai resnet10": Volumes(
        lambda: nets.resnet10(n_input_channels=1, num_classes=2, widen_factor=0.25),
        [16, 16, 32, 64, 128],
        [1, 2, 4, 8, 16],
    ),
    "monai resnet50": Volumes(
        lambda: nets.resnet50(
            n_input_channels=1, feed_forward=False, widen_factor=0.125
        ),
        [8, 32, 64, 128, 256],
        [1, 2, 4, 8, 16],
    ),
    "monai seresnet50": Volumes(
        lambda: nets.SEResNet50(spatial_dims=3, in_channels=1, num_classes=2),
        [64, 256, 512, 1024, 2048],
        [2, 4, 8, 16, 32],
        ((32, 48, 33),),
    ),
    "monai densenet": Volumes(
        lambda: nets.DenseNet(3, 1, 2, 8, 4, block_config=(2, 2, 2, 2)),
        [8, 16, 16, 16, 16],
        [2, 4, 8, 16, 32],
        ((32, 48, 64), (33, 47, 51)),
    ),
    "monai segresnet": Volumes(
        lambda: nets.SegResNet(3, 8, 1, 2), [2, 16, 32, 64], [1, 2, 4, 8], EVEN
    ),
    "monai segresnet encoder": Volumes(
        lambda: nets.segresnet_ds.SegResEncoder(3, 8, 1),
        [8, 16, 32, 64],
        [1, 2, 4, 8],
    ),
    "monai swin transformer": Volumes(
        lambda: nets.swin_unetr.SwinTransformer(
            1, 12, (3, 3, 3), (2, 2, 2), (2, 2, 2, 2), (3, 6, 12, 24)
        ),
        [12, 24, 48, 96, 192],
        [2, 4, 8, 16, 32],
        ((32, 64, 32), (64, 32, 96)),
    ),
    "monai vit": Volumes(
        lambda: nets.ViT(
            1, (64, 64, 64), (16, 16, 16), 48, 96, num_layers=4, num_heads=4
        ),
        [48] * 4,
        [16] * 4,
        ((64, 64, 64),),
    ),
    "monai vit, flat patches, class token": Volumes(
        lambda: nets.ViT(
            1,
            (32, 64, 64),
            (8, 16, 16),
            48,
            96,
            num_layers=4,
            num_heads=4,
            classification=True,
        ),
        [48] * 4,
        [(8, 16, 16)] * 4,
        ((32, 64, 64),),
        (32, 64, 64),
    ),
    "monai unet": Volumes(
        lambda: nets.UNet(3, 1, 2, (8, 16, 32, 64), (2, 2, 2), num_res_units=1),
        [2, 16, 32, 96],
        [1, 2, 4, 8],
        EVEN,
    ),
    "monai basic unet encoder": Volumes(
        BasicUNetEncoder, [8, 8, 16, 32, 64], [1, 2, 4, 8, 16]
    ),
    "monai mednext": Volumes(
        lambda: nets.MedNeXt(3, 8, 1, 2),
        [2, 16, 32, 64, 128],
        [1, 2, 4, 8, 16],
        EVEN,
    ),
    "monai dynunet": Volumes(
        lambda: nets.DynUNet(
            3,
            1,
            2,
            [3] * 4,
            [1, [1, 2, 2], [2, 2, 2], [2, 2, 2]],
            [[1, 2, 2], 2, 2],
            filters=[8, 16, 32, 64],
        ),
        [2, 16, 32, 64],
        [1, (1, 2, 2), (2, 4, 4), (4, 8, 8)],
        EVEN,
    ),
    "timm_3d resnet18": Volumes(
        lambda: timm_3d.create_model("resnet18", in_chans=1, num_classes=0),
        [64, 64, 128, 256, 512],
        [2, 4, 8, 16, 32],
        ((32, 48, 33),),
    ),
    "timm_3d convnext": Volumes(
        lambda: timm_3d.create_model("convnext_atto", in_chans=1, num_classes=0),
        [40, 80, 160, 320],
        [4, 8, 16, 32],
        ((32, 64, 48), (47, 33, 65)),
    ),
    "torchvision r3d_18": Volumes(
        torchvision.models.video.r3d_18,
        [64, 128, 256, 512],
        [(1, 2, 2), (2, 4, 4), (4, 8, 8), (8, 16, 16)],
        ((16, 48, 32), (9, 33, 47)),
    ),
    "torchvision mc3_18": Volumes(
        torchvision.models.video.mc3_18,
        [64, 128, 256, 512],
        [(1, 2, 2), (1, 4, 4), (1, 8, 8), (1, 16, 16)],
        ((12, 48, 32),),
    ),
}
