from __future__ import annotations

import copy

import pytest
import torch
from backbones import BACKBONES, Backbone
from torch import nn

from lightly_dira import DiRA, DiRAViews
from lightly_dira.core.tensors import tensors_in


@pytest.fixture(params=BACKBONES)
def case(request: pytest.FixtureRequest) -> Backbone:
    torch.manual_seed(0)
    return BACKBONES[request.param]


def images(case: Backbone, size: int) -> torch.Tensor:
    return torch.rand(2, case.in_channels, size, size)


def train(backbone: nn.Module, dira: DiRA, views: list[torch.Tensor]) -> torch.Tensor:
    """One batch of which nothing but restoration and adversary have gradients."""
    outputs = [value for x in views for value in tensors_in(backbone(x))]
    loss = 0 * sum(output.float().mean() for output in outputs)
    total = dira(loss, DiRAViews(views, views[0][:, :1].clone()))
    total.backward()
    return total


def test_at_least_thirty() -> None:
    assert len(BACKBONES) >= 30
    for case in BACKBONES.values():
        assert any(size % 2 for size in case.sizes)


def test_every_family(case: Backbone) -> None:
    for size in case.sizes:
        backbone = case.make(size)
        before = copy.deepcopy(backbone.state_dict())
        dira = DiRA(backbone)

        assert tuple(dira.features.strides) == case.strides
        assert tuple(dira.features.channels) == case.channels
        after = backbone.state_dict()
        assert list(after) == list(before)
        assert all(torch.equal(after[name], before[name]) for name in before)

        x = images(case, size)
        assert dira.restore(x).shape == (2, 1, size, size)

        maps = dira.features(x)
        sides = [feature.shape[-1] for feature in maps]
        assert sides == sorted(sides, reverse=True)
        for feature in maps:
            feature.retain_grad()
        dira.head(maps, (size, size)).square().mean().backward()
        for feature in maps:
            assert feature.grad is not None
            assert feature.grad.abs().sum() > 0

        backbone.zero_grad()
        with pytest.warns(UserWarning, match="no optimiser"):
            train(backbone, dira, [x, images(case, size)])
        weight = next(p for p in backbone.parameters() if p.ndim == 4)
        assert weight.grad is not None
        assert weight.grad.abs().sum() > 0


def test_copies(case: Backbone) -> None:
    size = case.sizes[0]
    backbone = case.make(size)
    dira = DiRA(backbone)
    twin = copy.deepcopy(backbone)
    twin(images(case, size))
    with pytest.raises(RuntimeError, match="no pass with gradients"):
        dira.features.take(images(case, size))
    own = DiRA(twin)
    assert own.features.layers == dira.features.layers


@pytest.mark.rare
@pytest.mark.filterwarnings("ignore:DiRA. no optimiser")
@pytest.mark.parametrize("name", [n for n in BACKBONES if "features" not in n])
def test_compiled(name: str) -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    case = BACKBONES[name]
    size = case.sizes[0]
    backbone = case.make(size)
    compiled = torch.compile(backbone, backend="eager", dynamic=False)
    dira = DiRA(compiled)
    assert tuple(dira.features.strides) == case.strides
    x = images(case, size)
    total = train(compiled, dira, [x, images(case, size)])
    assert total.isfinite()
    weight = next(p for p in backbone.parameters() if p.ndim == 4)
    assert weight.grad.abs().sum() > 0
