"""What is known of a pass: whether its input has changed, and whether it is over."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
import torchvision
from loops import Watched, make_views
from methods import tiny_backbone
from torch import Tensor, nn

from lightly_dira import DiRA
from lightly_dira.core import private_torch


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


class TestTheRightView:
    def test_changed_in_place_after_the_pass(self) -> None:
        watched = Watched(tiny_backbone())
        buffer = torch.rand(3, 3, 32, 32)
        watched.backbone(buffer)
        buffer.copy_(torch.rand(3, 3, 32, 32))
        with pytest.raises(RuntimeError, match="changed in place"):
            watched.pyramid.take(buffer)

    def test_normalised_in_place_inside(self) -> None:
        class Inside(nn.Sequential):
            def forward(self, x: Tensor) -> Tensor:
                return super().forward(x.sub_(0.5))

        watched = Watched(Inside(*tiny_backbone()))
        view = torch.rand(3, 3, 32, 32)
        watched.backbone(view)
        assert len(watched.pyramid.take(view)) == 3
