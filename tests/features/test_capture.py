"""Checkpointed and interleaved passes, and how long their maps live."""

from __future__ import annotations

import gc
import weakref

import pytest
import timm
import torch
from loops import Watched, make_views
from maps_by_hand import images
from methods import tiny_backbone
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lightly_dira import DiRA, DiRAViews
from lightly_dira.features.pyramid import FeaturePyramid


class TestCheckpointing:
    """Activations that are computed again in the backward pass."""

    def gradient(self, run) -> Tensor:
        torch.manual_seed(0)
        backbone = tiny_backbone()
        dira = DiRA(backbone, torch.optim.SGD(backbone.parameters(), lr=0.1))
        views = make_views()
        dira(run(backbone, views[0]).mean(), views).backward()
        return backbone[0][0].weight.grad.norm()

    def test_without_reentry(self) -> None:
        plain = self.gradient(lambda f, x: f(x))
        again = self.gradient(
            lambda f, x: f[1:](checkpoint(f[0], x, use_reentrant=False))
        )
        torch.testing.assert_close(plain, again)

    def test_several_layers_at_once_with_reentry(self) -> None:
        """Found: inner maps had no gradient, and restoration did not reach the stem."""

        def run(f, x):
            x = f[0][0](x)
            x = checkpoint(
                lambda x: f[2](f[1](f[0][2](f[0][1](x)))), x, use_reentrant=True
            )
            return f[3:](x)

        with pytest.raises(RuntimeError, match="use_reentrant=False"):
            self.gradient(run)

    def test_set_after_wrapping(self) -> None:
        """Found: the message spoke of compilation. Parts now stand for their whole."""
        plain, again = (
            timm.create_model("resnet18", num_classes=0).train() for _ in range(2)
        )
        again.load_state_dict(plain.state_dict())
        views = make_views(size=64)
        terms = []
        for backbone in (plain, again):
            dira = DiRA(backbone, torch.optim.SGD(backbone.parameters(), lr=0.1))
            torch.manual_seed(0)
            for parameter in dira.parameters():
                nn.init.normal_(parameter, 0, 0.02)
            if backbone is again:
                backbone.set_grad_checkpointing()
            dira(backbone(views[0]).mean(), views).backward()
            terms.append(dira.components.restorative)
        torch.testing.assert_close(*terms)


class TestPassesThatRunIntoEachOther:
    def test_stage_by_stage(self) -> None:
        backbone = tiny_backbone()
        pyramid, views = FeaturePyramid(backbone), list(torch.rand(2, 3, 3, 32, 32))
        first, second = backbone[0](views[1]), backbone[0](views[0])
        backbone[1:](first)
        backbone[1:](second)
        with pytest.raises(RuntimeError, match=r"run into each other|output nothing"):
            pyramid.take_first(*views)

    def test_the_latest_whole_pass_counts(self) -> None:
        watched = Watched(tiny_backbone())
        view = torch.rand(3, 3, 32, 32)
        watched.backbone[0](view)  # a part of a pass
        watched.backbone(view)
        watched.check([view], 0)


class TestDiscovery:
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
