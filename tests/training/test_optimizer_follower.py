"""What follows an optimiser: replaced parameters, lost wrappers, past gradients."""

from __future__ import annotations

import copy
import gc
import re
from pathlib import Path

import pytest
import torch
from followed import Loop, made, train, warned_of
from loops import make_views
from methods import SimSiam, tiny_backbone
from torch import nn

from lightly_dira import DiRA, DiRAViews


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
        views = make_views(2).to(dtype)
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
    views = make_views(2)
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
    views = make_views(2)
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
        views = make_views(2)
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
        views = make_views(2)
        handle = backbone[0][0].weight.register_hook(lambda gradient: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            dira(backbone(views[0]).mean(), views).backward()
        handle.remove()
        optimizer.zero_grad()
        views = make_views(2)
        dira(backbone(views[0]).mean(), views).backward()
        assert float(dira._discriminator_step.scale) == 1

    @pytest.mark.parametrize("whose", ["optimizer", "model"])
    def test_a_pass_that_fails_later(self, whose: str) -> None:
        backbone, optimizer, dira = made()
        train(backbone, optimizer, dira, 1)
        handle = backbone[2][0].weight.register_hook(lambda gradient: 1 / 0)
        views = make_views(2)
        with pytest.raises(ZeroDivisionError):
            dira(backbone(views[0]).mean(), views).backward()
        handle.remove()
        (optimizer if whose == "optimizer" else backbone).zero_grad()
        dira(backbone(views[0]).mean(), views).backward()
        assert float(dira._discriminator_step.scale) == 1

    def test_a_projection_with_an_optimiser_of_its_own(self) -> None:
        backbone, optimizer, dira = made(adversarial_start=100)
        backbone.requires_grad_(False)
        projector = nn.Linear(16, 2)
        other = torch.optim.SGD(projector.parameters(), lr=0.1)
        for part in (*backbone.modules(), *dira.modules()):
            if isinstance(part, nn.BatchNorm2d):
                part.eval()
        optimizer.param_groups[0]["lr"] = 0.0
        views, norms = make_views(2), []
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
        views = make_views(2)
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
        views, norms = make_views(2), []
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
            views = make_views(2)
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


class TestParametersThatWereReplaced:
    def replace(self, how: str, run: Loop) -> None:
        dira, backbone = run.dira, run.model.backbone
        if how == "assigned":
            dira.load_state_dict(copy.deepcopy(dira.state_dict()), assign=True)
        elif how == "assigned to the backbone":
            backbone.load_state_dict(copy.deepcopy(backbone.state_dict()), assign=True)
        elif how == "a layer of the backbone":
            backbone[0][0] = copy.deepcopy(backbone[0][0])
        elif how == "a layer of the critic":
            dira.discriminator.layers[0] = copy.deepcopy(dira.discriminator.layers[0])
        elif how == "a layer of the head":
            dira.head.to_image = copy.deepcopy(dira.head.to_image)
        elif how == "weight norm":
            nn.utils.parametrizations.weight_norm(dira.discriminator.layers[-1])

    @pytest.mark.parametrize(
        "how",
        [
            "assigned",
            "assigned to the backbone",
            "a layer of the backbone",
            "a layer of the critic",
            "a layer of the head",
            "weight norm",
        ],
    )
    def test_an_error_until_attached_again(self, how: str) -> None:
        """Found: they were never trained again."""
        run = Loop()
        run.step(run.total(make_views(2)))
        self.replace(how, run)
        with pytest.raises(RuntimeError, match=r"replaced.*dira\.attach\(optimizer\)"):
            run.step(run.total(make_views(2)))
        if how == "assigned to the backbone":
            with pytest.raises(ValueError, match="no parameter of the backbone"):
                run.dira.attach(run.optimizer)
        if "backbone" in how:
            run.optimizer = torch.optim.SGD(run.model.parameters(), lr=0.05)
        run.dira.attach(run.optimizer)
        run.optimizer.zero_grad()
        before = {n: p.detach().clone() for n, p in run.dira.named_parameters()}
        for _ in range(3):
            run.step(run.total(make_views(2)))
        moved = [not torch.equal(p, before[n]) for n, p in run.dira.named_parameters()]
        assert sum(moved) >= len(moved) - 3  # biases in front of normalisations
        ids = [id(p) for group in run.optimizer.param_groups for p in group["params"]]
        assert len(ids) == len(set(ids))
        assert set(ids) >= {id(p) for p in run.dira.head.parameters()}

    def test_their_state_stays(self) -> None:
        run = Loop()
        run.optimizer.param_groups[0]["momentum"] = 0.9
        whole = copy.deepcopy((run.model, run.dira, run.optimizer))
        batches = [make_views(2) for _ in range(4)]
        for assigned, (model, dira, optimizer) in enumerate(
            [whole, (run.model, run.dira, run.optimizer)]
        ):
            for number, views in enumerate(batches):
                if assigned and number == 2:
                    state = copy.deepcopy(dira.state_dict())
                    dira.load_state_dict(state, assign=True)
                    dira.attach(optimizer)
                dira(model.loss(*views), views).backward()
                optimizer.step()
                optimizer.zero_grad()
        for one, other in zip(
            whole[1].parameters(), run.dira.parameters(), strict=True
        ):
            torch.testing.assert_close(one, other, rtol=0, atol=0)

    @pytest.mark.parametrize("part", ["head", "discriminator"])
    def test_all_of_a_parametrisation_are_trained(self, part: str) -> None:
        run = Loop()
        for module in getattr(run.dira, part).modules():
            if isinstance(module, nn.Conv2d):
                nn.utils.parametrizations.weight_norm(module)
        run.dira.attach(run.optimizer)
        ids = [id(p) for group in run.optimizer.param_groups for p in group["params"]]
        assert len(ids) == len(set(ids))
        before = {n: p.detach().clone() for n, p in run.dira.named_parameters()}
        for _ in range(3):
            run.step(run.total(make_views(2)))
        # The length of weights in front of a normalisation has no gradient.
        for name, parameter in run.dira.named_parameters():
            if name.endswith("original1"):
                assert not torch.equal(parameter, before[name]), name

    @pytest.mark.parametrize("part", ["head", "discriminator"])
    def test_spectral_norm_keeps_them(self, part: str) -> None:
        run = Loop()
        last = {"head": "to_image", "discriminator": "layers"}[part]
        layer = getattr(getattr(run.dira, part), last)
        layer = layer[-1] if isinstance(layer, nn.Sequential) else layer
        nn.utils.parametrizations.spectral_norm(layer)
        assert not warned_of(lambda _: run.step(run.total(make_views(2))), 3)


class Subclass(torch.optim.SGD):
    """A step of one's own around that of the base: PyTorch calls hooks in both."""

    def step(self, closure=None):
        for group in self.param_groups:
            nn.utils.clip_grad_norm_(group["params"], 1.0)
        return super().step(closure)


def test_steps_of_a_subclass_count_once() -> None:
    """Found: stages were half as long, and the critic took three times the steps."""
    torch.optim.SGD([torch.zeros(1, requires_grad=True)])  # it has hooks, too, now
    backbone = tiny_backbone()
    optimizer = Subclass(backbone.parameters(), lr=0.1)
    dira = DiRA(backbone, optimizer, restorative_start=1, adversarial_start=2)
    stages = []
    for _ in range(4):
        stages.append(dira.stage)
        train(backbone, optimizer, dira, steps=1)
    assert stages == ["di", "dir", "dira", "dira"]
    assert dira.steps == 4
    taken = [state["step"] for state in dira._discriminator_step.adam.state.values()]
    assert {float(step) for step in taken} == {2.0}


def test_a_step_that_does_not_touch_the_backbone() -> None:
    """Found: after `model.zero_grad()` it stepped the head again."""
    backbone, probe = tiny_backbone(), nn.Linear(4, 2)
    model = nn.ModuleList([backbone, probe])
    optimizer = torch.optim.Adam(model.parameters())
    dira = DiRA(backbone, optimizer)
    views = make_views(2)
    dira(backbone(views[0]).mean(), views).backward()
    optimizer.step()
    before = [
        p.detach().clone() for p in (*dira.head.parameters(), *backbone.parameters())
    ]
    model.zero_grad()
    probe(torch.rand(2, 4)).sum().backward()
    optimizer.step()
    assert all(
        map(torch.equal, before, [*dira.head.parameters(), *backbone.parameters()])
    )


def test_attached_to_another_optimiser() -> None:
    """Found: both held the head, and stepped it twice."""
    backbone = tiny_backbone()
    parameters = [*backbone.parameters()]
    one, two = (torch.optim.SGD(parameters[n::2], lr=0.1) for n in (0, 1))
    dira = DiRA(backbone, one)
    dira.attach(two)
    head = {id(p) for p in dira.head.parameters()}
    held = [{id(p) for g in o.param_groups for p in g["params"]} for o in (one, two)]
    assert not head & held[0]
    assert head <= held[1]


def test_an_optimiser_that_holds_the_critic() -> None:
    """Found: stepped against its loss, too, its weights grew without end."""
    backbone, optimizer, dira = made()
    optimizer.add_param_group({"params": [*dira.discriminator.parameters()]})
    views = make_views(2)
    dira(backbone(views[0]).mean(), views).backward()
    with pytest.raises(RuntimeError, match="holds parameters of the discriminator"):
        optimizer.step()
