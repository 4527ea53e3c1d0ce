"""The maps that a pyramid hands out are those of the view."""

from __future__ import annotations

import pytest
import torch
import torchvision
from loops import Watched, make_vit
from maps_by_hand import assert_maps, expected_maps, images
from methods import tiny_backbone
from torch import nn
from torchvision.transforms import v2

from lightly_dira import DiRA, DiRAViews
from lightly_dira.features.pyramid import FeaturePyramid


class TestDiscovery:
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

    def test_repr_is_a_table(self) -> None:
        lines = repr(FeaturePyramid(torchvision.models.resnet18())).splitlines()
        assert lines[1].split() == ["level", "module", "channels", "stride"]
        assert lines[6].split() == ["4", "layer4", "512", "32"]


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


class TestTheRightView:
    def test_views_seen_in_part_give_way(self) -> None:
        """As MSN's: the first view loses tokens, the second is seen whole."""
        watched = Watched(make_vit(), input_size=32)
        views = list(torch.rand(2, 3, 3, 32, 32))
        keep = torch.arange(9).expand(3, 9)
        watched.backbone(views[0], idx_keep=keep)
        watched.backbone(views[1])
        watched.check(views, 1)
        watched.backbone(views[0], idx_keep=keep)
        with pytest.raises(RuntimeError, match="pass one view whole"):
            watched.pyramid.take_first(*views)


class TestNamed:
    """`view=x` is compared with its view, and does not wait for an accelerator."""

    def step(self, change, *, target_view: int | None = 0):
        torch.manual_seed(0)
        backbone = tiny_backbone()
        optimizer = torch.optim.SGD(backbone.parameters(), lr=0.0)
        dira = DiRA(backbone, optimizer)
        smooth = torch.nn.functional.interpolate(torch.rand(8, 3, 4, 4), size=(32, 32))
        targets = smooth.mean(dim=1, keepdim=True)
        views = DiRAViews(list(smooth.split(4)), targets[:4], target_view=target_view)
        x = change(views[0])
        dira(backbone(x).mean(), views, view=x)

    @pytest.mark.parametrize(
        "change",
        [
            lambda x: x.flip(-1),
            lambda x: x.flip(-2),
            lambda x: x.roll(12, dims=-1),
            lambda x: x.rot90(1, dims=(-2, -1)),
        ],
    )
    def test_geometry_on_the_device_is_loud(self, change) -> None:
        with pytest.warns(UserWarning, match=r"hardly resembles its view.*correlate"):
            self.step(change)

    @pytest.mark.parametrize(
        "change",
        [
            lambda x: (x - 0.4) / 0.2,
            lambda x: x.clone(),
            lambda x: 0.3 * x + 0.5,
            lambda x: (x + 0.1 * torch.randn_like(x)).clamp(0, 1),
            v2.ColorJitter(0.4, 0.4, 0.4, 0.1),
            v2.GaussianBlur(5),
        ],
    )
    def test_values_may_change(self, change, recwarn) -> None:
        self.step(change)
        assert not [w for w in recwarn if "hardly" in str(w.message)]

    @pytest.mark.parametrize("kind", ["flip", "crop", "resize", "normalise"])
    def test_what_a_backbone_does_before_its_layers(self, kind, recwarn) -> None:
        """Found: one that flips or crops inside was believed, if `view=` was given."""
        change = {
            "flip": lambda x: x.flip(-1),
            "crop": lambda x: x[..., 4:, 4:],
            "resize": lambda x: nn.functional.interpolate(x, size=(28, 28)),
            "normalise": lambda x: (x - 0.4) / 0.2,
        }[kind]

        class Inside(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.net = tiny_backbone()

            def forward(self, x):
                return self.net(change(x) if self.training else x)

        torch.manual_seed(0)
        backbone = Inside()
        optimizer = torch.optim.SGD(backbone.parameters(), lr=0.0)
        dira = DiRA(backbone, optimizer, adversarial_start=None)
        smooth = torch.nn.functional.interpolate(torch.rand(4, 3, 4, 4), size=(32, 32))
        views = DiRAViews([smooth], smooth.mean(dim=1, keepdim=True))
        dira(backbone(views[0]).mean(), views, view=views[0])
        warned = any("hardly" in str(w.message) for w in recwarn)
        assert warned == (kind in ("flip", "crop"))


class Siamese(nn.Module):
    """Takes two images, and runs the second one first."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            *[
                nn.Sequential(nn.Conv2d(a, b, 3, 2, 1), nn.ReLU())
                for a, b in ((3, 4), (4, 8), (8, 16))
            ]
        )

    def forward(self, x0, x1=None):
        if x1 is None:
            return self.encoder(x0)
        other = self.encoder(x1)
        return (self.encoder(x0) - other).square().mean()


@pytest.mark.parametrize("named", [True, False])
def test_a_module_of_two_images(named: bool) -> None:
    """Found: the first image of the call was taken for what ran first."""
    x0, x1 = torch.rand(2, 4, 3, 32, 32)
    model = Siamese()
    pyramid = FeaturePyramid(model)
    model(x0, x1)
    (taken,) = pyramid.see([[x0, x1]], x0 if named else None)
    assert torch.equal(taken.images, x0)
    torch.testing.assert_close(taken.maps[-1], model.encoder(x0))
    model(x0, x1)
    (taken,) = pyramid.see([[x1]])
    assert torch.equal(taken.images, x1)
    torch.testing.assert_close(taken.maps[-1], model.encoder(x1))
