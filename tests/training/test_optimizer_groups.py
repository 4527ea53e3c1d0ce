"""Optimisers of all kinds hold the head once."""

from __future__ import annotations

import copy
import pickle
import warnings

import pytest
import timm
import timm.optim
import torch
from followed import train
from loops import make_views
from methods import SimSiam, tiny_backbone
from torch import nn

from lightly_dira import DiRA, DiRAViews
from lightly_dira.training import Schedule
from lightly_dira.training.optimizer_groups import replace_parameters


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

    def test_groups_written_anew_in_mid_run(self) -> None:
        """Found: the head, which the new groups lacked, stood still in silence."""
        model = SimSiam(tiny_backbone(), 16)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        dira = DiRA(model.backbone, optimizer)
        train(model.backbone, optimizer, dira)
        optimizer.param_groups[0]["params"] = [*model.parameters()]
        with pytest.raises(RuntimeError, match=r"written anew.*dira\.attach"):
            train(model.backbone, optimizer, dira)
        dira.attach(optimizer)
        train(model.backbone, optimizer, dira)

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


class TestOptimisersAroundAnother:
    """Found: attribute errors of PyTorch's hooks."""

    def accelerate(self, inner):
        accelerate = pytest.importorskip("accelerate")
        return accelerate.Accelerator(cpu=True).prepare(inner)

    def schedulefree(self, inner):
        schedulefree = pytest.importorskip("schedulefree")
        return schedulefree.ScheduleFreeWrapper(inner, momentum=0.9)

    def lookahead(self, inner):
        return timm.optim.Lookahead(inner)

    def own(self, inner):
        class Own:
            def __init__(self) -> None:
                self.optimizer, self.param_groups = inner, inner.param_groups

            def step(self):
                inner.step()

        return Own()

    @pytest.mark.parametrize("kind", ["accelerate", "schedulefree", "lookahead", "own"])
    def test_the_inner_one_is_named_and_works(self, kind: str) -> None:
        backbone = tiny_backbone()
        inner = torch.optim.SGD(backbone.parameters(), lr=0.05)
        optimizer = getattr(self, kind)(inner)
        with pytest.raises(TypeError, match=r"dira\.attach\(optimizer\.\w+\)") as found:
            DiRA(backbone, optimizer)
        name = str(found.value).rpartition("attach(optimizer.")[2].partition(")")[0]
        dira = DiRA(backbone)
        dira.attach(getattr(optimizer, name))
        views = make_views(2)
        dira(backbone(views[0]).mean(), views).backward()
        if hasattr(optimizer, "train"):
            optimizer.train()
        optimizer.step()
        assert dira.steps == 1

    def test_another_optimiser_of_that_name(self) -> None:
        """timm's takes all parameters."""
        backbone = tiny_backbone()
        optimizer = timm.optim.create_optimizer_v2(backbone, "muon", lr=0.01)
        dira = DiRA(backbone, optimizer)
        train(backbone, optimizer, dira)
        assert dira.steps == 3

    @pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="of later PyTorch")
    def test_of_matrices_only(self) -> None:
        backbone = tiny_backbone()
        muon = torch.optim.Muon([nn.Parameter(torch.zeros(2, 2))])
        with pytest.raises(TypeError, match=r"matrices only.*dira\.attach\(adamw\)"):
            DiRA(backbone, muon)

    @pytest.mark.parametrize("optimizer", [None, 1, [torch.zeros(1)]])
    def test_no_optimiser(self, optimizer) -> None:
        with pytest.raises(TypeError, match=r"must be a torch\.optim\.Optimizer"):
            DiRA(tiny_backbone()).attach(optimizer)


class TestGroups:
    @pytest.mark.parametrize("decay", [0.65, 0.75])
    def test_layer_wise_decay(self, decay: float) -> None:
        """Found: the decoder trained at a hundredth of the rate."""
        vit = timm.create_model(
            "vit_tiny_patch16_224", embed_dim=32, num_heads=2, img_size=64
        )
        optimizer = timm.optim.create_optimizer_v2(
            vit, "adamw", lr=1e-3, layer_decay=decay
        )
        dira = DiRA(vit, optimizer)
        scales = self.factors(optimizer, dira, "lr_scale")
        assert min(scales[True] | scales[False]) >= decay - 1e-9

    @pytest.mark.parametrize("lr", [0.0, None])
    def test_rates_before_a_warm_up_or_without_any(self, lr) -> None:
        backbone = tiny_backbone()
        groups = [{"params": part.parameters()} for part in backbone[:3]]
        optimizer = torch.optim.SGD(groups, lr=0.1)
        for number, group in enumerate(optimizer.param_groups):
            group["lr"] = lr
            if lr is not None:
                group["initial_lr"] = 0.1 ** (2 - number)
        dira = DiRA(backbone, optimizer)
        own = {id(p) for p in dira.head.parameters()}
        held = [
            sum(id(p) in own for p in group["params"])
            for group in optimizer.param_groups
        ]
        assert held[2] == len(own)

    def test_rates_that_differ(self) -> None:
        backbone = tiny_backbone()
        groups = [
            {"params": part.parameters(), "lr": 0.1 * 0.5 ** (2 - number)}
            for number, part in enumerate(backbone[:3])
        ]
        optimizer = torch.optim.SGD(groups, lr=0.1)
        assert self.factors(optimizer, DiRA(backbone, optimizer), "lr") == {
            True: {0.1},
            False: {0.1},
        }

    def test_only_groups_of_the_backbone(self) -> None:
        backbone, head = tiny_backbone(), nn.Linear(16, 16)
        groups = [{"params": backbone.parameters()}, {"params": head.parameters()}]
        groups[1]["lr"] = 10.0
        optimizer = torch.optim.SGD(groups, lr=0.1)
        dira = DiRA(backbone, optimizer)
        assert self.factors(optimizer, dira, "lr") == {True: {0.1}, False: {0.1}}

    def test_weight_decay(self) -> None:
        backbone = tiny_backbone()
        weights = [p for p in backbone.parameters() if p.ndim > 1]
        vectors = [p for p in backbone.parameters() if p.ndim < 2]
        groups = [{"params": vectors, "weight_decay": 0.0}, {"params": weights}]
        optimizer = torch.optim.SGD(groups, lr=0.1, weight_decay=0.5)
        dira = DiRA(backbone, optimizer)
        decays = self.factors(optimizer, dira, "weight_decay")
        assert decays == {True: {0.5}, False: {0.0}}

    def test_chosen_by_the_user(self) -> None:
        backbone = tiny_backbone()
        optimizer = torch.optim.SGD(backbone.parameters(), lr=0.1)
        dira = DiRA(backbone)
        optimizer.add_param_group({"params": dira.head.parameters(), "lr": 1.0})
        dira.attach(optimizer)
        assert self.factors(optimizer, dira, "lr") == {True: {1.0}, False: {1.0}}

    def factors(self, optimizer, dira, key: str) -> dict[bool, set[float]]:
        """Returns a number of the groups that hold weights of the head, or vectors."""
        found: dict[bool, set[float]] = {True: set(), False: set()}
        own = {id(p): p.ndim > 1 for p in dira.head.parameters()}
        for group in optimizer.param_groups:
            for p in group["params"]:
                if id(p) in own:
                    found[own[id(p)]].add(group[key])
        return found


def test_parameters_take_the_places_of_others() -> None:
    old = {name: nn.Parameter(torch.rand(2)) for name in "abcd"}
    optimizer = torch.optim.SGD(old.values(), lr=0.1, momentum=0.9)
    sum(p.sum() for p in old.values()).backward()
    optimizer.step()
    states = {name: optimizer.state[p] for name, p in old.items()}
    new = {
        "first": old["b"],  # moved, as by a parametrisation
        "a": nn.Parameter(torch.rand(2)),
        "c": nn.Parameter(torch.rand(3)),
        "more": nn.Parameter(torch.rand(2)),
    }
    replace_parameters(optimizer, old, new)
    held = optimizer.param_groups[0]["params"]
    assert [id(p) for p in held] == [id(new["a"]), id(old["b"])]
    assert optimizer.state[new["a"]] is states["a"]
    assert len(optimizer.state) == 2


def test_optimisers_in_use_keep_off_the_head_in_stage_di() -> None:
    """Found: of two processes, AdamW decayed it by gradients of zero in its closure."""
    torch.manual_seed(0)
    model = nn.ModuleDict(dict(backbone=tiny_backbone()))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
    dira = DiRA(model["backbone"], optimizer, restorative_start=2)
    before = copy.deepcopy(dict(dira.head.named_parameters()))
    views = DiRAViews(torch.rand(2, 2, 3, 32, 32), torch.rand(2, 1, 32, 32))

    def closure():
        optimizer.zero_grad()
        loss = dira(model["backbone"](views[0]).mean(), views)
        loss = loss + 0 * sum(p.sum() for p in dira.head.parameters())
        loss.backward()
        return loss

    for step in (
        lambda: optimizer.step(closure),
        lambda: optimizer.step(closure=closure),
    ):
        step()
        for name, value in dira.head.named_parameters():
            assert torch.equal(value, before[name])
    assert dira.stage == "dira"
    optimizer.step(closure)
    moved = [not torch.equal(v, before[n]) for n, v in dira.head.named_parameters()]
    assert all(moved)
