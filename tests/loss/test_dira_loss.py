from __future__ import annotations

import gc
import math
import weakref

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightly_dira import DiRALoss, DiRALossComponents, PatchDiscriminator


@pytest.fixture
def terms() -> tuple[Tensor, Tensor, Tensor, PatchDiscriminator]:
    torch.manual_seed(0)
    restored = torch.rand(2, 1, 32, 32, dtype=torch.float64, requires_grad=True)
    target = torch.rand(2, 1, 32, 32, dtype=torch.float64)
    discriminative = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    return discriminative, restored, target, PatchDiscriminator().double()


@pytest.mark.parametrize(
    ("restoration", "reference"),
    [
        ("mse", lambda x: x**2),
        ("l1", torch.abs),
        ("smooth_l1", lambda x: torch.where(x.abs() < 1, x**2 / 2, x.abs() - 0.5)),
    ],
)
def test_restorative_term(terms, restoration: str, reference) -> None:
    components = DiRALoss(restoration=restoration).forward_components(*terms)
    _, restored, target, _ = terms
    torch.testing.assert_close(
        components.restorative, reference(restored - target).mean()
    )


@pytest.mark.parametrize("adversary", ["least_squares", "cross_entropy", "hinge"])
def test_adversarial_terms(terms, adversary: str) -> None:
    components = DiRALoss(adversary=adversary).forward_components(*terms)
    _, restored, target, critic = terms
    real, fake = critic(target), critic(restored)
    ones, zeros = torch.ones_like(real), torch.zeros_like(real)
    cross_entropy = F.binary_cross_entropy_with_logits
    generator, discriminator = {
        "least_squares": (
            F.mse_loss(fake, ones),
            (F.mse_loss(real, ones) + F.mse_loss(fake, zeros)) / 2,
        ),
        "cross_entropy": (
            cross_entropy(fake, ones),
            (cross_entropy(real, ones) + cross_entropy(fake, zeros)) / 2,
        ),
        "hinge": (
            -fake.mean(),
            (torch.clamp(1 - real, 0).mean() + torch.clamp(1 + fake, 0).mean()) / 2,
        ),
    }[adversary]
    torch.testing.assert_close(components.adversarial, generator)
    torch.testing.assert_close(components.discriminator, discriminator)


def test_total_is_the_weighted_sum(terms) -> None:
    weights = {
        "discriminative_weight": 0.5,
        "restorative_weight": 3.0,
        "adversarial_weight": 0.2,
    }
    loss = DiRALoss(**weights)
    components = loss.forward_components(*terms)
    assert isinstance(components, DiRALossComponents)
    assert components.discriminative == terms[0]
    expected = (
        0.5 * terms[0]
        + 3.0 * components.restorative
        + 0.2 * components.adversarial
        + components.discriminator
    )
    torch.testing.assert_close(components.total, expected)
    torch.testing.assert_close(loss(*terms), components.total)


def test_published_weights() -> None:
    loss = DiRALoss()
    assert (loss.discriminative_weight, loss.restorative_weight) == (1, 10)
    assert loss.adversarial_weight == 0.001
    assert (loss.restoration, loss.adversary) == ("mse", "least_squares")


def test_each_part_gets_its_own_gradient(terms) -> None:
    """D sees nothing of L_advG, and the restored image nothing of L_D."""
    _, restored, _, critic = terms
    DiRALoss().forward_components(*terms).adversarial.backward()
    assert all(parameter.grad is None for parameter in critic.parameters())
    assert restored.grad.abs().sum() > 0

    restored.grad = None
    DiRALoss().forward_components(*terms).discriminator.backward()
    assert all(parameter.grad is not None for parameter in critic.parameters())
    assert restored.grad is None


def test_one_pass_of_the_restored_images_serves_both_terms(terms) -> None:
    passes = []
    terms[3].register_forward_hook(lambda *hooked: passes.append(hooked))
    DiRALoss()(*terms).backward()
    assert len(passes) == 2


def test_nothing_of_the_critic_waits_for_backward(terms) -> None:
    """Of its passes, only the gradients are kept: by x' and by its own weights."""
    kept = weakref.WeakSet()

    class Kept:
        def __init__(self, tensor: Tensor) -> None:
            self.tensor = tensor
            kept.add(self)

    _, restored, target, critic = terms
    with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
        components = DiRALoss().forward_components(*terms)
        gc.collect()
        numbers = sum(saved.tensor.numel() for saved in kept)
        activations = critic.layers[0](target).numel()
    of_restoration, slope = 2 * restored.numel(), restored.numel()
    weights = 2 * sum(weight.numel() for weight in critic.parameters())
    assert numbers < of_restoration + slope + weights + activations
    components.total.backward()


def test_gradients_so_far_are_left_alone(terms) -> None:
    *_, critic = terms
    DiRALoss()(*terms).backward()
    once = [weight.grad.clone() for weight in critic.parameters()]
    components = DiRALoss().forward_components(*terms)
    for weight, before in zip(critic.parameters(), once, strict=True):
        assert torch.equal(weight.grad, before)
    (3 * components.total).backward()
    for weight, before in zip(critic.parameters(), once, strict=True):
        torch.testing.assert_close(weight.grad, 4 * before)


def test_second_derivatives_are_refused(terms) -> None:
    _, restored, *_ = terms
    adversarial = DiRALoss().forward_components(*terms).adversarial
    (slope,) = torch.autograd.grad(adversarial, restored, create_graph=True)
    with pytest.raises(RuntimeError, match="does not require grad"):
        slope.sum().backward()


def test_a_critic_that_images_do_not_move(terms) -> None:
    class Deaf(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.logit = nn.Parameter(torch.zeros(()))

        def forward(self, images: Tensor) -> Tensor:
            return self.logit + (images > 0.5).to(images.dtype)

    critic = Deaf()
    components = DiRALoss().forward_components(*terms[:3], critic)
    assert not components.adversarial.requires_grad
    components.discriminator.backward()
    assert critic.logit.grad != 0
    assert terms[1].grad is None


def test_gradient(terms) -> None:
    discriminative, restored, target, critic = terms
    loss = DiRALoss(adversarial_weight=1.0)

    def generators_loss(x: Tensor) -> Tensor:
        components = loss.forward_components(
            discriminative, x, target[:, :, :10, :10], critic
        )
        return components.total - components.discriminator

    x = restored.detach()[:, :, :10, :10].clone().requires_grad_()
    assert torch.autograd.gradcheck(generators_loss, x)


def test_without_adversary(terms) -> None:
    discriminative, restored, target, _ = terms
    components = DiRALoss().forward_components(discriminative, restored, target, None)
    assert components.adversarial == components.discriminator == 0
    expected = discriminative + 10 * F.mse_loss(restored, target)
    torch.testing.assert_close(components.total, expected)


def test_half_precision_does_not_overflow() -> None:
    class Loud(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return 1000 * images

    images = torch.ones(1, 1, 4, 4, dtype=torch.float16)
    components = DiRALoss().forward_components(
        torch.tensor(0.0), images, images, Loud()
    )
    assert components.total.dtype == torch.float32
    assert components.discriminator == (999**2 + 1000**2) / 2


@pytest.mark.parametrize("weight", [-1.0, math.inf, math.nan])
@pytest.mark.parametrize("term", ["discriminative", "restorative", "adversarial"])
def test_bad_weight(term: str, weight: float) -> None:
    with pytest.raises(ValueError, match=f"{term}_weight must be finite"):
        DiRALoss(**{f"{term}_weight": weight})


@pytest.mark.parametrize("option", ["restoration", "adversary"])
def test_unknown_form(option: str) -> None:
    with pytest.raises(ValueError, match=f"{option} must be one of .*got 'wgan'"):
        DiRALoss(**{option: "wgan"})


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match=r"\(1, 8, 8\).*\(2, 1, 8, 8\)"):
        DiRALoss()(torch.tensor(0.0), torch.rand(2, 1, 8, 8), torch.rand(1, 8, 8), None)


@pytest.mark.parametrize("path", ["forward_components", "reference_components"])
def test_a_batch_without_images(path: str) -> None:
    """Found: a division by zero, and an index out of range."""
    empty = torch.rand(0, 1, 32, 32)
    with pytest.raises(ValueError, match=r"at least one image, got \(0, 1, 32, 32\)"):
        getattr(DiRALoss(), path)(torch.tensor(0.0), empty, empty, PatchDiscriminator())


@pytest.mark.parametrize("restoration", ["mse", "l1", "smooth_l1"])
@pytest.mark.parametrize("adversary", ["least_squares", "cross_entropy", "hinge"])
def test_reference_path(terms, adversary: str, restoration: str) -> None:
    """The fast path gives the values and gradients of the formula."""
    discriminative, restored, target, critic = terms
    criterion = DiRALoss(adversary=adversary, restoration=restoration)
    leaves = [discriminative, restored, *critic.parameters()]
    found = []
    for path in (criterion.reference_components, criterion.forward_components):
        components = path(discriminative, restored, target, critic)
        gradients = torch.autograd.grad(components.total, leaves)
        found.append([*components, *gradients])
    torch.testing.assert_close(found[1], found[0], rtol=1e-12, atol=1e-14)


def test_reference_path_has_second_derivatives(terms) -> None:
    discriminative, restored, target, critic = terms
    criterion = DiRALoss(adversarial_weight=1, restorative_weight=1)

    def total(images: Tensor) -> Tensor:
        return criterion.reference_components(
            discriminative, images, target, critic
        ).total

    images = restored.detach()[:1, :, :16, :16].requires_grad_()
    target = target[:1, :, :16, :16]
    assert torch.autograd.gradgradcheck(total, images, fast_mode=True)
