from __future__ import annotations

import copy
import gc
import weakref

import pytest
import timm
import torch
import torchvision
from lightly.models import ResNetGenerator
from lightly.models.modules import MaskedVisionTransformerTIMM
from methods import tiny_backbone
from torch import Tensor, nn

from lightly_dira import DiRA, DiRAViews
from lightly_dira.features.pyramid import FeaturePyramid

X = torch.Generator().manual_seed(0)


def images(batch: int = 3, channels: int = 3, size: int = 32) -> Tensor:
    return torch.rand(batch, channels, size, size, generator=X)


def expected_maps(backbone: nn.Sequential, x: Tensor) -> list[Tensor]:
    maps = []
    for stage in backbone[:3]:
        x = stage(x)
        maps.append(x)
    return maps


def assert_maps(actual: list[Tensor], expected: list[Tensor]) -> None:
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b)


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

    def test_equals_the_maps_computed_by_hand(self) -> None:
        resnet = torchvision.models.resnet18().eval()
        x = images(size=64)
        maps = FeaturePyramid(resnet)(x)
        y = resnet.relu(resnet.bn1(resnet.conv1(x)))
        expected = [y]
        y = resnet.maxpool(y)
        for stage in (resnet.layer1, resnet.layer2, resnet.layer3, resnet.layer4):
            y = stage(y)
            expected.append(y)
        assert_maps(maps, expected)

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

    def test_grey_input(self) -> None:
        assert FeaturePyramid(tiny_backbone(in_channels=1)).channels == [4, 8, 16]

    def test_repr_is_a_table(self) -> None:
        lines = repr(FeaturePyramid(torchvision.models.resnet18())).splitlines()
        assert lines[1].split() == ["level", "module", "channels", "stride"]
        assert lines[6].split() == ["4", "layer4", "512", "32"]

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

    def test_no_images(self) -> None:
        with pytest.raises(ValueError, match=r"could not be run.*input_size"):
            FeaturePyramid(nn.Sequential(nn.Flatten(), nn.Linear(12, 3)))

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

    def test_failing_backbone_lists_what_came_by(self) -> None:
        backbone = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Linear(5, 5))
        with pytest.raises(
            ValueError, match=r"(?s)input_size.*\n  0: \(2, 4, 64, 96\)"
        ):
            FeaturePyramid(backbone)

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

    def test_image_that_a_module_normalises_is_no_map(self) -> None:
        normalise = torchvision.transforms.Normalize([0.5] * 3, [0.5] * 3)
        pyramid = FeaturePyramid(
            nn.Sequential(nn.Dropout(), normalise, tiny_backbone())
        )
        assert pyramid.strides == [2, 4, 8]

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

    def test_channels_that_look_like_a_side(self) -> None:
        swin = torchvision.models.SwinTransformer(
            [4, 4], 36, [1] * 3, [3] * 3, [3, 3], num_classes=4
        )
        assert FeaturePyramid(swin).strides == [4, 8, 16]

    def test_grey_images_repeated_inside(self) -> None:
        class Repeated(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.net = tiny_backbone()

            def forward(self, *, mask: Tensor | None = None, image: Tensor) -> Tensor:
                return self.net(image.repeat(1, 3, 1, 1))

        class Positional(Repeated):
            def forward(self, image: Tensor) -> Tensor:
                return super().forward(image=image)

        assert FeaturePyramid(Positional()).image_shape[0] == 1

    def test_projection_defined_before_the_stem(self) -> None:
        class HeadFirst(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.project, self.net = nn.Conv2d(16, 4, 1), tiny_backbone()[:3]

            def forward(self, x: Tensor) -> Tensor:
                return self.project(self.net(x))

        assert FeaturePyramid(HeadFirst()).strides == [2, 4, 8]

    def test_wide_input_size(self) -> None:
        backbone = nn.Sequential(
            *tiny_backbone()[:3], nn.Flatten(), nn.Linear(16 * 4 * 6, 4)
        )
        assert FeaturePyramid(backbone, input_size=(32, 48)).strides == [2, 4, 8]

    @pytest.mark.parametrize("layers", ["layer1", ["layer1"], []])
    def test_too_few_layers(self, layers) -> None:
        with pytest.raises(ValueError, match=r"at least two.*finest, \.\.\., coarsest"):
            FeaturePyramid(torchvision.models.resnet18(), layers=layers)

    def test_layers_in_the_wrong_order(self) -> None:
        with pytest.raises(ValueError, match=r"finest map to the coarsest.*\[32, 4\]"):
            FeaturePyramid(torchvision.models.resnet18(), layers=["layer4", "layer1"])

    def test_buffers_and_merged_weights_stay(self) -> None:
        class Merging(nn.Conv2d):
            def train(self, mode: bool = True) -> nn.Module:
                self.weight.data += 1
                return super().train(mode)

        class Counting(nn.BatchNorm2d):
            def forward(self, x: Tensor) -> Tensor:
                self.num_batches_tracked += 1
                return super().forward(x)

        resnet = torchvision.models.resnet18()
        resnet.conv1, resnet.bn1 = Merging(3, 64, 7, 2, 3), Counting(64)
        torch.nn.utils.parametrizations.spectral_norm(resnet.layer1[0].conv1)
        before = copy.deepcopy(resnet.state_dict())
        dira = DiRA(resnet)
        dira.restore(images(size=64))
        after = resnet.state_dict()
        after["bn1.num_batches_tracked"] -= 1  # of restoring
        assert all(torch.equal(after[name], before[name]) for name in before)

    def test_another_map_in_training(self) -> None:
        class Stage(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.conv0, self.conv1 = (
                    nn.Conv2d(3, 8, 3, 2, 1),
                    nn.Conv2d(8, 8, 3, 2, 1),
                )
                self.skip = False

            def forward(self, x: Tensor) -> list[Tensor]:
                maps = [x := self.conv0(x), x if self.skip else self.conv1(x)]
                return (
                    [maps[1].mean((2, 3), keepdim=True), *maps]
                    if self.training
                    else maps
                )

        backbone = nn.Sequential(Stage())
        pyramid, x = FeaturePyramid(backbone), images()
        backbone(x)
        with pytest.raises(RuntimeError, match=r"output \(3, 8, 1, 1\).*evaluation"):
            pyramid.take(x)
        pyramid = FeaturePyramid(backbone, layers=["0.conv0", "0.conv1"])
        backbone[0].skip = True
        backbone(x)
        with pytest.raises(RuntimeError, match=r"0.conv1 output nothing"):
            pyramid.take(x)

    def test_compiled_before_wrapping(self) -> None:
        backbone = tiny_backbone()
        compiled = torch.compile(backbone, backend="eager")
        compiled(images())
        pyramid, x = FeaturePyramid(compiled), images()
        compiled(x)
        if torch.__version__ < "2.6":  # which compiles again when a hook is added
            assert len(pyramid.take(x)) == len(pyramid.channels)
            return
        with pytest.raises(RuntimeError, match=r"first (compiled )?pass"):
            pyramid.take(x)

    def test_one_input_size_only(self) -> None:
        backbone = nn.Sequential(
            *tiny_backbone()[:3], nn.Flatten(), nn.Linear(16 * 6 * 6, 4)
        )
        with pytest.raises(ValueError, match="input_size"):
            FeaturePyramid(backbone)
        assert FeaturePyramid(backbone, input_size=48).strides == [2, 4, 8]


class TestTheRightPass:
    """The maps handed out are those of the view with the target, by value."""

    @pytest.fixture(params=[0, 1])
    def target_view(self, request: pytest.FixtureRequest) -> int:
        return request.param

    @pytest.fixture
    def setting(self):
        backbone = tiny_backbone()
        for module in backbone.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()  # so that a pass by hand gives the same maps
        return backbone, FeaturePyramid(backbone)

    def check(self, setting, loop, target_view: int, batches=(3, 3, 2)) -> None:
        backbone, pyramid = setting
        for batch in batches:
            views = [images(batch), images(batch)]
            loop(backbone, *views)
            maps = pyramid.take(views[target_view])
            with torch.no_grad():
                assert_maps(maps, expected_maps(backbone, views[target_view]))

    def test_view_0_first(self, setting, target_view) -> None:
        self.check(setting, lambda f, a, b: (f(a), f(b)), target_view)

    def test_view_1_first(self, setting, target_view) -> None:
        self.check(setting, lambda f, a, b: (f(b), f(a)), target_view)

    def test_moved_views(self, setting, target_view) -> None:
        self.check(setting, lambda f, a, b: (f(a.clone()), f(b.clone())), target_view)

    @pytest.mark.parametrize("order", [1, -1])
    def test_concatenated(self, setting, target_view, order: int) -> None:
        def loop(f, *views):
            f(torch.cat(views[::order]))

        self.check(setting, loop, target_view)

    def test_twin_without_gradients(self, setting, target_view) -> None:
        def loop(f, *views):
            with torch.no_grad():
                f(views[target_view].clone())
                f(views[1 - target_view].clone())
            f(views[1 - target_view].clone())
            f(views[target_view].clone())

        self.check(setting, loop, target_view)

    def test_normalised_inside(self, setting, target_view) -> None:
        backbone, pyramid = setting
        views = [images(), images()]
        scale = torch.tensor([0.2, 0.3, 0.4])[:, None, None]
        inputs = [(view - 0.5) / scale for view in views]
        for x in inputs:
            backbone(x)
        maps = pyramid.take(views[target_view])
        with torch.no_grad():
            assert_maps(maps, expected_maps(backbone, inputs[target_view]))

    @pytest.mark.parametrize("grey", [0.0, 0.3, 0.485, 1.0])
    def test_blank_image_among_normalised_ones(self, setting, grey: float) -> None:
        backbone, pyramid = setting
        views = [images(), images()]
        for view in views:
            view[1] = grey
        inputs = [(view - 0.485) / 0.229 for view in views]
        for x in inputs:
            backbone(x)
        with torch.no_grad():
            expected = expected_maps(backbone, inputs[1])
        assert_maps(pyramid.take(views[1]), expected)

    def test_target_of_another_view_takes_another_route(self, setting) -> None:
        backbone, pyramid = setting
        for target_view in (0, 1, 0):
            views = [images(), images()]
            backbone(torch.cat(views))
            asked = [None, None]
            asked[target_view] = views[target_view]
            number, maps = pyramid.take_first(*asked)
            assert number == target_view
            with torch.no_grad():
                assert_maps(maps, expected_maps(backbone, views[target_view]))

    def test_training_after_evaluation_with_gradients(self, setting) -> None:
        backbone, pyramid = setting
        for mode in (False, True):
            backbone.train(mode)
            view = images()
            backbone(view)
            assert len(pyramid.take(view)) == 3

    def test_grey_view_repeated_inside(self, setting, target_view) -> None:
        backbone, pyramid = setting
        views = [images(channels=1), images(channels=1)]
        inputs = [view.repeat(1, 3, 1, 1) for view in views]
        for x in inputs:
            backbone(x)
        maps = pyramid.take(views[target_view])
        with torch.no_grad():
            assert_maps(maps, expected_maps(backbone, inputs[target_view]))

    def test_other_sizes_between(self, setting, target_view) -> None:
        def loop(f, a, b):
            f(a[..., ::2, ::2].contiguous())
            f(b.clone())
            f(a.clone())

        self.check(setting, loop, target_view)

    def test_a_pass_more_than_usual_is_noticed(self, setting) -> None:
        backbone, pyramid = setting
        for extra in (False, True, False):
            a, b = images(), images()
            if extra:
                backbone(images())
            backbone(a.clone())
            backbone(b.clone())
            with torch.no_grad():
                assert_maps(pyramid.take(a), expected_maps(backbone, a))

    def test_evaluation_with_gradients_does_not_interfere(self, setting) -> None:
        backbone, pyramid = setting
        for _ in range(2):
            a, b = images(), images()
            backbone(a.clone())
            backbone(b.clone())
            with torch.no_grad():
                assert_maps(pyramid.take(a), expected_maps(backbone, a))
            backbone.eval()
            backbone(images())
            backbone.train()
            backbone[0][1].eval(), backbone[1][1].eval(), backbone[2][1].eval()

    def test_frozen_backbone_in_evaluation_mode(self, setting, target_view) -> None:
        setting[0].eval()
        self.check(setting, lambda f, a, b: (f(a), f(b)), target_view)

    def test_views_never_seen(self, setting) -> None:
        backbone, pyramid = setting
        for _ in range(2):
            view = images()
            backbone(view)
            pyramid.take(view)
            backbone(images())
            with pytest.raises(RuntimeError, match="never saw the view"):
                pyramid.take(images())


class TestMemory:
    """Maps live as long as the loss that was made of them, and not in evaluation."""

    @pytest.fixture
    def setting(self):
        backbone = tiny_backbone()
        seen: list[weakref.ref[Tensor]] = []
        for stage in backbone[:3]:
            stage.register_forward_hook(lambda *a: seen.append(weakref.ref(a[2])))
        dira = DiRA(backbone, torch.optim.SGD(backbone.parameters(), lr=0.1))
        seen.clear()
        return backbone, dira, seen

    def alive(self, seen) -> int:
        gc.collect()
        return sum(reference() is not None for reference in seen)

    def test_nothing_outlives_the_loss(self, setting) -> None:
        backbone, dira, seen = setting
        for _ in range(2):
            a, b = images(), images()
            loss = dira(
                backbone(a).mean() + backbone(b).mean(),
                DiRAViews([a, b], images(channels=1)),
            )
            assert self.alive(seen) > 0
            loss.backward()
            del loss
            assert self.alive(seen) == 0

    @pytest.mark.parametrize("train", [True, False])
    def test_nothing_without_gradients(self, setting, train: bool) -> None:
        backbone, _, seen = setting
        backbone.train(train)
        with torch.no_grad():
            backbone(images())
        assert len(seen) == 3
        assert self.alive(seen) == 0

    def test_nothing_in_evaluation_with_gradients(self, setting) -> None:
        backbone, dira, seen = setting
        a = images()
        dira(backbone(a).mean(), DiRAViews([a], images(channels=1))).backward()
        backbone.eval()
        backbone(images())
        assert self.alive(seen) == 0

    def test_nothing_of_restoring(self, setting) -> None:
        _, dira, seen = setting
        dira.restore(images())
        assert len(seen) == 3
        assert self.alive(seen) == 0


def test_only_the_targets_rows_are_decoded() -> None:
    backbone = tiny_backbone()
    dira = DiRA(backbone)
    decoded = []
    dira.head.register_forward_pre_hook(lambda m, args: decoded.append(args[0]))
    a, b = images(), images()
    loss = backbone(torch.cat([a, b])).mean()
    dira(loss, DiRAViews([a, b], images(channels=1)))
    assert [len(feature) for feature in decoded[0]] == [3, 3, 3]
    assert len(decoded) == 1


def test_no_second_pass_of_the_encoder() -> None:
    backbone = tiny_backbone()
    dira = DiRA(backbone)
    calls = []
    backbone.register_forward_hook(lambda *_: calls.append(1))
    a, b = images(), images()
    dira(backbone(a).mean() + backbone(b).mean(), DiRAViews([a, b], images(channels=1)))
    assert len(calls) == 2
