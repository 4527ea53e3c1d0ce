"""The DiRA loss: discriminative, restorative and adversarial terms in one scalar."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightly_dira.loss.adversaries import (
    ADVERSARIES,
    balance,
    comparable,
    reference_terms,
    terms_differentiated_at_once,
)
from lightly_dira.loss.schedule import ONES, Factors


class DiRALossComponents(NamedTuple):
    """The terms of the DiRA loss: scalars, all but `total` unweighted.

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


_RESTORATIONS = {"mse": F.mse_loss, "l1": F.l1_loss, "smooth_l1": F.smooth_l1_loss}


class DiRALoss(nn.Module):
    """Joins a discriminative, a restorative and an adversarial loss [0].

    With x the clean images, x' the restored ones and D the discriminator,

    ``total = w_dis * L_dis + w_res * L_res(x', x) + w_adv * L_advG(x') + L_D(x, x')``

    ``L_advG`` treats D's weights as constants, and ``L_D`` treats x' as a constant. One
    backward pass through ``total`` therefore gives the encoder, its heads and the
    decoder the gradient of the first three terms, and D the gradient of the last. The
    two alternating passes of the published run compute exactly the same.

    | ``adversary`` | ``L_advG``    | ``L_D``                                    |
    |---------------|---------------|--------------------------------------------|
    | least_squares | (D(x') - 1)^2 | 1/2 [(D(x) - 1)^2 + D(x')^2]               |
    | cross_entropy | -log s(D(x')) | -1/2 [log s(D(x)) + log(1 - s(D(x')))]     |
    | hinge         | -D(x')        | 1/2 [max(0, 1 - D(x)) + max(0, 1 + D(x'))] |
    | wasserstein   | -D(x')        | 1/2 [D(x') - D(x) + 10 (norm D'(z) - 1)^2] |

    Every entry is a mean over patches and images; s is the sigmoid. The last row has
    the gradient penalty of [2]: z lies between x and x', and D'(z) is the gradient. The
    published run uses least squares; the paper states the cross entropy (Section 3.1).
    Here its generator term has the non-saturating form, which has the same fixed point,
    and whose gradient does not vanish while D wins.

    The default weights are the published ones. A squared error is small compared with
    most methods' losses, above all on small images (near 0.003 at 32 pixels), so a
    weight of 10 gives restoration little influence: look at `DiRA.components`, and try
    100. Lightly's Barlow Twins loss is a sum over dimensions (hundreds) and leaves
    restoration without influence. With AdamW, which ignores the scale of the loss, turn
    the sum into a mean by ``discriminative_weight=1 / dimensions``; with SGD, multiply
    the other weights instead.

    - [0]: DiRA, 2022, https://arxiv.org/abs/2204.10437
    - [1]: VQGAN, 2020, https://arxiv.org/abs/2012.09841
    - [2]: WGAN-GP, 2017, https://arxiv.org/abs/1704.00028

    Attributes:
        discriminative_weight: Factor of the base method's loss, at least 0.
        restorative_weight: Factor of the restoration loss, at least 0.
        adversarial_weight: Factor of the adversarial loss, at least 0.
        restoration: Form of the restoration loss: "mse", "l1" or "smooth_l1".
        adversary: Form of the adversarial losses: "least_squares", "cross_entropy",
            "hinge" or "wasserstein".
        balanced: Whether `adversarial_weight` is relative: the norm of the adversary's
            gradient at the decoder's last layer over that of restoration's, as in VQGAN
            [1] with 1. Each process balances its own.

    Shape:
        - discriminative: a scalar.
        - restored and target: both (B, C, H, W), or (B, C, D, H, W) of volumes, values
          in [0, 1].
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
        balanced: bool = False,
    ) -> None:
        """Creates the loss; the arguments are the attributes.

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
            ("adversary", adversary, ADVERSARIES),
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
        self.balanced = balanced

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

    def reference_components(
        self,
        discriminative: Tensor,
        restored: Tensor,
        target: Tensor,
        discriminator: nn.Module,
        factors: Factors = ONES,
        *,
        condition: Tensor | None = None,
        last_layer: Tensor | None = None,
    ) -> DiRALossComponents:
        """Returns all terms as the formula has them, for autograd to differentiate.

        It can be differentiated any number of times; the arguments are those of
        `forward_components`.
        """
        return self._components(
            reference_terms,
            discriminative,
            restored,
            target,
            discriminator,
            factors,
            condition,
            last_layer,
        )

    def forward_components(
        self,
        discriminative: Tensor,
        restored: Tensor,
        target: Tensor,
        discriminator: nn.Module | None,
        factors: Factors = ONES,
        *,
        condition: Tensor | None = None,
        last_layer: Tensor | None = None,
    ) -> DiRALossComponents:
        """Returns all terms.

        The same as `reference_components` in value and gradient, in two passes of the
        discriminator instead of three and with less memory. It can be differentiated
        once.

        Args:
            discriminative: As in `forward`, like the next three.
            restored: Restored images.
            target: Clean images.
            discriminator: Maps images to logits, if there is an adversary.
            factors: Multiply the weights. A restoration with the factor 0 is measured,
                not trained.
            condition: What a conditional critic sees beside the images, (B, C', H, W).
            last_layer: Weights of the decoder's last layer, for ``balanced``.

        Raises:
            ValueError: If restored and target differ in shape, or a balanced loss gets
                no last layer.
        """
        return self._components(
            terms_differentiated_at_once,
            discriminative,
            restored,
            target,
            discriminator,
            factors,
            condition,
            last_layer,
        )

    def _components(
        self,
        adversarial_terms: Callable[..., tuple[Tensor, Tensor]],
        discriminative: Tensor,
        restored: Tensor,
        target: Tensor,
        discriminator: nn.Module | None,
        factors: Factors,
        condition: Tensor | None,
        last_layer: Tensor | None,
    ) -> DiRALossComponents:
        """Weighs the terms and adds them."""
        restored, target = comparable(restored, target)
        decoded = restored if factors.restorative else restored.detach()
        restorative = self.distance(decoded, target)
        own = factors.discriminative * self.discriminative_weight * discriminative
        total, restoring = own, own
        if factors.restorative:
            restoring = factors.restorative * self.restorative_weight * restorative
            total = total + restoring
        if discriminator is None:
            zero = restorative.new_zeros(())
            return DiRALossComponents(total, discriminative, restorative, zero, zero)
        form = ADVERSARIES[self.adversary]
        images = (restored, target)
        adversarial, critic = adversarial_terms(form, *images, discriminator, condition)
        weight: Tensor | float = factors.adversarial * self.adversarial_weight
        if self.balanced and torch.is_grad_enabled():
            if last_layer is None:
                raise ValueError(_NO_LAST_LAYER)
            pixels = target[0, 0].numel()
            weight = weight * balance(restoring, adversarial, last_layer, pixels=pixels)
        total = total + weight * adversarial + critic
        return DiRALossComponents(
            total, discriminative, restorative, adversarial, critic
        )

    def distance(self, restored: Tensor, target: Tensor) -> Tensor:
        """Returns L_res(x', x)."""
        return _RESTORATIONS[self.restoration](restored, target)

    def extra_repr(self) -> str:
        """Names weights and forms in the module's repr."""
        return (
            f"discriminative_weight={self.discriminative_weight}, "
            f"restorative_weight={self.restorative_weight}, "
            f"adversarial_weight={self.adversarial_weight}, "
            f"restoration={self.restoration!r}, adversary={self.adversary!r}, "
            f"balanced={self.balanced}"
        )


_NO_LAST_LAYER = (
    "DiRALoss: balanced=True needs the weights of the decoder's last layer. A "
    "`RestorationHead` names them, `head.last_layer`; pass them: "
    "forward_components(..., last_layer=weight)."
)
