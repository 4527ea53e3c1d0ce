"""Optimisers of all kinds hold the head once."""

from __future__ import annotations

import copy
import pickle
import warnings

import pytest
import torch
from loops import make_views
from methods import SimSiam, tiny_backbone
from torch import nn

from lightly_dira import DiRA
from lightly_dira.training import Schedule


class TestOptimisersThatAreNotFollowed:
    def loop(self, model, dira, step, count: int = 6) -> list[str]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(count):
                views = make_views(2)
                dira(model.loss(*views), views).backward()
                step()
                model.zero_grad()
        return [str(w.message) for w in caught if "takes no step" in str(w.message)]

    @pytest.mark.parametrize("start", [0, 100])
    def test_made_again(self, start: int) -> None:
        """Found: head, critic and stages stood still, in silence."""
        model = SimSiam(tiny_backbone(), 16)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        dira = DiRA(model.backbone, optimizer, restorative_start=start)
        other = torch.optim.SGD(model.parameters(), lr=0.1)
        assert len(self.loop(model, dira, other.step)) == 1
        dira.attach(other)
        steps = dira.steps
        assert not self.loop(model, dira, other.step)
        assert dira.steps == steps + 6

    def test_accumulation_is_no_reason(self) -> None:
        model = SimSiam(tiny_backbone(), 16)
        dira = DiRA(model.backbone, torch.optim.SGD(model.parameters(), lr=0.1))
        assert not self.loop(model, dira, lambda: None)

    @pytest.mark.parametrize(
        "how", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))]
    )
    def test_copies_train_by_themselves(self, how) -> None:
        model = SimSiam(tiny_backbone(), 16)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        dira = DiRA(model.backbone, optimizer)
        twin, twin_dira, twin_optimizer = how((model, dira, optimizer))
        before = [p.clone() for p in (*dira.parameters(), *twin_dira.parameters())]
        assert not self.loop(twin, twin_dira, twin_optimizer.step)
        assert (dira.steps, twin_dira.steps) == (0, 6)
        after = [*dira.parameters(), *twin_dira.parameters()]
        moved = [not torch.equal(a, b) for a, b in zip(before, after, strict=True)]
        half = len(moved) // 2
        assert not any(moved[:half])
        assert sum(moved[half:]) >= half - 3

    def test_copied_between_forward_and_step(self) -> None:
        model = SimSiam(tiny_backbone(), 16)
        dira = DiRA(model.backbone, torch.optim.SGD(model.parameters(), lr=0.1))
        views = make_views()
        loss = model.loss(*views)
        copy.deepcopy(dira)
        total = dira(loss, views)
        copy.deepcopy(dira)
        total.backward()

    def test_copied_apart(self) -> None:
        model = SimSiam(tiny_backbone(), 16)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        dira = DiRA(model.backbone, optimizer, restorative_start=100)
        twin, twin_dira = copy.deepcopy(model), copy.deepcopy(dira)
        optimizer = torch.optim.SGD(twin.parameters(), lr=0.1)
        assert len(self.loop(twin, twin_dira, optimizer.step)) == 1


class TestOptimisers:
    def test_clipping_with_the_head(self) -> None:
        """Found: `clip_grad_norm_(model.parameters())` leaves the head out."""
        model = SimSiam(tiny_backbone(), 16)
        dira = DiRA(model.backbone, torch.optim.SGD(model.parameters(), lr=0.1))
        views = make_views()
        (1e4 * dira(model.loss(*views), views)).backward()
        trained = [*model.parameters(), *dira.head.parameters()]
        before = torch.stack([p.grad.norm() for p in trained]).norm()
        torch.testing.assert_close(dira.clip_grad_norm_(0.5), before)
        after = torch.stack([p.grad.norm() for p in trained]).norm()
        torch.testing.assert_close(after, torch.tensor(0.5))
        with pytest.raises(RuntimeError, match="no optimiser is attached"):
            DiRA(model.backbone).clip_grad_norm_(1.0)

    @pytest.mark.parametrize("part", ["head", "discriminator"])
    def test_parts_replaced_after_wrapping(self, part: str) -> None:
        """Found: nobody would have trained them."""
        model = SimSiam(tiny_backbone(), 16)
        dira = DiRA(model.backbone, torch.optim.SGD(model.parameters(), lr=0.1))
        with pytest.raises(
            AttributeError, match=rf"DiRA\(backbone, optimizer, {part}="
        ):
            setattr(dira, part, copy.deepcopy(getattr(dira, part)))
        setattr(dira, part, nn.Sequential(getattr(dira, part)))

    def test_lbfgs_that_held_the_critic(self) -> None:
        """Found: it keeps the list of its parameters, and went on training them."""
        model = SimSiam(tiny_backbone(), 16)
        dira = DiRA(model.backbone)
        parts = nn.ModuleList([model, dira])
        optimizer = torch.optim.LBFGS(parts.parameters(), lr=1e-3, max_iter=2)
        dira.attach(optimizer)
        held = {id(p) for p in optimizer._params}
        assert not held & {id(p) for p in dira.discriminator.parameters()}
        assert held >= {id(p) for p in dira.head.parameters()}

    def test_stages_set_in_mid_run(self) -> None:
        """Found: forgotten on resuming."""
        model = SimSiam(tiny_backbone(), 16)
        dira = DiRA(model.backbone)
        dira.schedule = Schedule.starting(3, 9)
        twin = DiRA(model.backbone)
        twin.load_state_dict(dira.state_dict())
        assert twin.schedule == dira.schedule
        assert twin.schedule.adversarial.start == 9
        published = DiRA(model.backbone, adversarial_start=5)
        published.load_state_dict(DiRA(model.backbone).state_dict())
        assert published.schedule.adversarial.start == 5

    @pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
    def test_state_of_the_bare_method_loaded_first(self, kind) -> None:
        model = SimSiam(tiny_backbone(), 16)
        optimizer = kind(model.parameters(), lr=0.1)
        views = make_views()
        model.loss(*views).backward()
        optimizer.step()
        again = kind(model.parameters(), lr=0.1)
        again.load_state_dict(optimizer.state_dict())
        dira = DiRA(model.backbone, again)
        dira(model.loss(*views), views).backward()
        again.step()
        assert dira.steps == 1

    @pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
    def test_state_of_another_size(self, kind) -> None:
        """Found: PyTorch's error says nothing of the head."""
        model = SimSiam(tiny_backbone(), 16)
        bare = kind(model.parameters(), lr=0.1).state_dict()
        optimizer = kind(model.parameters(), lr=0.1)
        dira = DiRA(model.backbone, optimizer)
        with pytest.raises(ValueError, match=r"written without DiRA.*load it before"):
            optimizer.load_state_dict(bare)
        assert dira.steps == 0


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
