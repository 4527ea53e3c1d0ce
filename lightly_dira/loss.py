"""The DiRA loss: discriminative, restorative and adversarial terms in one scalar."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call
from torch.nn import functional as F


class DiRALossComponents(NamedTuple):
    """The terms of the DiRA loss, each a scalar and, but for `total`, unweighted.

    Attributes:
        total: The one scalar to call `backward()` on.
        discriminative: The loss of the base method, L_dis.
        restorative: Distance of the restored images from the clean ones, L_res.
        adversarial: The restored images' failure to pass as real, L_advG.
        discriminator: The discriminator's own loss, L_D.
    """

    total: Tensor
    discriminative: Tensor
    restorative: Tensor
    adversarial: Tensor
    discriminator: Tensor


class _Adversary(NamedTuple):
    """Penalties on the logits of real, restored and would-be real images."""

    real: Callable[[Tensor], Tensor]
    restored: Callable[[Tensor], Tensor]
    fooled: Callable[[Tensor], Tensor]


_ADVERSARIES = {
    "least_squares": _Adversary(
        real=lambda logits: (logits - 1).square(),
        restored=torch.square,
        fooled=lambda logits: (logits - 1).square(),
    ),
    "cross_entropy": _Adversary(
        real=lambda logits: F.softplus(-logits),
        restored=F.softplus,
        fooled=lambda logits: F.softplus(-logits),
    ),
    "hinge": _Adversary(
        real=lambda logits: F.relu(1 - logits),
        restored=lambda logits: F.relu(1 + logits),
        fooled=torch.neg,
    ),
}

_RESTORATIONS = {
    "mse": F.mse_loss,
    "l1": F.l1_loss,
    "smooth_l1": F.smooth_l1_loss,
}


class DiRALoss(nn.Module):
    """Joins a discriminative, a restorative and an adversarial loss [0].

    With x the clean images, x' the restored ones and D the discriminator,

    ``total = w_dis * L_dis + w_res * L_res(x', x) + w_adv * L_advG(x') + L_D(x, x')``

    D's weights are constants inside ``L_advG`` and x' is one inside ``L_D``. One
    backward pass through ``total`` therefore gives the encoder, its heads and the
    decoder the gradient of the first three terms, and D the gradient of the last:
    exactly what the two alternating passes of the published run compute.

    =================  ==================  =========================================
    ``adversary``      ``L_advG``          ``L_D``
    =================  ==================  =========================================
    least_squares      (D(x') - 1)^2       1/2 [(D(x) - 1)^2 + D(x')^2]
    cross_entropy      -log s(D(x'))       -1/2 [log s(D(x)) + log(1 - s(D(x')))]
    hinge              -D(x')              1/2 [max(0, 1 - D(x)) + max(0, 1 + D(x'))]
    =================  ==================  =========================================

    Every entry is a mean over patches and images; s is the sigmoid. The published run
    uses least squares, the paper writes the cross entropy (Section 3.1). Its
    generator's half is used in the non-saturating form: same fixed point, and a
    gradient that does not vanish while D still wins.

    The default weights are the published ones. A squared error is small beside most
    methods' losses, on small images above all (near 0.003 at 32 pixels), so that 10
    gives restoration little say: look at `DiRA.components`, and try 100. A sum over
    dimensions, as Lightly's loss of Barlow Twins is (hundreds), leaves it none: make it
    a mean by ``discriminative_weight=1 / dimensions`` with AdamW, to which its scale
    is nothing, or multiply the other weights with SGD.

    - [0]: DiRA, 2022, https://arxiv.org/abs/2204.10437

    Attributes:
        discriminative_weight: Factor of the base method's loss, at least 0.
        restorative_weight: Factor of the restoration loss, at least 0.
        adversarial_weight: Factor of the adversarial loss, at least 0.
        restoration: Form of the restoration loss: "mse", "l1" or "smooth_l1".
        adversary: Form of the adversarial losses: "least_squares", "cross_entropy" or
            "hinge".

    Shape:
        - discriminative: a scalar.
        - restored and target: both (B, C, H, W), values in [0, 1].
        - output: a scalar.

    Examples:
        >>> import torch
        >>> from lightly_dira import DiRALoss, PatchDiscriminator
        >>> criterion = DiRALoss(adversarial_weight=0.01)
        >>> restored = torch.rand(2, 1, 32, 32, requires_grad=True)
        >>> target = torch.rand(2, 1, 32, 32)
        >>> discriminative = torch.tensor(0.5)
        >>> loss = criterion(discriminative, restored, target, PatchDiscriminator())
        >>> loss.backward()
    """

    def __init__(
        self,
        *,
        discriminative_weight: float = 1.0,
        restorative_weight: float = 10.0,
        adversarial_weight: float = 0.001,
        restoration: str = "mse",
        adversary: str = "least_squares",
    ) -> None:
        """Creates the loss.

        Args:
            discriminative_weight: Factor of the base method's loss, at least 0.
            restorative_weight: Factor of the restoration loss, at least 0.
            adversarial_weight: Factor of the adversarial loss, at least 0.
            restoration: "mse" (published), "l1" or "smooth_l1".
            adversary: "least_squares" (published), "cross_entropy" or "hinge".

        Raises:
            ValueError: If a weight is negative or not finite, or a form is unknown.
        """
        super().__init__()
        weights = {
            "discriminative_weight": discriminative_weight,
            "restorative_weight": restorative_weight,
            "adversarial_weight": adversarial_weight,
        }
        for name, weight in weights.items():
            if not 0 <= weight < float("inf"):
                raise ValueError(
                    f"DiRALoss: {name} must be finite and at least 0, got {weight}."
                )
        for name, form, known in (
            ("restoration", restoration, _RESTORATIONS),
            ("adversary", adversary, _ADVERSARIES),
        ):
            if form not in known:
                raise ValueError(
                    f"DiRALoss: {name} must be one of {', '.join(known)}, got {form!r}."
                )
        self.discriminative_weight = discriminative_weight
        self.restorative_weight = restorative_weight
        self.adversarial_weight = adversarial_weight
        self.restoration = restoration
        self.adversary = adversary

    def forward(
        self,
        discriminative: Tensor,
        restored: Tensor,
        target: Tensor,
        discriminator: nn.Module | None,
    ) -> Tensor:
        """Returns the one scalar to call `backward()` on.

        Args:
            discriminative: The base method's loss, a scalar.
            restored: Restored images x', (B, C, H, W).
            target: Clean images x, (B, C, H, W).
            discriminator: Maps images to logits of any shape. Without one the loss
                ends with its second term.

        Raises:
            ValueError: If restored and target differ in shape.
        """
        return self.forward_components(
            discriminative, restored, target, discriminator
        ).total

    def forward_components(
        self,
        discriminative: Tensor,
        restored: Tensor,
        target: Tensor,
        discriminator: nn.Module | None,
    ) -> DiRALossComponents:
        """Returns all terms; the arguments are those of `forward`."""
        if restored.shape != target.shape:
            raise ValueError(
                f"DiRALoss: restored images of shape {tuple(restored.shape)} cannot be "
                f"compared with targets of shape {tuple(target.shape)}. Both must be "
                "(B, C, H, W)."
            )
        # Squares of half precision overflow early and round coarsely.
        restored = _at_least_float32(restored)
        target = target.to(restored.dtype)

        restorative = _RESTORATIONS[self.restoration](restored, target)
        total = (
            self.discriminative_weight * discriminative
            + self.restorative_weight * restorative
        )
        if discriminator is None:
            zero = restorative.new_zeros(())
            return DiRALossComponents(total, discriminative, restorative, zero, zero)

        adversary = _ADVERSARIES[self.adversary]
        constant = restored.detach().requires_grad_(restored.requires_grad)
        weights = dict(discriminator.named_parameters())
        held = {
            n: w.detach().requires_grad_(w.requires_grad) for n, w in weights.items()
        }

        def judge(images: Tensor) -> Tensor:
            return _at_least_float32(functional_call(discriminator, held, (images,)))

        # D's weights are constants in L_advG and x' is one in L_D, so that D's passes
        # depend on nothing outside: their gradients are taken at once, one pass of x'
        # serves both, and no value of D's layers waits for the encoder's backward pass.
        fake = judge(constant)
        fooled = adversary.fooled(fake)
        adversarial = _known(fooled, [constant], [restored], retain_graph=True)
        leaves, sources = list(held.values()), list(weights.values())
        own = 0.5 * _known(adversary.restored(fake), leaves, sources)
        del fake, fooled
        own = own + 0.5 * _known(adversary.real(judge(target)), leaves, sources)
        total = total + self.adversarial_weight * adversarial + own
        return DiRALossComponents(total, discriminative, restorative, adversarial, own)

    def extra_repr(self) -> str:
        """Names weights and forms in the module's repr."""
        return (
            f"discriminative_weight={self.discriminative_weight}, "
            f"restorative_weight={self.restorative_weight}, "
            f"adversarial_weight={self.adversarial_weight}, "
            f"restoration={self.restoration!r}, adversary={self.adversary!r}"
        )


def _known(
    penalties: Tensor,
    leaves: Sequence[Tensor],
    sources: Sequence[Tensor],
    retain_graph: bool = False,
) -> Tensor:
    """Returns the mean penalty, whose gradients by `leaves` belong to `sources`."""
    mean = penalties.detach().mean()
    if not penalties.requires_grad:
        return mean
    # In half precision the gradients of a mean vanish and those of a sum overflow. By
    # `backward`, as PyTorch's counters and hooks of modules know no `autograd.grad`.
    images = penalties.shape[0] if penalties.ndim else 1
    scale = images / penalties.numel()
    whole = penalties.sum() / images
    inputs = [leaf for leaf in leaves if leaf.requires_grad]
    if inputs:
        whole.backward(inputs=inputs, retain_graph=retain_graph)  # type: ignore[no-untyped-call]
    used, slopes = [], []
    for leaf, source in zip(leaves, sources, strict=True):
        if leaf.grad is not None:
            used.append(source)
            slopes.append(leaf.grad.mul_(scale))
            leaf.grad = None
    known: Tensor = _Known.apply(mean, slopes, *used)
    return known


class _Known(torch.autograd.Function):
    """A value whose gradients have been taken already."""

    @staticmethod
    def forward(
        ctx: Any, value: Tensor, slopes: list[Tensor], *sources: Tensor
    ) -> Tensor:
        ctx.save_for_backward(*slopes)
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *(grad * slope for slope in ctx.saved_tensors)


def _at_least_float32(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))
