"""Lines of terms of a plain loop."""

from __future__ import annotations

import re

import pytest
import torch
from small import small_encoder

from lightly_dira import DiRA, DiRAViews
from lightly_dira.training import watch


class Loop:
    def __init__(self, **options: object) -> None:
        self.backbone = small_encoder(3)
        self.optimizer = torch.optim.SGD(self.backbone.parameters(), lr=0.01)
        self.dira = DiRA(self.backbone, self.optimizer, **options)
        self.lines: list[str] = []
        self.restorative: list[float] = []

    def step(self, parts: int = 1) -> None:
        for _ in range(parts):
            views = DiRAViews(torch.rand(2, 2, 3, 32, 32), torch.rand(2, 1, 32, 32))
            x0, x1 = views
            loss = (self.backbone(x0) - self.backbone(x1)).square().mean()
            (self.dira(loss, views) / parts).backward()
            self.restorative.append(self.dira.components.restorative.item())
        self.optimizer.step()
        self.optimizer.zero_grad()


def test_means_of_the_steps_between_lines() -> None:
    loop = Loop(adversarial_start=4)
    watch(loop.dira, every=3, write=loop.lines.append)
    for _ in range(7):
        loop.step()
    assert [line.split(":")[0] for line in loop.lines] == [
        "step 3, dir",
        "step 6, dira",
    ]
    for line, part in zip(loop.lines, (slice(0, 3), slice(3, 6)), strict=True):
        found = float(re.search(r"restorative ([\d.]+)", line)[1])
        own = loop.restorative[part]
        assert found == pytest.approx(sum(own) / 3, abs=1e-4)
    assert "discriminator" not in loop.lines[0]
    assert "adversarial" in loop.lines[1]


def test_terms_that_start_between_two_lines() -> None:
    """Found: calls before the start counted as zeros."""
    loop = Loop(restorative_start=4, adversarial_start=None)
    watch(loop.dira, every=5, write=loop.lines.append)
    for _ in range(5):
        loop.step()
    found = float(re.search(r"restorative ([\d.]+)", loop.lines[0])[1])
    assert found == pytest.approx(loop.restorative[-1], abs=1e-4)


def test_steps_are_those_of_the_optimiser() -> None:
    loop = Loop()
    watch(loop.dira, every=2, write=loop.lines.append)
    for _ in range(4):
        loop.step(parts=3)
    # A line follows the first call of the step that is due.
    assert [line.split(",")[0] for line in loop.lines] == ["step 2", "step 4"]


def test_validation_is_left_out() -> None:
    loop = Loop()
    watch(loop.dira, every=1, write=loop.lines.append)
    with torch.no_grad():
        views = DiRAViews(torch.rand(2, 2, 3, 32, 32), torch.rand(2, 1, 32, 32))
        loop.dira(loop.backbone(views[0]).mean(), views)
    assert not loop.lines


def test_it_ends() -> None:
    loop = Loop()
    handle = watch(loop.dira, every=1, write=loop.lines.append)
    loop.step()
    handle.remove()
    loop.step()
    assert len(loop.lines) == 1
    with pytest.raises(ValueError, match="every must be at least 1"):
        watch(loop.dira, every=0)
