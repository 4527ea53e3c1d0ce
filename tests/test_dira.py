from __future__ import annotations

import copy
import io
import math
import pickle
import weakref

import pytest
import torch
import torchvision
from methods import METHODS, SimSiam, tiny_backbone
from torch import Tensor, nn
from torch.nn import functional as F

from lightly_dira import (
    DiRA,
    DiRALoss,
    DiRAViews,
    PatchDiscriminator,
    RestorationHead,
)
from lightly_dira.features import FeaturePyramid
from lightly_dira.loss import Schedule

named_parameters = pytest.mark.skipif(
    torch.__version__ < (2, 6), reason="optimisers take named parameters from 2.6 on"
)


def make_batch(size: int = 32, batch: int = 4, dtype: torch.dtype = torch.float32):
    views = torch.rand(2, batch, 3, size, size, dtype=dtype)
    target = torch.rand(batch, 1, size, size, dtype=dtype)
    return DiRAViews(list(views), target), torch.zeros(batch), ["name"] * batch


def make(optimizer_class=torch.optim.SGD, **options):
    torch.manual_seed(0)
    model = SimSiam(tiny_backbone(), 16)
    optimizer = optimizer_class(model.parameters(), lr=0.05)
    return model, optimizer, DiRA(model.backbone, optimizer, **options)


def state_of(*parts) -> list[Tensor]:
    values = []
    for part in parts:
        state = part.state_dict() if hasattr(part, "state_dict") else part
        values += [v.clone() for v in _tensors(state)]
    return values


def _tensors(value):
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from _tensors(part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _tensors(part)


def assert_same(first: list[Tensor], second: list[Tensor]) -> None:
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)


class TestOneBackwardEqualsTwo:
    """Against the published loop, written out: two optimisers, two passes."""

    @staticmethod
    def generator(adversary: str, logits: Tensor) -> Tensor:
        if adversary == "least_squares":
            return F.mse_loss(logits, torch.ones_like(logits))
        if adversary == "cross_entropy":
            ones = torch.ones_like(logits)
            return F.binary_cross_entropy_with_logits(logits, ones)
        return -logits.mean()

    @staticmethod
    def discriminator(adversary: str, real: Tensor, fake: Tensor) -> Tensor:
        if adversary == "least_squares":
            return 0.5 * (((real - 1) ** 2).mean() + (fake**2).mean())
        if adversary == "cross_entropy":
            probability_real, probability_fake = real.sigmoid(), fake.sigmoid()
            terms = probability_real.log().mean() + (1 - probability_fake).log().mean()
            return -0.5 * terms
        return 0.5 * ((1 - real).clamp(min=0).mean() + (1 + fake).clamp(min=0).mean())

    @staticmethod
    def features(backbone: nn.Sequential, x: Tensor) -> tuple[list[Tensor], Tensor]:
        maps = []
        for stage in backbone[:3]:
            x = stage(x)
            maps.append(x)
        return maps, backbone[3:](x)

    @pytest.mark.parametrize("adversary", ["least_squares", "cross_entropy", "hinge"])
    def test_equal_to_alternating_loop(self, adversary: str) -> None:
        torch.manual_seed(1)
        ours = SimSiam(tiny_backbone(), 16).double()
        theirs = copy.deepcopy(ours)
        batches = [make_batch(dtype=torch.float64) for _ in range(5)]

        def sgd(parameters):
            return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=1e-4)

        optimizer = sgd(ours.parameters())
        loss = DiRALoss(adversarial_weight=0.5, adversary=adversary)
        dira = DiRA(ours.backbone, optimizer, loss=loss, discriminator_lr=2e-3)
        head = copy.deepcopy(dira.head)
        critic = copy.deepcopy(dira.discriminator)
        start = state_of(ours, dira.head, dira.discriminator)

        for batch in batches:
            (x0, x1), *_ = batch
            total = dira(ours.loss(x0, x1), batch)
            optimizer.zero_grad()
            total.backward()
            optimizer.step()

        generator_step = sgd([*theirs.parameters(), *head.parameters()])
        critic_step = torch.optim.Adam(critic.parameters(), 2e-3, betas=(0.5, 0.999))
        for views, *_ in batches:
            x0, x1 = views
            maps, y0 = self.features(theirs.backbone, x0)
            _, y1 = self.features(theirs.backbone, x1)
            z0, z1 = theirs.projection_head(y0), theirs.projection_head(y1)
            p0, p1 = theirs.prediction_head(z0), theirs.prediction_head(z1)
            similarity = F.cosine_similarity(z0.detach(), p1).mean()
            similarity = similarity + F.cosine_similarity(z1.detach(), p0).mean()
            restored = head(maps, x0.shape[2:])
            generator_loss = (
                -0.5 * similarity
                + 10 * ((restored - views.target) ** 2).mean()
                + 0.5 * self.generator(adversary, critic(restored))
            )
            generator_step.zero_grad()
            generator_loss.backward()
            generator_step.step()

            critic_loss = self.discriminator(
                adversary, critic(views.target), critic(restored.detach())
            )
            critic_step.zero_grad()
            critic_loss.backward()
            critic_step.step()

        end = state_of(ours, dira.head, dira.discriminator)
        expected = state_of(theirs, head, critic)
        for before, mine, reference in zip(start, end, expected, strict=True):
            torch.testing.assert_close(mine, reference, rtol=0, atol=1e-8)
            assert not torch.equal(before, mine)


class TestBaseMethodUnchanged:
    @pytest.mark.parametrize("method", METHODS)
    def test_stage_di_is_bit_for_bit_the_base_method(self, method) -> None:
        def run(wrapped: bool):
            torch.manual_seed(2)
            backbone = nn.Sequential(
                *list(torchvision.models.resnet18().children())[:-1]
            )
            model = method(backbone, 512)
            keys = list(model.state_dict())
            batches = [make_batch() for _ in range(5)]
            optimizer = torch.optim.SGD(model.parameters(), lr=0.06, momentum=0.9)
            dira = None
            if wrapped:
                dira = DiRA(model.backbone, optimizer, restorative_start=5)
            losses = []
            for batch in batches:
                x0, x1 = batch[0]
                loss = model.loss(x0, x1)
                if dira is not None:
                    assert dira.stage == "di"
                    assert dira(loss, batch) is loss
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.detach())
            assert list(model.state_dict()) == keys
            return losses, state_of(model), torch.get_rng_state(), dira

        losses, state, random_state, _ = run(wrapped=False)
        new_losses, new_state, new_random_state, dira = run(wrapped=True)
        assert_same(losses, new_losses)
        assert_same(state, new_state)
        assert torch.equal(random_state, new_random_state)
        assert dira is not None
        assert dira.stage == "dira"

    def test_construction_leaves_no_trace(self) -> None:
        model = SimSiam(tiny_backbone(), 16)
        model.backbone[1].eval()
        modes = [m.training for m in model.modules()]
        state, keys = state_of(model), list(model.state_dict())
        random_state = torch.get_rng_state()
        DiRA(model.backbone, torch.optim.SGD(model.parameters(), lr=0.1))
        assert torch.equal(random_state, torch.get_rng_state())
        assert_same(state, state_of(model))
        assert list(model.state_dict()) == keys
        assert [m.training for m in model.modules()] == modes


class TestStages:
    def test_stages_follow_the_optimizers_steps(self) -> None:
        model, optimizer, dira = make(restorative_start=2, adversarial_start=4)
        stages, components = [], []
        for _ in range(6):
            batch = make_batch()
            stages.append(dira.stage)
            loss = dira(model.loss(*batch[0]), batch)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            components.append(dira.components)
        assert stages == ["di"] * 2 + ["dir"] * 2 + ["dira"] * 2
        assert [bool(c.restorative) for c in components] == [False] * 2 + [True] * 4
        assert [bool(c.adversarial) for c in components] == [False] * 4 + [True] * 2
        assert [bool(c.discriminator) for c in components] == [False] * 4 + [True] * 2

    def test_adversary_never_starts_before_the_restoration(self) -> None:
        *_, dira = make(restorative_start=1, adversarial_start=0)
        assert dira.stage == "di"
        dira._count(1)
        assert dira.stage == "dira"

    def test_never(self) -> None:
        *_, dira = make(adversarial_start=None)
        dira._count(10**9)
        assert dira.stage == "dir"

    def test_dir_leaves_the_discriminator_alone(self) -> None:
        model, optimizer, dira = make(adversarial_start=math.inf)
        before = state_of(dira.discriminator)
        batch = make_batch()
        dira(model.loss(*batch[0]), batch).backward()
        optimizer.step()
        assert_same(before, state_of(dira.discriminator))

    def test_without_an_adversary_there_is_no_critic(self) -> None:
        model, optimizer, dira = make(adversarial_start=None)
        assert dira.discriminator is None
        assert not [name for name in dira.state_dict() if "discriminator" in name]
        dira.schedule = Schedule.joint()
        assert dira.stage == "dir"
        batch = make_batch()
        copies = copy.deepcopy((model, optimizer, dira))
        other = make(adversarial_start=None)
        for part, twin in zip((model, optimizer, dira), other, strict=True):
            twin.load_state_dict(copy.deepcopy(part.state_dict()))
        for own, wrapped, wrapper in ((model, optimizer, dira), copies, other):
            for _ in range(3):
                wrapped.zero_grad()
                wrapper(own.loss(*batch[0]), batch).backward()
                wrapped.step()
            assert wrapper.steps == 3
            assert wrapper.components.discriminator == 0
            assert wrapper.restore(batch[0][0]).shape[1] == 1
        assert_same(state_of(dira.head), state_of(copies[2].head))
        assert_same(state_of(dira.head), state_of(other[2].head))
        with pytest.raises(AttributeError, match="would never be trained"):
            dira.discriminator = PatchDiscriminator()
        with pytest.raises(ValueError, match="Leave one of the two out"):
            make(adversarial_start=None, discriminator=PatchDiscriminator())

    def test_a_pyramid_of_another_network(self) -> None:
        with pytest.raises(ValueError, match="watches another network"):
            DiRA(tiny_backbone(), features=FeaturePyramid(tiny_backbone()))

    def test_di_holds_no_feature_map(self) -> None:
        model, _, dira = make(restorative_start=10)
        seen: list[weakref.ref] = []
        model.backbone[1].register_forward_hook(
            lambda module, args, output: seen.append(weakref.ref(output))
        )
        batch = make_batch()
        loss = model.loss(*batch[0])
        loss.backward()
        del loss
        assert all(reference() is None for reference in seen)
        assert dira.stage == "di"


class TestOptimizerCare:
    @staticmethod
    def held(optimizer) -> list[int]:
        return [id(p) for group in optimizer.param_groups for p in group["params"]]

    @pytest.mark.parametrize("when", ["before", "after"])
    def test_scheduler(self, when: str) -> None:
        model = SimSiam(tiny_backbone(), 16)
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)

        def schedule():
            return torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)

        scheduler = schedule() if when == "before" else None
        dira = DiRA(model.backbone, optimizer)
        scheduler = scheduler or schedule()
        batch = make_batch()
        dira(model.loss(*batch[0]), batch).backward()
        optimizer.step()
        scheduler.step()
        assert [group["lr"] for group in optimizer.param_groups] == [0.5]
        assert {id(p) for p in dira.head.parameters()} <= set(self.held(optimizer))

    def test_every_parameter_once(self) -> None:
        model = SimSiam(tiny_backbone(), 16)
        head = RestorationHead([4, 8, 16])
        both = nn.ModuleList([model, head])
        optimizer = torch.optim.SGD(both.parameters(), lr=0.1)
        dira = DiRA(model.backbone, optimizer, head=head)
        DiRA.attach(dira, optimizer)
        expected = [*model.parameters(), *dira.head.parameters()]
        assert sorted(self.held(optimizer)) == sorted(map(id, expected))

    @named_parameters
    def test_discriminator_is_taken_out(self) -> None:
        model, _, dira = make()
        parts = nn.ModuleList([model, dira])
        optimizer = torch.optim.SGD(parts.named_parameters(), lr=0.1)
        dira.attach(optimizer)
        expected = [*model.parameters(), *dira.head.parameters()]
        assert sorted(self.held(optimizer)) == sorted(map(id, expected))
        (group,) = optimizer.param_groups
        assert len(group["param_names"]) == len(group["params"])

    def test_weight_decay_groups(self) -> None:
        model = SimSiam(tiny_backbone(), 16)
        weights = [p for p in model.parameters() if p.ndim > 1]
        vectors = [p for p in model.parameters() if p.ndim == 1]
        optimizer = torch.optim.SGD(
            [
                {"params": vectors, "weight_decay": 0.0},
                {"params": weights, "weight_decay": 1e-4},
            ],
            lr=0.1,
        )
        dira = DiRA(model.backbone, optimizer)
        decayed = {id(p) for p in optimizer.param_groups[1]["params"]}
        for parameter in dira.head.parameters():
            assert (id(parameter) in decayed) == (parameter.ndim > 1)

    @named_parameters
    def test_parameter_names_stay_in_step(self) -> None:
        model = SimSiam(tiny_backbone(), 16)
        optimizer = torch.optim.SGD(model.named_parameters(), lr=0.1)
        DiRA(model.backbone, optimizer)
        (group,) = optimizer.param_groups
        assert len(group["param_names"]) == len(group["params"])
        assert len(set(group["param_names"])) == len(group["params"])

    def discriminator_after(self, loop) -> list[Tensor]:
        torch.manual_seed(0)
        model = SimSiam(tiny_backbone(), 16).double()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        dira = DiRA(model.backbone, optimizer)
        model.eval()  # the batches of one window must not depend on one another
        dira.head.eval()
        torch.manual_seed(3)
        batches = [make_batch(dtype=torch.float64) for _ in range(4)]
        loop(model, optimizer, dira, batches)
        return state_of(dira.discriminator)

    def test_scaled_loss(self) -> None:
        def loop(scale: float):
            def run(model, optimizer, dira, batches):
                loss = dira(model.loss(*batches[0][0]), batches[0]) * scale
                loss.backward()
                optimizer.step()

            return run

        plain = self.discriminator_after(loop(1))
        assert_same(plain, self.discriminator_after(loop(1024)))

    def test_accumulated_loss_is_the_mean(self) -> None:
        def accumulated(model, optimizer, dira, batches):
            for batch in batches:
                (dira(model.loss(*batch[0]), batch) / 4).backward()
            optimizer.step()

        def summed(model, optimizer, dira, batches):
            sum(dira(model.loss(*b[0]), b) for b in batches).backward()
            optimizer.step()

        def by_hand(model, optimizer, dira, batches):
            for batch in batches:
                dira(model.loss(*batch[0]), batch).backward()
            for parameter in dira.discriminator.parameters():
                parameter.grad /= 4
            torch.optim.Adam(
                dira.discriminator.parameters(), lr=2e-4, betas=(0.5, 0.999)
            ).step()

        expected = self.discriminator_after(by_hand)
        for loop in (accumulated, summed):
            for a, b in zip(expected, self.discriminator_after(loop), strict=True):
                torch.testing.assert_close(a, b, rtol=0, atol=1e-12)

    @pytest.mark.parametrize("set_to_none", [True, False])
    @pytest.mark.parametrize("zero_first", [True, False])
    def test_skipped_step(self, set_to_none: bool, zero_first: bool) -> None:
        """As a GradScaler does: no step, then a zero_grad, wherever the loop has it."""

        def loop(skip: bool):
            def run(model, optimizer, dira, batches):
                for number, batch in enumerate(batches[:2]):
                    if number == 0 and not skip:
                        continue
                    loss = dira(model.loss(*batch[0]), batch)
                    if zero_first:
                        optimizer.zero_grad(set_to_none)
                    (loss * (65536 if number == 0 else 2)).backward()
                    if number == 0:
                        for parameter in dira.discriminator.parameters():
                            parameter.grad.fill_(math.inf)
                    else:
                        optimizer.step()
                    if not zero_first:
                        optimizer.zero_grad(set_to_none)

            return run

        clean = self.discriminator_after(loop(skip=False))
        assert_same(clean, self.discriminator_after(loop(skip=True)))

    @pytest.mark.parametrize("fused", [False, True])
    def test_grad_scaler_skips_both(self, fused: bool) -> None:
        """A fused optimiser's step() is called all the same, with an attribute set."""
        torch.manual_seed(0)
        model = SimSiam(tiny_backbone(), 16)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, fused=fused)
        dira = DiRA(model.backbone, optimizer)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        trained = [*model.parameters(), *dira.head.parameters()]
        trained += dira.discriminator.parameters()
        for overflow in (True, False, True, False):
            steps, critic = dira.steps, state_of(dira.discriminator)
            before = [parameter.detach().clone() for parameter in trained]
            batch = make_batch()
            scaler.scale(dira(model.loss(*batch[0]), batch)).backward()
            if overflow:
                next(model.parameters()).grad.fill_(math.inf)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            assert dira.steps == steps + (not overflow)
            for part in (model.prediction_head, dira.head, dira.discriminator):
                weight = next(part.parameters())
                old = before[[id(p) for p in trained].index(id(weight))]
                assert torch.equal(old, weight) == overflow
            after = state_of(dira.discriminator)
            assert all(map(torch.equal, critic, after)) == overflow
            assert all(parameter.isfinite().all() for parameter in trained)

    def test_overflow_of_the_discriminator_alone_harms_nothing(self) -> None:
        model, optimizer, dira = make()
        batch = make_batch()
        dira(model.loss(*batch[0]), batch).backward()
        next(dira.discriminator.parameters()).grad[0] = math.nan
        before = state_of(dira.discriminator)
        optimizer.step()
        assert_same(before, state_of(dira.discriminator))

    def test_resume_continues_bit_for_bit(self) -> None:
        def steps(model, optimizer, dira, batches):
            for batch in batches:
                loss = dira(model.loss(*batch[0]), batch)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()

        def everything(model, optimizer, dira):
            return state_of(model, optimizer, dira)

        options = {"restorative_start": 1, "adversarial_start": 2}
        torch.manual_seed(4)
        batches = [make_batch() for _ in range(8)]
        run = make(torch.optim.Adam, **options)
        steps(*run, batches[:4])
        file = io.BytesIO()
        torch.save([part.state_dict() for part in run], file)
        steps(*run, batches[4:])

        resumed = make(torch.optim.Adam, **options)
        file.seek(0)
        for part, state in zip(
            resumed, torch.load(file, weights_only=True), strict=True
        ):
            part.load_state_dict(state)
        assert resumed[2].steps == 4
        assert resumed[2].stage == "dira"
        steps(*resumed, batches[4:])
        assert_same(everything(*run), everything(*resumed))

    def test_models_zero_grad_is_enough(self) -> None:
        gradients = []
        for clear in ("model", "optimizer"):
            model, optimizer, dira = make()
            torch.manual_seed(1)
            for _ in range(3):
                (model if clear == "model" else optimizer).zero_grad()
                batch = make_batch()
                dira(model.loss(*batch[0]), batch).backward()
                gradients.append([p.grad.clone() for p in dira.head.parameters()])
                optimizer.step()
        assert_same(gradients[2], gradients[5])

    def test_accumulates_with_a_frozen_head(self) -> None:
        model, _, dira = make()
        dira.head.requires_grad_(False)
        for _ in range(4):
            batch = make_batch()
            (dira(model.loss(*batch[0]), batch) / 4).backward()
        assert dira._discriminator_step.scale == 1

    def test_loaded_state_is_a_copy(self) -> None:
        model, optimizer, dira = make()
        batch = make_batch()
        dira(model.loss(*batch[0]), batch).backward()
        optimizer.step()
        twin = make()[2]
        twin.load_state_dict(dira.state_dict())
        before = state_of(twin)
        dira(model.loss(*batch[0]), batch).backward()
        optimizer.step()
        assert_same(before, state_of(twin))

    def test_dropped_wrapper_is_gone(self) -> None:
        model, optimizer, dira = make()
        reference = weakref.ref(dira)
        del dira
        assert reference() is None
        model.loss(*make_batch()[0]).backward()
        optimizer.step()
        assert not model.backbone._forward_pre_hooks


class TestCopies:
    def test_backbone_copies_are_free(self) -> None:
        model, _, dira = make()
        copies = [
            copy.deepcopy(model).backbone,
            pickle.loads(pickle.dumps(model.backbone)),
        ]
        file = io.BytesIO()
        torch.save(model.backbone, file)
        file.seek(0)
        copies.append(torch.load(file, weights_only=False))
        x = torch.rand(2, 3, 32, 32)
        for twin in copies:
            assert torch.equal(twin(x), model.backbone(x))
            dira.features.forget()
            twin(x)
            with pytest.raises(RuntimeError, match="no pass"):
                dira.features.take(x)

    def test_wrapper_pickles(self) -> None:
        *_, dira = make()
        twin = pickle.loads(pickle.dumps(dira))
        assert_same(state_of(dira), state_of(twin))

    def test_saved_backbone_loads_without_this_library(self) -> None:
        model, *_ = make()
        assert b"lightly_dira" not in pickle.dumps(nn.Sequential(*model.backbone))
        assert b"lightly_dira" not in pickle.dumps(model.backbone)


class TestPrecision:
    def test_called_outside_autocast(self) -> None:
        model, optimizer, dira = make()
        batch = make_batch()
        with torch.autocast("cpu", torch.bfloat16):
            loss = model.loss(*batch[0])
        dira(loss, batch).backward()
        optimizer.step()
        assert all(p.grad is not None for p in dira.head.parameters())

    def test_called_inside_autocast(self) -> None:
        model, _, dira = make()
        batch = make_batch()
        with torch.autocast("cpu", torch.bfloat16):
            loss = dira(model.loss(*batch[0]), batch)
        assert loss.dtype == torch.float32
        loss.backward()


class TestErrors:
    def test_no_target(self) -> None:
        model, _, dira = make()
        x0, x1 = make_batch()[0]
        with pytest.raises(ValueError, match=r"DiRATransform\(transform\)"):
            dira(model.loss(x0, x1), ([x0, x1], torch.zeros(4)))

    def test_no_target_is_announced_in_stage_di(self) -> None:
        model, _, dira = make(restorative_start=1)
        x0, x1 = make_batch()[0]
        with pytest.warns(UserWarning, match=r"DiRATransform\(transform\)"):
            dira(model.loss(x0, x1), ([x0, x1], torch.zeros(4)))

    @pytest.mark.parametrize("shape", [(4, 1, 16, 16), (4, 3, 32, 32), (3, 1, 32, 32)])
    def test_target_of_other_shape(self, shape) -> None:
        model, _, dira = make()
        (x0, x1), *_ = make_batch()
        loss = model.loss(x0, x1)
        with pytest.raises(ValueError, match=r"expected targets of shape \(4, 1, 32"):
            dira(loss, DiRAViews([x0, x1], torch.rand(shape)))

    @pytest.mark.parametrize("loss", [torch.rand(4), torch.rand(0), 0.5])
    def test_loss_is_no_scalar(self, loss) -> None:
        *_, dira = make()
        with pytest.raises(ValueError, match="scalar"):
            dira(loss, make_batch())

    def test_non_finite_term_is_named(self) -> None:
        model, _, dira = make()
        batch = make_batch()
        loss = model.loss(*batch[0])
        with pytest.raises(ValueError, match="the discriminative loss is not finite"):
            dira(loss * math.nan, batch)
        batch[0].target[0, 0, 0, 0] = math.inf
        loss = model.loss(*batch[0])
        with pytest.raises(ValueError, match="restorative and discriminator loss"):
            dira(loss, batch)

    def test_backbone_never_saw_the_views(self) -> None:
        model, _, dira = make()
        loss = model.loss(*make_batch()[0])
        with pytest.raises(RuntimeError, match=r"never saw the view.*Pass `dira`"):
            dira(loss, make_batch())

    def test_no_optimizer_is_announced(self) -> None:
        backbone = tiny_backbone()
        (x0, _), *_ = batch = make_batch()
        dira = DiRA(backbone)
        with pytest.warns(UserWarning, match=r"dira\.attach\(optimizer\)"):
            dira(backbone(x0).mean(), batch)

    def test_model_moved_without_its_wrapper(self) -> None:
        model, _, dira = make()
        model.double()
        batch = make_batch(dtype=torch.float64)
        with pytest.raises(RuntimeError, match=r"torch\.float64.*dira\.to\("):
            dira(model.loss(*batch[0]), batch)

    def test_called_twice(self) -> None:
        model, _, dira = make()
        batch = make_batch()
        loss = model.loss(*batch[0])
        dira(loss, batch)
        with pytest.raises(RuntimeError, match="no pass with gradients"):
            dira(loss, batch)

    def test_foreign_optimizer(self) -> None:
        backbone = tiny_backbone()
        optimizer = torch.optim.SGD(tiny_backbone().parameters(), lr=0.1)
        with pytest.raises(ValueError, match="no parameter of the backbone"):
            DiRA(backbone, optimizer)
        with pytest.raises(TypeError, match=r"torch\.optim\.Optimizer"):
            DiRA(backbone, "sgd")

    @pytest.mark.parametrize(
        ("option", "value"),
        [
            ("target_channels", 0),
            ("discriminator_lr", 0.0),
            ("restorative_start", -1),
            ("adversarial_start", math.nan),
        ],
    )
    def test_numbers_out_of_range(self, option: str, value: float) -> None:
        with pytest.raises(ValueError, match=option):
            make(**{option: value})

    def test_no_module(self) -> None:
        with pytest.raises(TypeError, match=r"model\.backbone"):
            DiRA("resnet18")


def test_restore_changes_nothing() -> None:
    model, _, dira = make()
    images = torch.rand(2, 3, 40, 40)
    state, modes = state_of(model, dira), [m.training for m in model.modules()]
    restored = dira.restore(images)
    assert restored.shape == (2, 1, 40, 40)
    assert not restored.requires_grad
    assert_same(state, state_of(model, dira))
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(restored, dira.restore(images))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_backbones_of_other_precision(dtype: torch.dtype) -> None:
    backbone = tiny_backbone().to(dtype)
    optimizer = torch.optim.SGD(backbone.parameters(), lr=0.1)
    dira = DiRA(backbone, optimizer)
    views = torch.rand(2, 3, 3, 32, 32, dtype=dtype)
    loss = sum(backbone(x).float().mean() for x in views)
    dira(loss, DiRAViews(views, torch.rand(3, 1, 32, 32))).backward()
    optimizer.step()
    assert dira.steps == 1
    assert all(p.isfinite().all() for p in dira.parameters())


def test_validation_without_gradients() -> None:
    """The terms of held-out views, by a pass that trains and changes nothing."""
    model, _, dira = make()
    views = torch.rand(2, 2, 3, 32, 32)
    batch = DiRAViews(views, torch.rand(2, 1, 32, 32))
    state = state_of(model, dira)
    with torch.no_grad():
        total = dira(torch.tensor(1.0), batch)
    assert_same(state, state_of(model, dira))
    assert not total.requires_grad
    restored = dira.restore(views[0])
    expected = (restored - batch.target).square().mean()
    torch.testing.assert_close(dira.components.restorative, expected)
