"""Compiled backbones: one graph, nothing compiled anew, and the same maps."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from methods import tiny_backbone
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torchvision.models import resnet18

from lightly_dira import DiRA, DiRAViews
from lightly_dira.features.compiled_passes import CAN_TRACE

pytestmark = [
    pytest.mark.skipif(not CAN_TRACE, reason="needs PyTorch 2.7"),
    pytest.mark.filterwarnings("ignore:DiRA. no optimiser"),
]


class Pair(nn.Module):
    """A model that makes both passes in one graph."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        first, second = self.backbone(a), self.backbone(b)
        return (first - second).square().mean() + first.mean()


class Breaks(nn.Module):
    """A backbone that ends the graph in its middle."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.second = nn.Conv2d(8, 16, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        torch._dynamo.graph_break()
        return self.second(x).flatten(1)


def graphs(backbone: nn.Module, *, pair: bool) -> list[int]:
    """How many graphs there are after each of some steps."""
    torch._dynamo.reset()
    counter, counts = CompileCounter(), []
    model = Pair(backbone) if pair else backbone
    call = torch.compile(model, backend=counter, fullgraph=True)
    plan = [(True, 64)] * 3 + [(False, 64), (True, 96), (False, 96), (True, 128)]
    for training, size in [*plan, *plan]:
        model.train(training)
        views = torch.rand(2, 2, 3, size, size)
        if pair:
            call(*views)
        else:
            call(views[0])
            call(views[1])
        counts.append(counter.frame_count)
    return counts


@pytest.mark.parametrize("pair", [False, True])
@pytest.mark.parametrize(
    "make", [tiny_backbone, pytest.param(resnet18, marks=pytest.mark.slow)]
)
def test_as_many_graphs_as_without_dira(make: Any, pair: bool) -> None:
    """Nothing that is kept makes a graph invalid, for all steps, modes and sizes."""
    bare = graphs(make(), pair=pair)
    assert bare[:3] == [1, 1, 1]
    backbone = make()
    dira = DiRA(backbone)
    assert graphs(backbone, pair=pair) == bare
    assert dira.features.capture.seen > 0


@pytest.mark.parametrize("compiled", ["backbone", "in place", "model", "step"])
@pytest.mark.parametrize(
    "backend", ["eager", pytest.param("aot_eager", marks=pytest.mark.slow)]
)
def test_trains_as_if_it_was_not_compiled(compiled: str, backend: str) -> None:
    def train(way: str | None) -> tuple[list[Tensor], list[float]]:
        torch._dynamo.reset()
        torch.manual_seed(0)
        backbone = tiny_backbone()
        model = Pair(backbone)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        dira = DiRA(backbone, optimizer)
        call: Any = model
        if way == "backbone":
            model.backbone = torch.compile(backbone, backend=backend)
        elif way == "in place":
            backbone.compile(backend=backend)
        elif way == "model":
            call = torch.compile(model, backend=backend)
        elif way == "step":
            call = torch.compile(lambda a, b: model(a, b), backend=backend)
        terms = []
        for step in range(4):
            generator = torch.Generator().manual_seed(step)
            views = torch.rand(2, 4, 3, 32, 32, generator=generator)
            targets = {i: torch.rand(4, 1, 32, 32, generator=generator) for i in (0, 1)}
            batch = DiRAViews(views, targets, target_view=step % 2)
            loss = dira(call(*batch), batch)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            terms.append(float(loss))
            with torch.no_grad():
                terms.append(float(dira(call(*batch), batch)))
        return [*backbone.parameters()], terms

    weights, terms = train(compiled)
    expected, expected_terms = train(None)
    assert terms == pytest.approx(expected_terms, rel=1e-5)
    for weight, other in zip(weights, expected, strict=True):
        assert torch.allclose(weight, other, atol=1e-6)


def test_a_backbone_that_breaks_its_graph() -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    backbone = Breaks()
    dira = DiRA(backbone)
    call = torch.compile(backbone, backend="eager")
    for _ in range(2):
        x = torch.rand(2, 3, 32, 32)
        loss = call(x).mean()
        maps = dira.features.take(x)
        plain = dira.features(x)
        assert all(torch.equal(a, b) for a, b in zip(maps, plain, strict=True))
        assert loss.requires_grad


def test_images_that_change_after_a_compiled_pass_are_noticed() -> None:
    torch._dynamo.reset()
    backbone = tiny_backbone()
    dira = DiRA(backbone)
    call = torch.compile(backbone, backend="aot_eager")
    a = torch.rand(2, 3, 32, 32)
    for _ in range(2):
        views = DiRAViews([a], torch.rand(2, 1, 32, 32))
        assert dira(call(a).mean(), views).isfinite()
    views = DiRAViews([a], torch.rand(2, 1, 32, 32))
    loss = call(a).mean()
    a.copy_(torch.rand_like(a))
    with pytest.raises(RuntimeError, match="DiRA"):
        dira(loss, views)


def test_passes_without_gradients_are_not_kept() -> None:
    torch._dynamo.reset()
    backbone = tiny_backbone()
    dira = DiRA(backbone)
    call = torch.compile(backbone, backend="eager")
    with torch.no_grad():
        call(torch.rand(2, 3, 32, 32))
    assert not dira.features.was_run
    call(torch.rand(2, 3, 32, 32))
    assert dira.features.was_run
    dira.features.forget()
    with pytest.raises(RuntimeError, match="no pass with gradients"):
        dira.features.take(torch.rand(2, 3, 32, 32))


def test_passes_that_nobody_takes_do_not_pile_up() -> None:
    torch._dynamo.reset()
    backbone = tiny_backbone()
    dira = DiRA(backbone)
    call = torch.compile(backbone, backend="eager")
    capture = dira.features.capture
    for capturing in (True, False):
        capture.capturing = capturing
        for _ in range(40):
            call(torch.rand(2, 3, 32, 32)).sum().backward()
        assert capture.seen >= 40
        assert len(capture._passes) <= 32
    last = capture._passes[-1]
    assert all(m.is_meta for m in last.maps.values())  # only shapes, as in stage "di"


def test_a_frozen_stem_in_evaluation_mode() -> None:
    """Found: it was the stem's mode that told a pass of training."""
    torch._dynamo.reset()
    backbone = tiny_backbone()
    dira = DiRA(backbone)
    call = torch.compile(backbone, backend="eager")
    for frozen in (False, True):
        backbone.train()
        backbone[0].train(not frozen)
        x = torch.rand(2, 3, 32, 32)
        call(x).sum().backward()
        assert len(dira.features.take(x)) == 3


def test_copies_have_no_hooks() -> None:
    torch._dynamo.reset()
    backbone = tiny_backbone()
    dira = DiRA(backbone)
    torch.compile(backbone, backend="eager")(torch.rand(2, 3, 32, 32))
    twin = copy.deepcopy(backbone)
    dira.features.forget()
    torch.compile(twin, backend="eager", fullgraph=True)(torch.rand(2, 3, 32, 32))
    assert not dira.features.was_run
