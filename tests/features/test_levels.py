"""Which outputs of a backbone become the maps of its pyramid."""

from __future__ import annotations

import pytest
import torch
import torchvision
from lightly.models import ResNetGenerator
from maps_by_hand import assert_maps, images
from methods import tiny_backbone
from torch import Tensor, nn

from lightly_dira import DiRA
from lightly_dira.features.pyramid import FeaturePyramid


class TestDiscovery:
    def test_lightly_style_sequential(self) -> None:
        resnet = torchvision.models.resnet50()
        backbone = nn.Sequential(*list(resnet.children())[:-1])
        pyramid = FeaturePyramid(backbone)
        assert pyramid.layers == ["2", "4", "5", "6", "7"]
        assert pyramid.channels == [64, 256, 512, 1024, 2048]
        assert pyramid.strides == [2, 4, 8, 16, 32]

    @pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet101"])
    def test_named_resnet(self, name: str) -> None:
        pyramid = FeaturePyramid(getattr(torchvision.models, name)())
        assert pyramid.layers == ["relu", "layer1", "layer2", "layer3", "layer4"]
        assert pyramid.strides == [2, 4, 8, 16, 32]

    @pytest.mark.parametrize("whole", [True, False])
    def test_resnet_generator(self, whole: bool) -> None:
        backbone = ResNetGenerator("resnet-18")
        if not whole:
            children = list(backbone.children())[:-1]
            backbone = nn.Sequential(*children, nn.AdaptiveAvgPool2d(1))
        pyramid = FeaturePyramid(backbone)
        assert pyramid.channels == [64, 128, 256, 512]
        assert pyramid.strides == [1, 2, 4, 8]

    def test_module_used_at_several_resolutions(self) -> None:
        class Shared(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.conv0, self.conv1 = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 8, 2, 2)
                self.relu = nn.ReLU()

            def forward(self, x: Tensor) -> Tensor:
                x = self.relu(self.conv0(x))
                return self.relu(self.conv1(x)).mean(dim=(2, 3))

        backbone = Shared()
        pyramid = FeaturePyramid(backbone)
        assert pyramid.layers == ["relu[0]", "relu[1]"]
        x = images()
        y = backbone.conv0(x).relu()
        assert_maps(pyramid(x), [y, backbone.conv1(y).relu()])

    def test_projection_defined_before_the_stem(self) -> None:
        class HeadFirst(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.project, self.net = nn.Conv2d(16, 4, 1), tiny_backbone()[:3]

            def forward(self, x: Tensor) -> Tensor:
                return self.project(self.net(x))

        assert FeaturePyramid(HeadFirst()).strides == [2, 4, 8]

    def test_cubes_are_laid_out_as_their_neighbours(self) -> None:
        swin = torchvision.models.SwinTransformer(
            [4, 4], 16, [1] * 3, [1, 2, 2], [4, 4], num_classes=4
        )
        pyramid = FeaturePyramid(swin, input_size=64)
        assert pyramid.channels == [16, 32, 64]
        x = images(size=64)
        expected = swin.features[1](swin.features[0](x))
        assert expected.shape == (3, 16, 16, 16)
        torch.testing.assert_close(pyramid(x)[0], expected.permute(0, 3, 1, 2))

    def test_attention_matrices_are_no_maps(self) -> None:
        class Attention(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.values, self.drop = nn.Linear(8, 8), nn.Dropout()

            def forward(self, x: Tensor) -> Tensor:
                weights = self.drop((x @ x.transpose(1, 2)).softmax(-1)[:, None])
                return x + (weights @ self.values(x)[:, None])[:, 0]

        class Tokens(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return x.flatten(2).transpose(1, 2)

        blocks = nn.Sequential(*[Attention() for _ in range(4)])
        backbone = nn.Sequential(nn.Conv2d(3, 8, 16, 16), Tokens(), blocks)
        pyramid = FeaturePyramid(backbone, input_size=64)
        assert pyramid.layers == ["2.0", "2.1", "2.2", "2.3"]

    def test_attention_that_is_returned_is_no_map(self) -> None:
        class Block(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.values, self.softmax = nn.Linear(8, 8), nn.Softmax(dim=-1)

            def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
                weights = self.softmax(
                    (x @ x.transpose(1, 2))[:, None].repeat(1, 2, 1, 1)
                )
                return x + weights[:, 0] @ self.values(x), weights

        class Vit(nn.Module):
            image_size = 64

            def __init__(self) -> None:
                super().__init__()
                self.patches = nn.Conv2d(3, 8, 4, 4)
                self.blocks = nn.ModuleList(Block() for _ in range(4))

            def forward(self, x: Tensor) -> dict[str, list[Tensor]]:
                x = self.patches(x).flatten(2).transpose(1, 2)
                states, attentions = [x], []
                for block in self.blocks:
                    x, weights = block(x)
                    states.append(x)
                    attentions.append(weights)
                return {"states": states, "attentions": attentions}

        pyramid = FeaturePyramid(Vit())
        assert pyramid.layers == [f"blocks.{i}[0]" for i in (0, 2, 3)]
        assert pyramid.channels == [8, 8, 8]

    @pytest.mark.parametrize(
        ("backbone", "maps"),
        [
            (nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1)), 1),
            (nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(3, 4, 1)), 0),
        ],
    )
    def test_too_few_maps(self, backbone: nn.Module, maps: int) -> None:
        with pytest.raises(ValueError, match=rf"(?s)has {maps}\..*\(2, 4, 1, 1\)|4, 1"):
            FeaturePyramid(backbone)

    @pytest.mark.parametrize(
        "backbone",
        [
            nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
            nn.Sequential(nn.Conv1d(3, 4, 3, 2), nn.Conv1d(4, 8, 3, 2)),
            nn.Sequential(nn.Conv2d(3, 4, 32), nn.AdaptiveAvgPool2d(1)),
        ],
        ids=["one map", "one dimension", "one position"],
    )
    def test_nothing_to_decode_lists_what_came_by(self, backbone) -> None:
        with pytest.raises(ValueError, match="at least two resolutions") as error:
            DiRA(backbone)
        seen = str(error.value).splitlines()[1:]
        assert len(seen) == len(backbone) + 1
        for line, (name, _) in zip(seen, backbone.named_children(), strict=False):
            assert line.strip().startswith(f"{name}: (2, ")

    def test_layers_override(self) -> None:
        resnet = torchvision.models.resnet18().eval()
        pyramid = FeaturePyramid(resnet, layers=["layer1.0", "layer3"])
        assert pyramid.layers == ["layer1.0", "layer3"]
        assert pyramid.strides == [4, 16]
        x = images(size=64)
        maps = pyramid(x)
        y = resnet.maxpool(resnet.relu(resnet.bn1(resnet.conv1(x))))
        first, last = (
            resnet.layer1[0](y),
            resnet.layer3(resnet.layer2(resnet.layer1(y))),
        )
        assert_maps(maps, [first, last])
        dira = DiRA(resnet, features=pyramid)
        assert dira.features.layers == pyramid.layers
        assert dira.restore(x).shape == (3, 1, 64, 64)

    def test_layers_by_number(self) -> None:
        backbone = tiny_backbone()
        found = FeaturePyramid(backbone).layers
        assert FeaturePyramid(backbone, layers=found[:2]).layers == found[:2]

    def test_unknown_layer(self) -> None:
        with pytest.raises(ValueError, match=r"(?s)'layer5'.*layer4: \(2, 512, 2, 3\)"):
            FeaturePyramid(torchvision.models.resnet18(), layers=["layer5", "layer4"])

    @pytest.mark.parametrize("layers", ["layer1", ["layer1"], []])
    def test_too_few_layers(self, layers) -> None:
        with pytest.raises(ValueError, match=r"at least two.*finest, \.\.\., coarsest"):
            FeaturePyramid(torchvision.models.resnet18(), layers=layers)

    def test_layers_in_the_wrong_order(self) -> None:
        with pytest.raises(ValueError, match=r"finest map to the coarsest.*\[32, 4\]"):
            FeaturePyramid(torchvision.models.resnet18(), layers=["layer4", "layer1"])
