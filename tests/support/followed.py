"""Plain loops with an optimiser that DiRA follows, and what they are warned of."""

from __future__ import annotations

import warnings

import torch
from loops import make_views
from methods import SimSiam, tiny_backbone
from torch import Tensor

from lightly_dira import DiRA, DiRAViews


def made(**options):
    torch.manual_seed(0)
    backbone = tiny_backbone()
    optimizer = torch.optim.SGD(backbone.parameters(), lr=0.05)
    return backbone, optimizer, DiRA(backbone, optimizer, **options)


def train(backbone, optimizer, dira, steps: int = 3) -> None:
    for _ in range(steps):
        views = make_views(2)
        dira(backbone(views[0]).mean(), views).backward()
        optimizer.step()
        optimizer.zero_grad()


class Loop:
    """A plain loop, with all that a test may replace."""

    def __init__(self, *, lr: float = 0.05, **options) -> None:
        torch.manual_seed(0)
        self.model = SimSiam(tiny_backbone(), 16)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=lr)
        self.dira = DiRA(self.model.backbone, self.optimizer, **options)

    def loss(self, views: DiRAViews) -> Tensor:
        return self.model.loss(*views)

    def total(self, views: DiRAViews) -> Tensor:
        return self.dira(self.loss(views), views)

    def step(self, total: Tensor) -> None:
        total.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def warned_of(loop, count: int = 12) -> list[str]:
    """Runs a step several times, and returns DiRA's warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for number in range(count):
            loop(number)
    return [str(w.message) for w in caught if "DiRA" in str(w.message)]
