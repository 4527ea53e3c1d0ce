"""Terms that are not finite end a run, unless a scaler skips the step."""

from __future__ import annotations

import pytest
import torch
from followed import made
from loops import make_views

from lightly_dira import DiRALoss


@pytest.mark.parametrize("when", ["first", "later"])
@pytest.mark.parametrize("adversary", ["least_squares", "wasserstein"])
def test_an_overflow_under_a_scaler(when: str, adversary: str) -> None:
    """Found: bare runs skip the step, DiRA's ended."""
    backbone, optimizer, dira = made(loss=DiRALoss(adversary=adversary))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    bad = {"first": 0, "later": 3}[when]

    def step(*, overflow: bool) -> None:
        views = make_views(2)
        with torch.autocast("cpu", torch.float16, enabled=when == "first"):
            loss = backbone(views[0]).mean()
            total = dira(loss * torch.inf if overflow else loss, views)
        scaler.scale(total).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()

    for _ in range(bad):
        step(overflow=False)
    with pytest.warns(UserWarning, match=r"discriminative loss is not finite.*scaler"):
        step(overflow=True)
    assert dira.steps == bad
    step(overflow=False)
    assert dira.steps == bad + 1
    assert all(p.isfinite().all() for p in (*backbone.parameters(), *dira.parameters()))
    for _ in range(2):
        with pytest.warns(UserWarning, match="not finite"):
            step(overflow=True)
    with pytest.raises(ValueError, match="not finite"):
        step(overflow=True)


def test_an_overflow_under_a_scaler_that_accumulates() -> None:
    """Found: a third of a power of two was no scale of a scaler."""
    backbone, optimizer, dira = made()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    for number in range(9):
        views = make_views(2)
        loss = backbone(views[0]).mean() * (torch.inf if number == 4 else 1)
        if number == 4:
            with pytest.warns(UserWarning, match="not finite"):
                total = dira(loss, views)
        else:
            total = dira(loss, views)
        scaler.scale(total / 3).backward()
        if number % 3 == 2:
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
    assert dira.steps == 2


@pytest.mark.parametrize("factor", [1.0, 4.0, 100.0])
def test_an_overflow_without_a_scaler(factor: float) -> None:
    backbone, optimizer, dira = made()
    for _ in range(3):
        views = make_views(2)
        (factor * dira(backbone(views[0]).mean(), views)).backward()
        optimizer.step()
        optimizer.zero_grad()
    views = make_views(2)
    with pytest.raises(ValueError, match="lower the learning rate"):
        dira(backbone(views[0]).mean() * torch.nan, views)
