"""Warnings name the line that the user wrote."""

from __future__ import annotations

import inspect
import warnings

import pytest
import torch
from lightning_modules import DiRASimSiam, loader, trainer
from methods import tiny_backbone
from torch import nn
from torchvision.transforms import v2

from lightly_dira import DiRA, DiRATransform, DiRAViews
from lightly_dira.core import user_warnings
from lightly_dira.core.user_warnings import warn


class Calls(nn.Module):
    """Calls a function inside a hook, a module and `no_grad`."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function
        self.register_forward_pre_hook(lambda *_: None)

    @torch.no_grad()
    def forward(self, x):
        return self.function(x)


class Loop(nn.Module):
    def __init__(self, dira: nn.Module) -> None:
        super().__init__()
        self.dira = dira

    def forward(self, loss, views):
        return self.dira(loss, views)


def here() -> int:
    frame = inspect.currentframe()
    return frame.f_back.f_lineno


def test_frames_of_libraries_are_skipped() -> None:
    # The innermost frame outside libraries is this file's lambda, however deep.
    module = nn.Sequential(Calls(lambda x: (warn("look here"), x)[1]))
    line = here() - 1
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        module(torch.zeros(1))
    assert [(w.filename, w.lineno) for w in caught] == [(__file__, line)]


def test_without_any_line_of_the_user(monkeypatch) -> None:
    monkeypatch.setattr(user_warnings, "_is_between", lambda *_: True)
    with pytest.warns(UserWarning, match="look here"):
        warn("look here")


@pytest.mark.parametrize("called", ["plain", "compiled", "in a module"])
def test_of_dira(called: str) -> None:
    """Found: they pointed into PyTorch."""
    backbone = tiny_backbone()
    dira: nn.Module = DiRA(backbone)
    views = DiRAViews(torch.rand(2, 2, 3, 32, 32), torch.rand(2, 1, 32, 32))
    call = {"plain": dira, "compiled": torch.compile(dira, backend="eager")}.get(called)
    if call is None:
        call = Loop(dira)
    loss = backbone(views[0]).mean()
    with pytest.warns(UserWarning, match="no optimiser is attached") as caught:
        call(loss, views)
    (found,) = [w for w in caught if "no optimiser" in str(w.message)]
    assert found.filename == __file__


def test_of_a_transform() -> None:
    with pytest.warns(UserWarning, match="is not known") as caught:
        DiRATransform(v2.Compose([v2.RandomResizedCrop(8), _Own()]))
    assert caught[0].filename == __file__


class _Own(nn.Module):
    def forward(self, image):
        return image


def test_in_lightning(tmp_path) -> None:
    """The line of the step, not one of the Trainer."""

    class Mine(DiRASimSiam):
        def training_step(self, batch, index):
            loss = super().training_step(batch, index)
            return loss.detach() + 0 * sum(p.sum() for p in self.parameters())

    with pytest.warns(UserWarning, match="not differentiated") as caught:
        trainer(tmp_path, max_epochs=1).fit(Mine(), loader())
    (found,) = [w for w in caught if "not differentiated" in str(w.message)]
    assert found.filename == __file__
