"""What the discriminator learns, and what restored images learn from it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from lightly_dira.core.randomness import same_randomness
from lightly_dira.loss.known_gradients import mean_with_gradients


class Penalties(NamedTuple):
    """The penalties on logits of one form of the adversary.

    Attributes:
        real: Penalty of D for the logits of clean images.
        restored: Penalty of D for the logits of restored images.
        generator: Penalty of restored images for logits that tell them apart.
        gradient: Weight of D's gradient penalty.
    """

    real: Callable[[Tensor], Tensor]
    restored: Callable[[Tensor], Tensor]
    generator: Callable[[Tensor], Tensor]
    gradient: float = 0.0


ADVERSARIES = {
    "least_squares": Penalties(
        real=lambda d: (d - 1).square(),
        restored=lambda d: d.square(),
        generator=lambda d: (d - 1).square(),
    ),
    "cross_entropy": Penalties(
        real=lambda d: F.softplus(-d),
        restored=lambda d: F.softplus(d),
        generator=lambda d: F.softplus(-d),
    ),
    "hinge": Penalties(
        real=lambda d: F.relu(1 - d),
        restored=lambda d: F.relu(1 + d),
        generator=lambda d: -d,
    ),
    "wasserstein": Penalties(
        real=lambda d: -d,
        restored=lambda d: d,
        generator=lambda d: -d,
        gradient=10.0,
    ),
}


def reference_terms(
    penalties: Penalties,
    restored: Tensor,
    target: Tensor,
    discriminator: nn.Module,
    condition: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Returns L_advG and L_D as the formulas have them, to be differentiated."""
    weights: dict[str, Tensor] = dict(discriminator.named_parameters())
    constant = {name: weight.detach() for name, weight in weights.items()}
    generator = penalties.generator(judge(discriminator, constant, restored, condition))
    real = penalties.real(judge(discriminator, weights, target, condition))
    apart = restored.detach()
    fake = penalties.restored(judge(discriminator, weights, apart, condition))
    own = 0.5 * (real.mean() + fake.mean())
    if penalties.gradient:
        penalty = gradient_penalty(discriminator, weights, apart, target, condition)
        own = own + 0.5 * penalties.gradient * penalty.mean()
    return generator.mean(), own


@torch.compiler.disable  # type: ignore[untyped-decorator]
def terms_differentiated_at_once(
    penalties: Penalties,
    restored: Tensor,
    target: Tensor,
    discriminator: nn.Module,
    condition: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Returns L_advG and L_D, whose gradients are already known.

    D's weights are constants in L_advG and x' is one in L_D, so that D's passes depend
    on nothing else that is trained. Their gradients are therefore taken here: one pass
    of x' serves both terms, and no value of D's layers is kept until the encoder's
    backward pass.
    """
    constant = restored.detach().requires_grad_(restored.requires_grad)
    weights = dict(discriminator.named_parameters())
    held = {n: w.detach().requires_grad_(w.requires_grad) for n, w in weights.items()}

    fake = judge(discriminator, held, constant, condition)
    generator = penalties.generator(fake)
    adversarial = mean_with_gradients(
        generator, [constant], [restored], retain_graph=True
    )
    leaves, sources = list(held.values()), list(weights.values())
    own = 0.5 * mean_with_gradients(penalties.restored(fake), leaves, sources)
    del fake, generator
    real = penalties.real(judge(discriminator, held, target, condition))
    own = own + 0.5 * mean_with_gradients(real, leaves, sources)
    if penalties.gradient:
        apart = restored.detach()
        penalty = gradient_penalty(discriminator, held, apart, target, condition)
        penalty = mean_with_gradients(penalty, leaves, sources)
        own = own + 0.5 * penalties.gradient * penalty
    return adversarial, own


def gradient_penalty(
    discriminator: nn.Module,
    weights: dict[str, Tensor],
    restored: Tensor,
    target: Tensor,
    condition: Tensor | None = None,
) -> Tensor:
    """Returns (|grad D(z)| - 1)^2 for a random z between x' and x, of each image [0].

    D(z) is the mean of the image's logits. The gradient is taken by the image, not by
    the condition. It is computed in full precision, also within autocast.

    - [0]: Improved training of Wasserstein GANs, 2017,
      https://arxiv.org/abs/1704.00028
    """
    trained = torch.is_grad_enabled()
    # Validation must not change what training draws.
    with contextlib.nullcontext() if trained else same_randomness(target.device):
        place = torch.rand(len(target), *[1] * (target.ndim - 1), device=target.device)
    between = place * target + (1 - place) * restored
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast(target.device.type, enabled=False),
    ):
        # Clones of tensors made in inference mode can be differentiated.
        between = between.detach().clone().requires_grad_()
        condition = None if condition is None else condition.clone()
        logits = judge(discriminator, weights, between, condition)
        total = logits.flatten(1).mean(dim=1).sum()
        (slope,) = torch.autograd.grad(total, between, create_graph=trained)
    penalty: Tensor = (slope.flatten(1).norm(dim=1) - 1).square()
    return penalty


def balance(
    restorative: Tensor,
    adversarial: Tensor,
    last_layer: Tensor,
    *,
    pixels: int = 1,
    floor: float = 1e-6,
) -> Tensor:
    """Returns |grad L_res| / |grad L_advG|, both by the decoder's last weights [0].

    Args:
        restorative: The restoration loss with its weight, or a host's own loss.
        adversarial: The adversarial loss.
        last_layer: Weights of the last layer.
        pixels: Pixels of an image.
        floor: Least divisor, as a fraction of the numerator.

    Returns:
        A scalar without gradients, at most ``1 / floor``; 0 if a norm is not finite.

    Raises:
        ValueError: If a term does not depend on the last layer.

    - [0]: VQGAN, 2020, https://arxiv.org/abs/2012.09841 (equation 7)
    """
    norms = []
    for term in (restorative, adversarial):
        (slope,) = torch.autograd.grad(
            # Means over many pixels have gradients that vanish in half precision.
            pixels * term,
            last_layer,
            retain_graph=True,
            allow_unused=True,
        )
        if slope is None:
            raise ValueError(
                "DiRALoss: the restored images do not depend on the last layer given "
                "for balanced=True. Pass the weights of the layer that makes them."
            )
        norms.append(slope.float().norm())
    ratio = norms[0] / norms[1].clamp_min(floor * norms[0])
    finite: Tensor = ratio.nan_to_num(0.0, posinf=0.0).detach()
    return finite


def judge(
    discriminator: nn.Module,
    weights: dict[str, Tensor],
    images: Tensor,
    condition: Tensor | None,
) -> Tensor:
    """Returns the logits that the discriminator gives with these weights.

    Raises:
        TypeError: If it returns anything but a tensor.
    """
    if condition is not None:
        images = torch.cat([images, condition.to(images.dtype)], dim=1)
    logits = functional_call(discriminator, weights, (images,))
    if not isinstance(logits, Tensor):
        raise TypeError(
            "DiRA: expected a discriminator that returns one tensor of logits, got "
            f"{type(logits).__name__}. Wrap it in a module that returns the logits "
            "alone; of MONAI's PatchDiscriminator they are the last item."
        )
    return at_least_float32(logits)


def at_least_float32(values: Tensor) -> Tensor:
    """Returns values in at least 32 bits."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def comparable(restored: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Checks that two images can be compared, and gives them the same precision.

    Raises:
        ValueError: If they are not tensors of one shape, or hold no image.
    """
    if not isinstance(restored, Tensor) or restored.shape != target.shape:
        is_tensor = isinstance(restored, Tensor)
        got = tuple(restored.shape) if is_tensor else type(restored).__name__
        raise ValueError(
            "DiRA: restored images cannot be compared with their targets: expected "
            f"{tuple(target.shape)}, (B, C, H, W), got {got}. A head of your own is "
            "called as head(features, output_size) and returns a tensor; see also "
            "`target_channels`."
        )
    if not target.numel():
        raise ValueError(
            f"DiRA: expected at least one image, got {tuple(target.shape)}. Leave out "
            "batches without images."
        )
    # Squares of half precision overflow early and round coarsely.
    restored = at_least_float32(restored)
    return restored, target.to(restored.dtype)
