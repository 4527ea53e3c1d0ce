"""Adversary: the third part of DiRA for hosts that restore by themselves."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightly_dira.core.tensors import moved
from lightly_dira.features.restoring_host import RestoringHost
from lightly_dira.loss import DiRALoss
from lightly_dira.loss.adversaries import comparable
from lightly_dira.loss.schedule import Ramp, Schedule
from lightly_dira.wrapper import Wrapper, check_loss


class Adversary(Wrapper):
    """Adds the adversary to a method that restores by itself [0].

    Such hosts are Lightly's MAE and SimMIM, Models Genesis, and U-Nets. The loss is the
    host's own, with its restoration. Call the wrapper with it, with the whole images
    that the host made and with the clean ones; `fill_masked_patches` makes whole images
    of MAE's predictions. It returns ``L + w_adv L_advG + L_D`` (see `DiRALoss`), whose
    single backward pass trains both. Optimiser, scaling, state and resuming are those
    of `DiRA`; the host's parameters alone are in the user's optimiser.

    Until ``adversarial_start`` the stage is "dir", and the loss is returned unchanged;
    then it is "dira". `components.restorative` measures the distance of the images,
    which is not trained.

    - [0]: DiRA, 2022, https://arxiv.org/abs/2204.10437

    Attributes:
        discriminator: The critic D, a `PatchDiscriminator`.
        loss: The `DiRALoss`, for the adversary's weight and form.
        components: The terms of the last call, detached, as `DiRALossComponents`.
        steps: Steps of the user's optimiser since wrapping.

    Examples:
        >>> import torch
        >>> from torch import nn
        >>> from lightly_dira import Adversary
        >>> host = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 1, 1))
        >>> optimizer = torch.optim.SGD(host.parameters(), lr=0.1)
        >>> adversary = Adversary(host, optimizer)
        >>>
        >>> clean = torch.rand(2, 1, 32, 32)
        >>> restored = host(clean + 0.1 * torch.randn_like(clean))
        >>> loss = nn.functional.mse_loss(restored, clean)
        >>> loss = adversary(loss, restored, clean)
        >>> loss.backward()
        >>> optimizer.step()
        >>> adversary.stage, adversary.steps
        ('dira', 1)
    """

    def __init__(
        self,
        host: nn.Module,
        optimizer: Optimizer | None = None,
        *,
        discriminator: nn.Module | None = None,
        loss: DiRALoss | None = None,
        criterion: nn.Module | None = None,
        target_channels: int = 1,
        discriminator_lr: float = 2e-4,
        conditional: bool = False,
        restored_share: float = 1.0,
        adversarial_start: float = 0,
        schedule: Schedule | None = None,
    ) -> None:
        """Makes the critic, if it is not given.

        Args:
            host: The network that restores, or a part of it that is trained. For
                ``DiRALoss(balanced=True)`` its attribute `last_layer` names the weights
                of the layer that makes the images.
            optimizer: The optimiser that holds the host's parameters. Without one, call
                `attach` before training.
            discriminator: Maps images to logits; by default a `PatchDiscriminator`.
            loss: By default `DiRALoss()`, with the published weights.
            criterion: As in `DiRA`.
            target_channels: Channels of the images.
            discriminator_lr: Learning rate of the discriminator's Adam, above 0.
            conditional: Whether the critic also sees what was to be restored.
            restored_share: Part of the batch that the critic judges in a training step,
                as in `DiRA`.
            adversarial_start: Steps of the optimiser before the adversary starts.
            schedule: Its adversarial and discriminative factors, in place of it.

        Raises:
            TypeError: If the host is not a module or the optimiser is not a
                `torch.optim.Optimizer`.
            ValueError: If the optimiser does not hold the host or a number is out of
                range.
        """
        if not isinstance(host, nn.Module):
            raise TypeError(
                "Adversary: host must be the torch.nn.Module that restores, got "
                f"{type(host).__name__}."
            )
        if adversarial_start is None:
            raise ValueError(
                "Adversary: adversarial_start must be a number of steps; without an "
                "adversary there is nothing to wrap."
            )
        if schedule is not None:
            # The host restores, at every step.
            schedule = dataclasses.replace(schedule, restorative=Ramp())
        super().__init__(
            RestoringHost(host),
            nn.Identity(),
            discriminator,
            loss=loss,
            criterion=criterion,
            target_channels=target_channels,
            discriminator_lr=discriminator_lr,
            conditional=conditional,
            restored_share=restored_share,
            starts=(0, adversarial_start),
            schedule=schedule,
            optimizer=optimizer,
        )

    def forward(
        self,
        loss: Tensor,
        restored: Tensor,
        target: Tensor,
        *,
        view: Tensor | None = None,
    ) -> Tensor:
        """Returns the one scalar to call `backward()` on.

        Args:
            loss: The host's own loss on this batch, a tensor of one element.
            restored: The whole images that it made, (B, C, H, W).
            target: The clean images, (B, C, H, W), in the same range.
            view: What they were made from, which only a conditional critic needs.

        Returns:
            A scalar; before the adversary starts, the unchanged loss.

        Raises:
            TypeError: If images are not floating-point tensors.
            ValueError: If the loss does not have exactly one element, a term is not
                finite, or the images do not fit together.
        """
        check_loss(loss)
        self._check_followed(loss)
        self._check_balanced()
        _check_restored(restored, target, self.target_channels)
        if self._adversary_starts:
            unreached = _why_not_reached(loss, restored, target)
            if unreached and self.stage == "dira":
                raise ValueError(unreached)
            if unreached:
                self._idle.warn_once(unreached)
            if self.conditional and view is None:
                raise ValueError(_CONDITION)
        rows = self._rows(len(restored))
        restored, target = rows.of(restored), rows.of(target)
        target = moved(target.detach(), restored.device)
        condition = self._condition([] if view is None else [rows.of(view)])
        if self.stage == "dira":
            # The host's loss has its restoration already.
            factors = self.schedule(self.steps)._replace(restorative=0.0)
            loss = loss.reshape(())
            return self._weigh(
                loss, restored, target, condition, {restored.dtype}, factors
            )
        self._try_critic(target, condition)
        distance = self.loss.distance(*comparable(restored.detach(), target))
        return self._hand_back(loss, distance)

    @property
    def last_layer(self) -> Tensor | None:
        """The host's attribute of this name: the layer that makes the images."""
        found: Tensor | None = getattr(self.features.backbone, "last_layer", None)
        return found


def _check_restored(restored: Tensor, target: Tensor, channels: int) -> None:
    """Checks that a host's images and the clean ones can be compared.

    Raises:
        TypeError: If one is not a tensor of floating-point values.
        ValueError: If they differ in shape, or have other channels.
    """
    for name, images in (("restored", restored), ("target", target)):
        if not (isinstance(images, Tensor) and images.is_floating_point()):
            got = images.dtype if isinstance(images, Tensor) else type(images).__name__
            raise TypeError(
                f"DiRA: expected `{name}` as a floating-point tensor, got {got}. Both "
                "images must have the same range: `target.float() / 255`, if it has "
                "8 bits and the host restores values in [0, 1]."
            )
    if restored.shape != target.shape or restored.ndim < 4:
        raise ValueError(
            "DiRA: expected restored and clean images of one shape (B, C, H, W), got "
            f"{tuple(restored.shape)} and {tuple(target.shape)}. Put patches together "
            "first: `lightly_dira.models.fill_masked_patches`."
        )
    if restored.shape[1] != channels:
        raise ValueError(
            f"DiRA: expected images of {channels} channels, got {restored.shape[1]}. "
            f"Say so: Adversary(..., target_channels={restored.shape[1]})."
        )


def _why_not_reached(loss: Tensor, restored: Tensor, target: Tensor) -> str | None:
    """Says why the adversary could not train the host, if it could not.

    Raises:
        ValueError: If restored and clean images are swapped.
    """
    if restored.requires_grad or not (torch.is_grad_enabled() and loss.requires_grad):
        return None
    if target.requires_grad:
        raise ValueError(
            "DiRA: `target` depends on the host's weights and `restored` does not: "
            "they are swapped. Call adversary(loss, restored, clean)."
        )
    return (
        "DiRA: the restored images carry no gradient, so that the adversary cannot "
        "train the host. Pass them as the host made them, not `restored.detach()` and "
        "not made within `torch.no_grad()`."
    )


_CONDITION = (
    "Adversary: the critic also sees what was to be restored. Pass it: "
    "`adversary(loss, restored, clean, view=distorted)`."
)
