"""Forms of the adversary: gradient penalty, balanced weight, conditional critic."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from methods import SimSiam, tiny_backbone
from torch import Tensor, nn
from torch.nn import functional as F

from lightly_dira import (
    Adversary,
    DiRA,
    DiRALoss,
    DiRAViews,
    PatchDiscriminator,
    RestorationHead,
)
from lightly_dira.loss.adversaries import balance, gradient_penalty

SIZES = {2: (16, 16), 3: (16, 16, 24)}


@pytest.fixture(params=SIZES, ids=["images", "volumes"])
def dims(request) -> int:
    return request.param


def batch_of(dims: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> DiRAViews:
    generator = torch.Generator().manual_seed(seed)
    options = dict(generator=generator, dtype=dtype)
    x0, x1 = torch.rand(2, 3, 3, *SIZES[dims], **options)
    return DiRAViews([x0, x1], torch.rand(3, 1, *SIZES[dims], **options))


def made(dims: int, **options) -> tuple[SimSiam, torch.optim.Optimizer, DiRA]:
    torch.manual_seed(0)
    model = SimSiam(tiny_backbone(spatial_dims=dims), 16).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return model, optimizer, DiRA(model.backbone, optimizer, **options)


def test_gradient_penalty_is_the_formula(dims: int) -> None:
    """Image by image, by hand."""
    torch.manual_seed(0)
    critic = PatchDiscriminator(spatial_dims=dims, channels=(4, 8), strides=(2, 2))
    critic.double()
    restored, target = torch.rand(2, 3, 1, *SIZES[dims], dtype=torch.float64)
    weights = dict(critic.named_parameters())
    torch.manual_seed(7)
    penalty = gradient_penalty(critic, weights, restored, target)
    torch.manual_seed(7)
    place = torch.rand(3, *[1] * (target.ndim - 1))
    for number in range(3):
        z = place[number] * target[number] + (1 - place[number]) * restored[number]
        z = z[None].requires_grad_()
        (slope,) = torch.autograd.grad(critic(z).mean(), z)
        expected = (slope.square().sum().sqrt() - 1) ** 2
        torch.testing.assert_close(penalty[number], expected)
    # Its gradient by the weights needs second derivatives: compare with differences.
    penalty.sum().backward()
    weight = critic.layers[0].weight
    for place in ((0,) * weight.ndim, (1,) + (0,) * (weight.ndim - 2) + (2,)):
        values = []
        for shift in (1e-5, -1e-5):
            with torch.no_grad():
                weight[place] += shift
            torch.manual_seed(7)
            values.append(gradient_penalty(critic, weights, restored, target).sum())
            with torch.no_grad():
                weight[place] -= shift
        expected = (values[0] - values[1]) / 2e-5
        torch.testing.assert_close(weight.grad[place], expected, rtol=1e-4, atol=1e-7)


def test_gradient_penalty_is_computed_in_full_precision(dims: int) -> None:
    torch.manual_seed(0)
    critic = PatchDiscriminator(spatial_dims=dims)
    restored, target = torch.rand(2, 3, 1, *SIZES[dims])
    values = []
    for enabled in (False, True):
        torch.manual_seed(7)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            weights = dict(critic.named_parameters())
            values.append(gradient_penalty(critic, weights, restored, target))
    assert torch.equal(*values)


def test_wasserstein_is_that_of_the_reference(dims: int) -> None:
    """Known gradients equal those of autograd, penalty included."""
    loss = DiRALoss(adversary="wasserstein", adversarial_weight=0.5)
    torch.manual_seed(0)
    critic = PatchDiscriminator(spatial_dims=dims).double()
    values = torch.rand(3, 1, *SIZES[dims], dtype=torch.float64)
    target = torch.rand_like(values)
    gradients = []
    for name in ("forward_components", "reference_components"):
        restored = values.clone().requires_grad_()
        torch.manual_seed(3)
        terms = getattr(loss, name)(torch.tensor(0.7), restored, target, critic)
        critic.zero_grad()
        terms.total.backward()
        gradients.append(
            [*terms, restored.grad, *(p.grad.clone() for p in critic.parameters())]
        )
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
    terms = loss.forward_components(torch.tensor(0.7), values, target, critic)
    torch.testing.assert_close(terms.adversarial, -critic(values).mean())


@pytest.mark.parametrize("setting", ["plain", "autocast", "checkpoint"])
def test_balanced_weight_is_the_ratio_of_norms(dims: int, setting: str) -> None:
    torch.manual_seed(0)
    channels, sides = [4, 8], SIZES[dims]
    head = RestorationHead(
        channels,
        decoder_channels=(8, 8),
        spatial_dims=dims,
        checkpoint=setting == "checkpoint",
    )
    maps = [
        torch.rand(3, channel, *(side // stride for side in sides))
        for channel, stride in zip(channels, (2, 4), strict=True)
    ]
    critic, target = PatchDiscriminator(spatial_dims=dims), torch.rand(3, 1, *sides)
    loss = DiRALoss(adversarial_weight=0.3, balanced=True)
    published = DiRALoss(adversarial_weight=0.0)
    half = setting == "autocast"

    def terms(criterion: DiRALoss, **options):
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            restored = head(maps, sides)
            discriminative = torch.tensor(0.0)
            return criterion.forward_components(
                discriminative, restored, target, critic, **options
            )

    found = terms(published)
    weight = head.last_layer
    by_res, by_adv = (
        torch.autograd.grad(term, weight, retain_graph=True)[0]
        for term in (10 * found.restorative, found.adversarial)
    )
    ratio = by_res.norm() / by_adv.norm()
    balanced = terms(loss, last_layer=weight)
    expected = found.total + 0.3 * ratio * found.adversarial
    tolerance = dict(rtol=2e-2, atol=1e-3) if half else dict(rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(balanced.total, expected, **tolerance)
    head.zero_grad()
    balanced.total.backward()
    torch.testing.assert_close(weight.grad, by_res + 0.3 * ratio * by_adv, **tolerance)
    share = (0.3 * ratio * by_adv).norm() / by_res.norm()
    assert share == pytest.approx(0.3, rel=1e-3), "what adversarial_weight says"


def test_balance_of_nothing() -> None:
    """No adversary, no restoration, infinite ones: finite weights."""
    weight = torch.ones(3, requires_grad=True)
    one, none = weight.sum(), 0 * weight.sum()
    assert balance(none, one, weight) == 0
    assert balance(one, none, weight) == pytest.approx(1e6)
    assert balance(none, none, weight) == 0
    assert balance(one / 0, one, weight) == 0
    with pytest.raises(ValueError, match="do not depend on the last layer"):
        balance(one, one, torch.ones(3, requires_grad=True))
    loss = DiRALoss(balanced=True)
    images = torch.rand(1, 1, 16, 16, requires_grad=True)
    with pytest.raises(ValueError, match="needs the weights of the decoder's last"):
        loss(images.sum(), images, images.detach(), PatchDiscriminator())


FORMS = {
    "balanced": dict(loss=DiRALoss(adversarial_weight=1.0, balanced=True)),
    "wasserstein": dict(loss=DiRALoss(adversary="wasserstein")),
    "conditional": dict(conditional=True),
    "all": dict(
        loss=DiRALoss(adversarial_weight=1.0, adversary="wasserstein", balanced=True),
        conditional=True,
    ),
}


def train(model, optimizer, dira, dims, steps) -> list[list[float]]:
    seen = []
    for step in steps:
        views = batch_of(dims, step)
        torch.manual_seed(step)
        total = dira(model.loss(*views), views)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        seen.append([term.item() for term in dira.components])
    return seen


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_loops(form: str, dims: int) -> None:
    """Finite, trains the critic, resumes to the bit, and is silent in validation."""
    options = FORMS[form]
    whole = made(dims, **options)
    before = copy.deepcopy(whole[2].discriminator)
    losses = train(*whole, dims, range(4))
    assert torch.tensor(losses).isfinite().all()
    moved = zip(before.parameters(), whole[2].discriminator.parameters(), strict=True)
    assert all(not torch.equal(one, other) for one, other in moved if one.ndim > 1)
    first = made(dims, **options)
    train(*first, dims, range(2))
    file = io.BytesIO()
    torch.save([part.state_dict() for part in first], file)
    file.seek(0)
    second = made(dims, **options)
    for part, state in zip(second, torch.load(file), strict=True):
        part.load_state_dict(state)
    assert train(*second, dims, range(2, 4)) == losses[2:]
    model, _, dira = second
    views = batch_of(dims)
    with torch.no_grad():
        assert dira(model.loss(*views), views).isfinite()


@pytest.mark.rare
@pytest.mark.parametrize("form", FORMS)
def test_compiled(form: str) -> None:
    """Backbone and wrapper compiled give the terms of those that are not."""
    expected = train(*made(2, **FORMS[form]), 2, range(3))
    torch._dynamo.reset()
    model, optimizer, dira = made(2, **FORMS[form])
    model.backbone = torch.compile(model.backbone, backend="eager")
    call = torch.compile(dira, backend="eager")
    found = train(model, optimizer, call, 2, range(3))
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected))


@pytest.mark.parametrize("form", ["balanced", "wasserstein"])
def test_accumulation(form: str) -> None:
    """Two halves of a batch, each by itself, are summed like other losses."""
    model, optimizer, dira = made(2, **FORMS[form])
    optimizer.zero_grad()
    expected: dict[str, Tensor] = {}
    for seed in range(2):
        views = batch_of(2, seed)
        alone = made(2, **FORMS[form])
        for wrapper, method in ((alone[2], alone[0]), (dira, model)):
            torch.manual_seed(seed)
            (wrapper(method.loss(*views), views) / 2).backward()
        for module in (alone[0], alone[2].discriminator):
            for name, parameter in module.named_parameters():
                expected[name] = expected.get(name, 0) + parameter.grad
    for module in (model, dira.discriminator):
        for name, parameter in module.named_parameters():
            torch.testing.assert_close(parameter.grad, expected[name], msg=name)


class Recording(PatchDiscriminator):
    """Keeps what it is shown."""

    def forward(self, images: Tensor) -> Tensor:
        self.shown = [*getattr(self, "shown", []), images.detach()]
        return super().forward(images)


def test_a_conditional_critic_sees_the_view(dims: int) -> None:
    critic = Recording(4, spatial_dims=dims).double()
    model, _, dira = made(dims, conditional=True, discriminator=critic)
    views = batch_of(dims)
    dira(model.loss(*views), views).backward()
    assert {tuple(shown.shape[:2]) for shown in critic.shown} == {(3, 4)}
    assert all(torch.equal(shown[:, 1:], views[0]) for shown in critic.shown)
    assert any(torch.equal(shown[:, :1], views.target) for shown in critic.shown)
    usual = made(dims, conditional=True)[2].discriminator
    assert usual.in_channels == 4


def test_a_conditional_critic_of_a_host() -> None:
    host = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1)).double()
    options = dict(target_channels=3, conditional=True)
    dira = Adversary(host, torch.optim.SGD(host.parameters(), lr=0.1), **options)
    assert dira.discriminator.in_channels == 6
    clean = torch.rand(2, 3, 16, 16, dtype=torch.float64)
    view = clean + 1
    restored = host(view)
    loss = F.mse_loss(restored, clean)
    with pytest.raises(ValueError, match=r"view=distorted"):
        dira(loss, restored=restored, target=clean)
    dira(loss, restored=restored, target=clean, view=view).backward()


def test_a_balanced_host() -> None:
    """The host's own loss is what the adversary is balanced against."""
    torch.manual_seed(0)
    host = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 3, 1)).double()
    loss = DiRALoss(adversarial_weight=1.0, balanced=True)
    optimizer = torch.optim.SGD(host.parameters(), lr=0.1)
    options = dict(loss=loss, target_channels=3)
    clean = torch.rand(2, 3, 16, 16, dtype=torch.float64)
    dira = Adversary(host, optimizer, **options)
    restored = host(clean)
    own = F.mse_loss(restored, clean)
    with pytest.raises(ValueError, match=r"attribute: `head\.last_layer = weight`"):
        dira(own, restored=restored, target=clean)
    host.last_layer = host[1].weight
    dira = Adversary(host, optimizer, **options)
    total = dira(own, restored=restored, target=clean)
    (by_own,) = torch.autograd.grad(own, host[1].weight, retain_graph=True)
    (by_both,) = torch.autograd.grad(total, host[1].weight, retain_graph=True)
    assert (by_both - by_own).norm() == pytest.approx(by_own.norm().item())


def test_wasserstein_in_validation_draws_nothing() -> None:
    """Found: a validation in a loop of one's own changed what training drew."""
    images, loss = torch.rand(2, 2, 1, 32, 32), DiRALoss(adversary="wasserstein")
    critic, state = PatchDiscriminator(), torch.get_rng_state()
    with torch.no_grad():
        loss(torch.zeros(()), *images, critic)
    assert torch.equal(torch.get_rng_state(), state)
