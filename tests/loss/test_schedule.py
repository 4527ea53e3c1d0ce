from __future__ import annotations

import copy
import io
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from methods import SimSiam, tiny_backbone

from lightly_dira import DiRA, DiRALoss, DiRAViews
from lightly_dira.features import FeaturePyramid
from lightly_dira.loss.schedule import Factors
from lightly_dira.training import Ramp, Schedule

numbers = st.floats(0, 100) | st.integers(0, 100)


@st.composite
def ramps(draw) -> Ramp:
    start, rise, fall = (draw(numbers) for _ in range(3))
    end = draw(st.just(math.inf) | st.floats(start, 300))
    return Ramp(start, rise, end, fall)


@given(ramps())
def test_ramps(ramp: Ramp) -> None:
    """Never negative, at most 1, and one hill: up, then down."""
    values = [ramp(step) for step in range(320)]
    assert all(0 <= value <= 1 for value in values)
    top = values.index(max(values))
    assert values[:top] == sorted(values[:top])
    assert values[top:] == sorted(values[top:], reverse=True)
    for step, value in enumerate(values):
        if not ramp.start <= step < ramp.end:
            assert value == 0
        elif ramp.start + ramp.rise <= step + 1 and step <= ramp.end - ramp.fall:
            assert value == 1


@given(
    st.integers(1, 1000),
    st.floats(0, 1),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_stepwise(total: int, first: float, second: float, ramp: float) -> None:
    restorative, adversarial = sorted((first, second))
    schedule = Schedule.stepwise(
        total, restorative=restorative, adversarial=adversarial, ramp=ramp
    )
    rows = [schedule(step) for step in range(total)]
    for column in zip(*rows, strict=True):
        assert list(column) == sorted(column), "never less"
    assert all(row.discriminative == 1 for row in rows)
    assert all(row.restorative >= row.adversarial for row in rows)
    assert sum(row.restorative > 0 for row in rows) == total - math.ceil(
        restorative * total
    )


@given(ramps(), ramps(), st.integers(1, 50))
def test_epochs(first: Ramp, second: Ramp, steps: int) -> None:
    """In an epoch of equal length the steps are the epochs' multiples."""
    schedule = Schedule(restorative=first, adversarial=second)
    for epoch in (0, 3):
        turned = schedule.from_epochs(steps, epoch * steps, epoch)
        for name in ("restorative", "adversarial"):
            one, other = getattr(schedule, name), getattr(turned, name)
            assert other.start == pytest.approx(one.start * steps)
            assert other.rise == pytest.approx(one.rise * steps)
            assert other.end == pytest.approx(one.end * steps)
        assert turned.with_state(turned.state()) == turned


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Ramp(-1), "at least 0"),
        (lambda: Ramp(math.nan), "at least 0"),
        (lambda: Ramp(0, 0, math.nan), "end must be a number"),
        (lambda: Ramp(5, end=4), "start must not lie behind end"),
        (lambda: Schedule.stepwise(0), "total_steps above 0"),
        (lambda: Schedule.stepwise(10, restorative=0.6), "restorative"),
        (lambda: Schedule(adversarial=lambda _: -1.0)(3), "-1.0 at step 3"),
        (lambda: Schedule(restorative=lambda _: math.nan)(3), "nan at step 3"),
    ],
)
def test_errors(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("short", [1, 2, 6])
@pytest.mark.parametrize("long", [6, 10])
@pytest.mark.parametrize("epoch", [0, 1, 2, 3])
def test_epochs_that_become_longer(short: int, long: int, epoch: int) -> None:
    """Found: a ramp that had ended rose again."""
    ramp = Ramp(start=1, rise=1)
    schedule = Schedule(adversarial=ramp).from_epochs(long, short * epoch, epoch)
    for step in range(2 * long):
        now = epoch + (step + 1) / long
        expected = min(1.0, max(0.0, now - 1))
        found = schedule(short * epoch + step).adversarial
        assert found == pytest.approx(expected, abs=1e-9)
    assert Schedule().with_state(schedule.state()) == schedule


def test_functions_have_no_epochs() -> None:
    with pytest.raises(TypeError, match=r"made of `Ramp`, got function for restora"):
        Schedule(restorative=lambda _: 1.0).from_epochs(10, 0, 0)


def batch(seed: int) -> DiRAViews:
    generator = torch.Generator().manual_seed(seed)
    x0, x1 = torch.rand(2, 4, 3, 16, 16, generator=generator)
    return DiRAViews([x0, x1], torch.rand(4, 1, 16, 16, generator=generator))


def start(schedule: Schedule):
    torch.manual_seed(0)
    model = SimSiam(tiny_backbone(), 16)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    loss = DiRALoss(adversarial_weight=0.5)
    return (
        model,
        optimizer,
        DiRA(model.backbone, optimizer, loss=loss, schedule=schedule),
    )


def train(model, optimizer, dira, steps) -> list[tuple[str, list[float]]]:
    seen = []
    for step in steps:
        views, stage = batch(step), dira.stage
        loss = dira(model.loss(*views), views)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seen.append((stage, [term.item() for term in dira.components]))
    return seen


ENDING = Schedule(
    discriminative=Ramp(end=9, fall=3),
    restorative=Ramp(1, 2, 8),
    adversarial=Ramp(2, 2, 5, 1),
)


def test_weights_and_stages_follow_the_schedule() -> None:
    model, optimizer, dira = start(ENDING)
    seen = train(model, optimizer, dira, range(9))
    stages = ["di", "dir", "dira", "dira", "dira", "dir", "dir", "dir", "di"]
    assert [stage for stage, _ in seen] == stages
    for step, (_, (total, discriminative, restorative, adversarial, own)) in enumerate(
        seen
    ):
        factors = ENDING(step)
        expected = (
            factors.discriminative * discriminative
            + 10 * factors.restorative * restorative
            + 0.5 * factors.adversarial * adversarial
            + own
        )
        assert total == pytest.approx(expected, rel=1e-5)
        assert (own > 0) == (factors.adversarial > 0)


def test_one_gradient_equals_the_weighted_terms() -> None:
    """In the middle of two ramps, against the formula of the loss."""
    model, optimizer, dira = start(ENDING)
    train(model, optimizer, dira, range(2))
    assert dira.stage == "dira"
    factors = dira.schedule(2)
    assert factors == Factors(1.0, 1.0, 0.5)
    views = batch(2)
    optimizer.zero_grad()
    parts = model, dira.head, dira.discriminator
    twin, head, critic = map(copy.deepcopy, parts)
    pyramid = FeaturePyramid(twin.backbone)
    dira(model.loss(*views), views).backward()
    loss = twin.loss(*views)
    restored = head(pyramid.take(views[0]), (16, 16))
    weights = DiRALoss(adversarial_weight=0.5)
    components = weights.reference_components(
        loss, restored, views.target, critic, factors
    )
    components.total.backward()
    for ours, theirs in zip(parts, (twin, head, critic), strict=True):
        for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("killed", [1, 3, 6])
def test_resumes_bit_for_bit(killed: int) -> None:
    """Also with a wrapper that was made without the schedule."""
    whole = train(*start(ENDING), range(9))
    first = start(ENDING)
    assert train(*first, range(killed)) == whole[:killed]
    file = io.BytesIO()
    torch.save([part.state_dict() for part in first], file)
    file.seek(0)
    states = torch.load(file)
    for schedule in (ENDING, Schedule.joint()):
        second = start(schedule)
        for part, state in zip(second, copy.deepcopy(states), strict=True):
            part.load_state_dict(state)
        assert train(*second, range(killed, 9)) == whole[killed:]
