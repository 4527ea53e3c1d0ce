"""What follows an optimiser: its kinds, its groups, and a state of tensors."""

from __future__ import annotations

import copy
import gc
import re
from pathlib import Path

import pytest
import timm
import timm.optim
import torch
from methods import SimSiam, tiny_backbone
from timm.utils import ModelEmaV2, ModelEmaV3
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from lightly_dira import DiRA, DiRALoss, DiRAViews
from lightly_dira.training.optimizer_groups import replace_parameters


def make_views(batch: int = 2, size: int = 32) -> DiRAViews:
    views = torch.rand(2, batch, 3, size, size)
    targets = torch.rand(2, batch, 1, size, size)
    return DiRAViews(views, dict(enumerate(targets)), target_view=None)


def made(**options):
    torch.manual_seed(0)
    backbone = tiny_backbone()
    optimizer = torch.optim.SGD(backbone.parameters(), lr=0.05)
    return backbone, optimizer, DiRA(backbone, optimizer, **options)


def train(backbone, optimizer, dira, steps: int = 3) -> None:
    for _ in range(steps):
        views = make_views()
        dira(backbone(views[0]).mean(), views).backward()
        optimizer.step()
        optimizer.zero_grad()


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
        views = make_views()
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


class TestStateOfTensors:
    """Found: a dict in the state, at which averages and safetensors failed."""

    def test_tensors_of_the_same_shapes_throughout(self) -> None:
        criterion = nn.BatchNorm1d(3)
        run = made(criterion=criterion)
        before = run[2].state_dict()
        train(*run)
        after = run[2].state_dict()
        assert list(before) == list(after)
        for name, value in after.items():
            assert isinstance(value, torch.Tensor)
            assert value.shape == before[name].shape
            assert value.dtype == before[name].dtype

    def test_safetensors(self) -> None:
        safetensors = pytest.importorskip("safetensors.torch")
        run = made(restorative_start=1)
        train(*run)
        again = made(restorative_start=1)
        saved = safetensors.save(run[2].state_dict())
        again[2].load_state_dict(safetensors.load(saved))
        assert again[2].steps == 3
        assert again[2].stage == run[2].stage
        again[0].load_state_dict(run[0].state_dict())
        for twin in (run, again):
            torch.manual_seed(1)
            train(*twin)
        for one, other in zip(run[2].parameters(), again[2].parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0)

    @pytest.mark.parametrize("kind", [ModelEmaV2, ModelEmaV3])
    def test_averages_of_timm(self, kind) -> None:
        backbone, optimizer, dira = made()
        model = nn.ModuleDict(dict(backbone=backbone, dira=dira))
        average = kind(model, decay=0.5)
        for _ in range(3):
            train(backbone, optimizer, dira, 1)
            average.update(model)
        assert dira.steps == 3

    def test_averages_by_hand(self) -> None:
        run = made()
        average = copy.deepcopy(run[2].state_dict())
        train(*run)
        for name, value in run[2].state_dict().items():
            if value.is_floating_point():
                average[name].lerp_(value, 0.5)
            else:
                average[name].copy_(value)
        again = made()[2]
        again.load_state_dict(average)
        assert again.steps == 3

    def test_averages_that_are_not_possible(self) -> None:
        state = made()[2].state_dict()
        half = {name: value.half() for name, value in state.items()}
        with pytest.raises(ValueError, match="copy those of integers"):
            made()[2].load_state_dict(half)

    def test_averages_of_torch(self) -> None:
        backbone, optimizer, dira = made()
        model = nn.ModuleDict(dict(backbone=backbone, dira=dira))
        average = AveragedModel(
            model, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=True
        )
        train(backbone, optimizer, dira)
        average.update_parameters(model)
        average.load_state_dict(copy.deepcopy(average.state_dict()))

    def test_accelerate(self, tmp_path) -> None:
        accelerate = pytest.importorskip("accelerate")
        backbone, optimizer, dira = made()
        accelerator = accelerate.Accelerator(cpu=True)
        accelerator.prepare(backbone, dira)
        train(backbone, optimizer, dira)
        accelerator.save_state(tmp_path)
        train(backbone, optimizer, dira)
        accelerator.load_state(tmp_path)
        assert dira.steps == 3

    def test_of_another_critic(self) -> None:
        state = made(conditional=True)[2].state_dict()
        with pytest.raises(RuntimeError, match=r"size mismatch for discriminator"):
            made()[2].load_state_dict(state)

    def test_adam_moves_with_the_critic(self) -> None:
        backbone, optimizer, dira = made()
        train(backbone, optimizer, dira)
        backbone.double()
        dira.double()
        moments = [
            value
            for state in dira._discriminator_step.adam.state.values()
            for name, value in state.items()
            if name != "step"
        ]
        assert moments
        assert all(value.dtype == torch.float64 for value in moments)
        for views in (make_views().to(torch.float64),):
            dira(backbone(views[0]).mean(), views).backward()
            optimizer.step()
        assert dira.steps == 4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("when", ["wrapped", "trained"])
def test_half_precision_after_wrapping(dtype, when: str) -> None:
    """Found: the critic died of its type. It stays in single precision."""
    backbone, optimizer, dira = made()
    if when == "trained":
        train(backbone, optimizer, dira)
    backbone.to(dtype)
    nn.ModuleList([dira]).to(dtype)  # as a part of another module, too
    for _ in range(2):
        views = make_views().to(dtype)
        dira(backbone(views[0]).mean(), views).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert {p.dtype for p in dira.head.parameters()} == {dtype}
    assert {p.dtype for p in dira.discriminator.parameters()} == {torch.float32}
    assert dira.components.total.isfinite()


@pytest.mark.parametrize("again", [False, True])
def test_a_wrapper_that_is_gone(again: bool) -> None:
    """Found: the next backward pass failed in it."""
    backbone, optimizer, dira = made()
    views = make_views()
    total = dira(backbone(views[0]).mean(), views)
    if again:
        dira = DiRA(backbone, optimizer)
    else:
        del dira
    gc.collect()
    backbone(views[0]).mean().backward()
    total.backward()
    optimizer.step()
    optimizer.zero_grad()
    if again:
        train(backbone, optimizer, dira)
        assert dira.steps == 4


def test_clipping_what_another_optimiser_trains() -> None:
    """Found: the projector of a second optimiser kept a norm of 650."""
    backbone, _, dira = made()
    projector, unused = nn.Linear(16, 4), nn.Linear(16, 4)
    torch.optim.SGD([*projector.parameters(), *unused.parameters()], lr=0.1)
    unused(torch.ones(1, 16)).sum().backward()
    views = make_views()
    loss = projector(backbone(views[0])).square().mean()
    (1e4 * dira(loss, views)).backward()
    dira.clip_grad_norm_(1.0)
    trained = [backbone, projector, dira.head]
    norms = [p.grad.norm() for m in trained for p in m.parameters()]
    torch.testing.assert_close(torch.stack(norms).norm(), torch.tensor(1.0))
    assert unused.weight.grad.norm() > 1


def test_clipping_leaves_the_hooks_alone() -> None:
    """Found: every step that clips hooked all parameters again."""
    backbone, optimizer, dira = made()
    handles = []
    for _ in range(3):
        views = make_views()
        dira(backbone(views[0]).mean(), views).backward()
        dira.clip_grad_norm_(1.0)
        optimizer.step()
        optimizer.zero_grad()
        handles.append([*dira._discriminator_step._hooks._handles])
    assert handles[2] == handles[1] == handles[0]


class TestGradientsOfThePast:
    """They end with a `zero_grad()`, whatever happened before it."""

    def test_a_first_backward_pass_that_fails(self) -> None:
        """Found: the critic's gradient was then that of two batches."""
        backbone, optimizer, dira = made()
        views = make_views()
        handle = backbone[0][0].weight.register_hook(lambda gradient: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            dira(backbone(views[0]).mean(), views).backward()
        handle.remove()
        optimizer.zero_grad()
        views = make_views()
        dira(backbone(views[0]).mean(), views).backward()
        assert float(dira._discriminator_step._scale) == 1

    @pytest.mark.parametrize("whose", ["optimizer", "model"])
    def test_a_pass_that_fails_later(self, whose: str) -> None:
        backbone, optimizer, dira = made()
        train(backbone, optimizer, dira, 1)
        handle = backbone[2][0].weight.register_hook(lambda gradient: 1 / 0)
        views = make_views()
        with pytest.raises(ZeroDivisionError):
            dira(backbone(views[0]).mean(), views).backward()
        handle.remove()
        (optimizer if whose == "optimizer" else backbone).zero_grad()
        dira(backbone(views[0]).mean(), views).backward()
        assert float(dira._discriminator_step._scale) == 1

    def test_a_projection_with_an_optimiser_of_its_own(self) -> None:
        backbone, optimizer, dira = made(adversarial_start=100)
        backbone.requires_grad_(False)
        projector = nn.Linear(16, 2)
        other = torch.optim.SGD(projector.parameters(), lr=0.1)
        for part in (*backbone.modules(), *dira.modules()):
            if isinstance(part, nn.BatchNorm2d):
                part.eval()
        optimizer.param_groups[0]["lr"] = 0.0
        views, norms = make_views(), []
        for _ in range(4):
            dira(projector(backbone(views[0])).mean(), views).backward()
            norms.append(torch.stack([p.grad.norm() for p in dira.head.parameters()]))
            optimizer.step()
            other.step()
            backbone.zero_grad()
            projector.zero_grad()
        for norm in norms[1:]:
            torch.testing.assert_close(norm, norms[0])

    @pytest.mark.parametrize("set_to_none", [True, False])
    @pytest.mark.parametrize("steps", [0, 2])
    def test_fails_after_some_steps(self, set_to_none: bool, steps: int) -> None:
        backbone, optimizer, dira = made()
        train(backbone, optimizer, dira, steps)
        handle = backbone[1][0].weight.register_hook(lambda gradient: 1 / 0)
        views = make_views()
        with pytest.raises(ZeroDivisionError):
            dira(backbone(views[0]).mean(), views).backward()
        handle.remove()
        optimizer.zero_grad(set_to_none)
        dira(backbone(views[0]).mean(), views).backward()
        gradients = [p.grad.clone() for p in dira.discriminator.parameters()]
        optimizer.zero_grad(set_to_none)
        dira(backbone(views[0]).mean(), views).backward()
        for p, gradient in zip(dira.discriminator.parameters(), gradients, strict=True):
            # A step of the statistics of BatchNorm lies between.
            torch.testing.assert_close(p.grad, gradient, rtol=0.1, atol=1e-3)

    def test_unfrozen_later(self) -> None:
        """Found: the head kept the gradients of earlier steps."""
        torch.manual_seed(0)
        model = SimSiam(tiny_backbone(), 16)
        model.backbone.requires_grad_(False)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        dira = DiRA(model.backbone, optimizer, adversarial_start=100)
        for part in (*model.modules(), *dira.modules()):
            if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
                part.eval()
        views, norms = make_views(), []
        for step in range(5):
            model.backbone.requires_grad_(step > 1)
            model.zero_grad()
            model.loss(*views).backward()
            dira(model.loss(*views), views).backward()
            norms.append(torch.stack([p.grad.norm() for p in dira.head.parameters()]))
            optimizer.step()
        for norm in norms[1:]:
            torch.testing.assert_close(norm, norms[0])


class TestFrozenInMidRun:
    @pytest.mark.parametrize("mode", ["eval", "train"])
    def test_restored_as_before(self, mode: str) -> None:
        """Found: no pass with gradients, and no cure fitted."""
        backbone, optimizer, dira = made()
        train(backbone, optimizer, dira)
        backbone.requires_grad_(False).train(mode == "train")
        projector = nn.Linear(16, 2)
        for _ in range(2):
            views = make_views()
            loss = projector(backbone(views[0])).mean()
            dira(loss, views).backward()
        before = dira.head.to_image.weight.detach().clone()
        optimizer.step()
        assert not torch.equal(dira.head.to_image.weight, before)


def test_where_the_third_line_stands_in_accumulation() -> None:
    """Found: divided before it, the method's loss weighs less; the README says so."""
    text = " ".join((Path(__file__).parents[2] / "README.md").read_text().split())
    line = re.search(r"`loss = (dira\(loss, batch\) / accumulation_steps)`", text)
    gradients = {}
    for how in ("whole", "as the README says", "before"):
        backbone, _, dira = made()
        for part in (*backbone.modules(), *dira.modules()):
            if isinstance(part, nn.BatchNorm2d):
                part.eval()
        torch.manual_seed(1)
        views = make_views(4)
        parts = [slice(4)] if how == "whole" else [slice(2), slice(2, 4)]
        for rows in parts:
            targets = {i: target[rows] for i, target in enumerate(views.targets)}
            batch = DiRAViews([v[rows] for v in views], targets, target_view=None)
            loss, accumulation_steps = backbone(batch[0]).mean(), len(parts)
            names = dict(dira=dira, loss=loss, batch=batch)
            names["accumulation_steps"] = accumulation_steps
            if how == "before":
                dira(loss / accumulation_steps, batch).backward()
            else:
                eval(line[1], names).backward()
        trained = (*backbone.parameters(), *dira.head.parameters())
        gradients[how] = torch.cat([p.grad.flatten() for p in trained])
    torch.testing.assert_close(gradients["as the README says"], gradients["whole"])
    assert not torch.allclose(gradients["before"], gradients["whole"], rtol=0.1)


@pytest.mark.parametrize("when", ["first", "later"])
@pytest.mark.parametrize("adversary", ["least_squares", "wasserstein"])
def test_an_overflow_under_a_scaler(when: str, adversary: str) -> None:
    """Found: bare runs skip the step, DiRA's ended."""
    backbone, optimizer, dira = made(loss=DiRALoss(adversary=adversary))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    bad = {"first": 0, "later": 3}[when]

    def step(*, overflow: bool) -> None:
        views = make_views()
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


@pytest.mark.parametrize("factor", [1.0, 4.0, 100.0])
def test_an_overflow_without_a_scaler(factor: float) -> None:
    backbone, optimizer, dira = made()
    for _ in range(3):
        views = make_views()
        (factor * dira(backbone(views[0]).mean(), views)).backward()
        optimizer.step()
        optimizer.zero_grad()
    views = make_views()
    with pytest.raises(ValueError, match="lower the learning rate"):
        dira(backbone(views[0]).mean() * torch.nan, views)
