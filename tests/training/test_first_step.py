"""The first step of restoration has trained the head."""

from __future__ import annotations

import pytest
import torch
from loops import make_views
from methods import tiny_backbone

from lightly_dira import DiRA
from lightly_dira.training import first_step


def test_optimisers_with_groups_of_their_own() -> None:
    """As ZeroRedundancyOptimizer, which steps what it parted before."""

    class Parted(torch.optim.SGD):
        def __init__(self, parameters, **options) -> None:
            super().__init__(parameters, **options)
            held = [p for group in self.param_groups for p in group["params"]]
            self.inner = torch.optim.SGD(held, **options)

        def step(self, closure=None):
            return self.inner.step(closure)

    backbone = tiny_backbone()
    optimizer = Parted(backbone.parameters(), lr=0.1)
    dira = DiRA(backbone, optimizer)
    views = make_views()
    dira(backbone(views[0]).mean(), views).backward()
    with pytest.raises(RuntimeError, match=r"does not step it.*dira\.attach"):
        optimizer.step()


def test_every_part_is_compared_once(monkeypatch) -> None:
    """Found: of critics that several processes train, nobody knew that they differ."""
    compared = []
    note = lambda name, part: compared.append((name, dira.steps))  # noqa: E731
    monkeypatch.setattr(first_step, "check_averaged", note)
    backbone = tiny_backbone()
    optimizer = torch.optim.SGD(backbone.parameters(), lr=0.1)
    dira = DiRA(backbone, optimizer, restorative_start=1, adversarial_start=3)
    views = make_views()
    for _ in range(6):
        dira(backbone(views[0]).mean(), views).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert compared == [("head", 1), ("critic", 3)]
