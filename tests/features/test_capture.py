"""Checkpointed, interleaved and threaded passes."""

from __future__ import annotations

import gc
import weakref

import pytest
import timm
import torch
import torchvision
from loops import Watched, make_views
from methods import tiny_backbone
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lightly_dira import DiRA
from lightly_dira.core import private_torch
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


@pytest.mark.skipif(
    private_torch._keeps_graph is None, reason="PyTorch does not tell before 2.6"
)
class TestPassesThatAreOver:
    """Maps that nobody will decode are dropped when the next pass begins."""

    def passes(self, backbone, loop) -> int:
        dira = DiRA(backbone, torch.optim.SGD(backbone.parameters(), lr=0.1))
        loop(torch.optim.SGD(backbone.parameters(), lr=0.01))
        return len(dira.features.capture._passes)

    @pytest.mark.parametrize("make", [tiny_backbone, torchvision.models.resnet18])
    def test_fine_tuning(self, make) -> None:
        """Found: 32 passes were kept, with their graphs."""
        backbone = make()

        def loop(optimizer) -> None:
            for _ in range(6):
                backbone(torch.rand(4, 3, 32, 32)).square().mean().backward()
                optimizer.step()
                optimizer.zero_grad()

        assert self.passes(backbone, loop) == 1

    def test_accumulation_and_several_views(self) -> None:
        backbone = tiny_backbone()

        def loop(optimizer) -> None:
            for _ in range(3):
                for _ in range(2):
                    first, second = (backbone(torch.rand(2, 3, 32, 32)) for _ in "12")
                    (first - second).square().mean().backward()
                optimizer.step()
                optimizer.zero_grad()

        assert self.passes(backbone, loop) == 2

    def test_a_graph_that_is_retained_is_not_over(self) -> None:
        backbone = tiny_backbone()
        optimizer = torch.optim.SGD(backbone.parameters(), lr=0.1)
        dira = DiRA(backbone, optimizer)
        views = make_views()
        first = backbone(views[0])
        first.mean().backward(retain_graph=True)
        second = backbone(views[1])
        loss = dira((first - second).square().mean(), views)
        loss.backward()
        assert dira.components.restorative > 0

    def test_memory(self) -> None:
        """No map outlives its step by more than one."""
        backbone = tiny_backbone()
        dira = DiRA(backbone, torch.optim.SGD(backbone.parameters(), lr=0.1))
        kept = []
        for _ in range(4):
            out = backbone(torch.rand(4, 3, 32, 32))
            kept.append(weakref.ref(dira.features.capture._passes[-1]))
            out.mean().backward()
            del out
            gc.collect()
        assert sum(ref() is not None for ref in kept) == 1
