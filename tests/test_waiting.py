"""A step reads no value of the device, except in the first steps."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from methods import tiny_backbone
from waiting import WaitingError, no_reading, on_device

from lightly_dira import DiRA, DiRALoss, DiRAViews
from lightly_dira.transforms import (
    BatchDistortion,
    DiRABatchTransform,
    NonLinearIntensity,
    Sequential,
    models_genesis_mixture,
    published_mixture,
    transvw_mixture,
)


def step(model: Any, optimizer: Any, dira: DiRA, way: str) -> None:
    a, b = torch.rand(2, 4, 3, 32, 32)
    targets = {i: torch.rand(4, 1, 32, 32) for i in (0, 1)}
    x, y = on_device(a), on_device(b)
    on_its_device = {index: on_device(target) for index, target in targets.items()}
    views = DiRAViews([x, y], on_its_device, target_view=None)
    loss = (model(x) - model(y)).square().mean()
    loss = dira(loss, views, view=x) if way == "view=" else dira(loss, views)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def test_the_device_notices_reading() -> None:
    x = on_device(torch.rand(3))
    assert float(x.sum()) == pytest.approx(float(x.values.sum()))
    with no_reading():
        x.add_(1)
        for read in (lambda: x.sum().item(), lambda: bool(x.any()), x.cpu, x.nonzero):
            with pytest.raises(WaitingError):
                read()
        torch.empty(3).copy_(x, non_blocking=True)
        with pytest.raises(WaitingError):
            torch.empty(3).copy_(x)


@pytest.fixture
def no_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Autocast does not know this device."""
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: False)
    monkeypatch.setattr(torch, "autocast", lambda *args, **options: nullcontext())


@pytest.mark.usefixtures("no_autocast")
@pytest.mark.parametrize("way", ["moved", "view="])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"restorative_start": 100, "adversarial_start": 100},
        {"adversarial_start": None, "restored_share": 0.25},
        {"conditional": True},
        {"loss": DiRALoss(balanced=True)},
    ],
    ids=str,
)
def test_steps_do_not_wait(way: str, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = tiny_backbone()
    dira = DiRA(model, **options)
    on_device(model)
    on_device(dira)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    dira.attach(optimizer)
    step(model, optimizer, dira, way)
    with no_reading():
        for _ in range(4):
            step(model, optimizer, dira, way)
    assert dira.steps == 5


@pytest.mark.usefixtures("no_autocast")
@pytest.mark.parametrize(
    ("dims", "mixture"),
    [
        (2, Sequential([NonLinearIntensity(), published_mixture(0.5, 0.2, 0.3)])),
        (3, transvw_mixture()),
        (3, models_genesis_mixture()),
    ],
)
def test_views_made_on_the_device_do_not_wait(
    dims: int, mixture: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Draws that name their device are made there by hand, as "meta" has none."""
    rand = torch.rand
    for name in ("arange", "linspace", "ones", "rand", "zeros"):
        monkeypatch.setattr(torch, name, _made_there(getattr(torch, name)))
    make_views = DiRABatchTransform(
        torch.nn.Identity(),
        distortion=BatchDistortion(mixture, spatial_dims=dims),
        spatial_dims=dims,
        kinds={torch.nn.Identity: "photometric"},
    )
    on_device(make_views)
    images = on_device(rand(4, 1, *(32,) * dims))
    with no_reading(), pytest.raises(WaitingError):
        make_views(images)  # values of the first batch are checked
    make_views(images)
    with no_reading():
        views = make_views(images)
    assert not torch.equal(views[0].values, views.target.values)


def _made_there(make: Any) -> Any:
    def made(*args: Any, device: Any = None, **options: Any) -> Any:
        values = make(*args, **options)
        return on_device(values) if str(device) == "meta" else values

    return made
