"""What a loop does to its views is learned, and asked where no pass shows it."""

from __future__ import annotations

import math

import pytest
import torch
from methods import tiny_backbone
from torch import Tensor
from torchvision.transforms import v2

from lightly_dira import DiRA, DiRAViews
from lightly_dira.features.view_change import ViewChange
from lightly_dira.training import Schedule

MEAN, STD = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.3, 0.4])


def normalised(x: Tensor) -> Tensor:
    return (x - MEAN[:, None, None]) / STD[:, None, None]


CHANGES = {
    "none": lambda x: x,
    "a copy": lambda x: x.clone(),
    "normalised": normalised,
    "of -1 to 1": lambda x: 2 * x - 1,
    "of 0 to 255": lambda x: 255 * x,
    "repeated": lambda x: x[:, :1].repeat(1, 3, 1, 1),
    "repeated and normalised": lambda x: normalised(x[:, :1].expand(-1, 3, -1, -1)),
}


@pytest.mark.parametrize("how", CHANGES)
def test_learned_and_applied(how: str) -> None:
    torch.manual_seed(0)
    change, loop = ViewChange(3), CHANGES[how]
    for _ in range(3):
        view = torch.rand(4, 1 if "repeated" in how else 3, 16, 16)
        change.learn(loop(view), view)
    assert change.is_none == (how in ("none", "a copy", "repeated"))
    view = torch.rand(2, *view.shape[1:])
    close = dict(rtol=1e-5, atol=1e-6 * loop(view).abs().max().item())
    torch.testing.assert_close(change.apply(view), loop(view), **close)
    twin = ViewChange(3)
    twin.load_state(change.state())
    torch.testing.assert_close(twin.apply(view), loop(view), **close)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_no_change(dtype) -> None:
    change = ViewChange(3)
    for _ in range(3):
        view = torch.rand(4, 3, 16, 16)
        change.learn(view.to(dtype), view)
    assert change.is_none
    assert not change.is_unknown


@pytest.mark.parametrize(
    "loop",
    [
        lambda x: x / x.amax(dim=(1, 2, 3), keepdim=True),
        lambda x: (x - x.mean((2, 3), True)) / x.std((2, 3), keepdim=True),
        lambda x: (x - x.mean()) / x.std(),  # of the batch
        lambda x: x.flip(-1),
        lambda x: x**2,
        lambda x: x[..., 1:],
        lambda x: x * torch.rand(()),
        lambda x: v2.functional.gaussian_blur(x, [5, 5]),
    ],
)
def test_what_is_no_such_change(loop) -> None:
    change = ViewChange(3)
    for _ in range(3):
        view = torch.rand(4, 3, 16, 16) * torch.rand(4, 1, 1, 1)
        change.learn(loop(view), view)
    assert math.isinf(change.scale[0])
    with pytest.raises(RuntimeError, match="view=x"):
        change.apply(view)


def test_blank_channels() -> None:
    """They tell nothing; the others do."""
    for loop in (normalised, lambda x: x.clone()):
        change = ViewChange(3)
        for _ in range(3):
            view = torch.rand(4, 3, 16, 16)
            view[:, 2] = 0
            change.learn(loop(view), view)
        assert change.is_none == (loop is not normalised)
        assert not change.is_unknown
        if loop is normalised:
            with pytest.raises(RuntimeError, match="view=x"):
                change.apply(view)
        view = torch.rand(4, 3, 16, 16)
        change.learn(loop(view), view)
        torch.testing.assert_close(change.apply(view), loop(view))


def test_nothing_known() -> None:
    change = ViewChange(3)
    blank = torch.zeros(2, 3, 8, 8)
    change.learn(normalised(blank), blank)
    assert change.is_unknown
    view = torch.rand(2, 3, 8, 8)
    assert change.apply(view) is view
    with pytest.raises(RuntimeError, match=r"3 channels, and the view has 1.*view=x"):
        change.apply(view[:, :1])


class TestInALoop:
    """Found: only a match by value in the same process was remembered."""

    def train(self, loop, *, said: bool, steps: int = 2, start: float = 0):
        torch.manual_seed(0)
        backbone = tiny_backbone()
        optimizer = torch.optim.SGD(backbone.parameters(), lr=0.01)
        dira = DiRA(backbone, optimizer, restorative_start=start)
        for _ in range(steps):
            views = DiRAViews(torch.rand(2, 4, 3, 32, 32), torch.rand(4, 1, 32, 32))
            x = loop(views[0])
            dira(backbone(x).mean(), views, **dict(view=x) if said else {}).backward()
            optimizer.step()
        return dira, views

    @pytest.mark.parametrize("said", [False, True])
    @pytest.mark.parametrize("start", [0, 100])
    def test_validation_asks(self, said: bool, start: float) -> None:
        dira, views = self.train(normalised, said=said, start=start)
        twin = DiRA(tiny_backbone(), restorative_start=start)
        twin.load_state_dict(dira.state_dict())
        twin.schedule = Schedule.joint()
        for wrapper in (dira, twin):
            with torch.no_grad():
                if wrapper is twin or not start:
                    with pytest.raises(RuntimeError, match="view=x"):
                        wrapper(torch.zeros(()), views)
                wrapper(torch.zeros(()), views, view=normalised(views[0]))
            torch.testing.assert_close(
                wrapper.features.change.apply(views[0]), normalised(views[0])
            )

    @pytest.mark.parametrize("said", [False, True])
    def test_views_themselves(self, said: bool) -> None:
        dira, views = self.train(lambda x: x, said=said)
        with torch.no_grad():
            dira(torch.zeros(()), views)
        expected = (dira.restore(views[0]) - views.target).square().mean()
        torch.testing.assert_close(dira.components.restorative, expected)

    def test_a_conditional_critic_sees_what_the_backbone_saw(self) -> None:
        """Found: of views that the loop repeats, an error of channels."""
        backbone = tiny_backbone()
        optimizer = torch.optim.SGD(backbone.parameters(), lr=0.01)
        dira = DiRA(backbone, optimizer, conditional=True)
        shown = []
        dira.discriminator.register_forward_pre_hook(
            lambda module, args: shown.append(args[0])
        )
        views = DiRAViews(torch.rand(2, 4, 1, 32, 32), torch.rand(4, 1, 32, 32))
        x = normalised(views[0].repeat(1, 3, 1, 1))
        dira(backbone(x).mean(), views).backward()
        assert shown
        assert all(torch.equal(each[:, 1:], x) for each in shown)
