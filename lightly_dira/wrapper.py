"""What `DiRA` and `Adversary` share: one scalar, a critic, and the state of a run."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightly_dira.core.modes import evaluating
from lightly_dira.core.randomness import same_randomness
from lightly_dira.core.rows import Rows, Turns
from lightly_dira.core.tensors import moved
from lightly_dira.features.pyramid import FeaturePyramid
from lightly_dira.features.restoring_host import RestoringHost
from lightly_dira.loss import DiRALoss, DiRALossComponents
from lightly_dira.loss.schedule import Factors, Schedule, starts
from lightly_dira.models.decoded_layers import check_layers
from lightly_dira.models.patch_discriminator import PatchDiscriminator
from lightly_dira.training.batches import join
from lightly_dira.training.finite_terms import FiniteTerms, needs_scaler
from lightly_dira.training.optimizer_follower import OptimizerFollower
from lightly_dira.training.processes import with_zero_gradients
from lightly_dira.training.state import buffers_of, load_buffers, packed, unpacked
from lightly_dira.training.trial import check_last_layer, try_critic


class Wrapper(OptimizerFollower):
    """Joins a method's loss with the terms of restored images, whoever restored them.

    Args:
        features: What watches the network that the optimiser trains.
        head: What the optimiser trains besides.
        discriminator: The critic; by default a `PatchDiscriminator`.
        loss: By default `DiRALoss()`.
        criterion: The method's own loss, if it has buffers to be saved.
        target_channels: Channels of the images.
        discriminator_lr: Learning rate of the critic's Adam.
        conditional: Whether the critic also sees what was to be restored.
        restored_share: Part of the batch that is restored or judged in a step.
        starts: Steps before restoration and adversary start; None for no adversary.
        schedule: In place of the starts.
        optimizer: The optimiser to follow, if it is there already.
    """

    def __init__(
        self,
        features: FeaturePyramid | RestoringHost,
        head: nn.Module,
        discriminator: nn.Module | None,
        *,
        loss: DiRALoss | None,
        criterion: nn.Module | None,
        target_channels: int,
        discriminator_lr: float,
        conditional: bool,
        restored_share: float,
        starts: tuple[float, float | None],
        schedule: Schedule | None,
        optimizer: Optimizer | None,
    ) -> None:
        """Makes the critic, unless there is none."""
        above = dict(target_channels=target_channels, discriminator_lr=discriminator_lr)
        for name, value in above.items():
            if not value > 0:
                raise ValueError(f"DiRA: {name} must be above 0, got {value}.")
        if not 0 < restored_share <= 1:
            raise ValueError(
                f"DiRA: restored_share must be in (0, 1], got {restored_share}."
            )
        restorative, adversarial = starts
        if schedule is not None and (restorative or adversarial):
            raise ValueError(
                "DiRA: give a schedule, or restorative_start and adversarial_start, "
                "not both."
            )
        if adversarial is not None:
            discriminator = _on_device_of(
                features, discriminator, target_channels, conditional
            )
        elif discriminator is not None:
            raise ValueError(
                "DiRA: adversarial_start=None leaves the adversary out, but a "
                "discriminator is given. Leave one of the two out."
            )
        super().__init__(
            features, head, discriminator, discriminator_lr=discriminator_lr
        )
        # The tuple keeps PyTorch from registering it as a submodule.
        self._criterion = (criterion,)
        self.loss, self.target_channels = loss or DiRALoss(), target_channels
        self.conditional, self.restored_share = conditional, restored_share
        self._finite, self._turns = FiniteTerms(), Turns()
        # Shapes of images that the critic has judged before.
        self._judged: set[tuple[torch.Size, ...]] = set()
        chosen = schedule or Schedule.starting(restorative, adversarial)
        if adversarial is None:
            chosen = chosen.without_adversary()
        self.schedule = chosen
        self._schedule_was_set = schedule is not None
        if optimizer is not None:
            self.attach(optimizer)

    @property
    def last_layer(self) -> Tensor | None:
        """Weights of the layer that makes the images, for `DiRALoss(balanced=True)`.

        A head or a host of your own names them by an attribute of this name.
        """
        raise NotImplementedError

    @property
    def _held_out(self) -> list[nn.Module]:
        """What must not change without gradients, as in validation."""
        return [] if torch.is_grad_enabled() else [self.head, self._critic]

    @property
    def _adversary_starts(self) -> bool:
        """Whether the schedule has an adversary, now or later."""
        return self.discriminator is not None and starts(self.schedule.adversarial)

    def _check_balanced(self) -> None:
        if self.loss.balanced and self._adversary_starts:
            check_last_layer(self.last_layer)

    def _rows(self, size: int) -> Rows:
        """Returns the rows that this step restores: all without gradients."""
        if not torch.is_grad_enabled():
            return Rows(0, size, size)
        return self._turns.rows(size, self.restored_share, self.steps)

    def _run_head(self, *arguments: Any) -> Tensor:
        """Runs the head; as it is, where compiled code could not be balanced."""
        run = _run_eagerly if self.loss.balanced else nn.Module.__call__
        restored: Tensor = run(self.head, *arguments)
        return restored

    def _condition(self, images: list[Tensor]) -> Tensor | None:
        """Returns what a conditional critic sees beside the images."""
        return join(images).detach() if self.conditional and images else None

    def _try_critic(self, target: Tensor, condition: Tensor | None) -> None:
        """Tries once, for each size, whether the critic can judge such images."""
        shapes = tuple(x.shape[1:] for x in (target, condition) if x is not None)
        if self._adversary_starts and shapes not in self._judged:
            try_critic(self._critic, target, condition)
            self._judged.add(shapes)

    def _weigh(
        self,
        loss: Tensor,
        restored: Tensor,
        target: Tensor,
        condition: Tensor | None,
        precisions: set[torch.dtype],
        factors: Factors,
    ) -> Tensor:
        """Weights the terms and adds them up to one scalar."""
        adversary = self.discriminator if self.stage == "dira" else None
        if condition is not None:
            condition = moved(condition, restored.device)
        with evaluating(*self._held_out):
            components = self.loss.forward_components(
                loss,
                restored,
                target,
                adversary,
                factors,
                condition=condition,
                last_layer=self.last_layer,
            )
        self.components = DiRALossComponents(*(term.detach() for term in components))
        if adversary is None:
            self._try_critic(target, condition)
        self._finite.check(
            self.components,
            lambda: self._discriminator_step.is_scaled or needs_scaler(precisions),
        )
        total = components.total
        if total.requires_grad:
            total = self._discriminator_step.watch(total)
        return (
            total if adversary is not None else with_zero_gradients(total, self._critic)
        )

    def _hand_back(self, loss: Tensor, distance: Tensor | None = None) -> Tensor:
        """Returns the method's loss, as its schedule scales it, and nothing else."""
        factor = self.schedule(self.steps).discriminative
        value = loss.detach().reshape(())
        zero = value.new_zeros(())
        restorative = zero if distance is None else distance
        self.components = DiRALossComponents(
            factor * value, value, restorative, zero, zero
        )
        loss = loss if factor == 1 else factor * loss
        return with_zero_gradients(loss, self.head, self._critic)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Moves and converts all parts, but never the critic to half precision."""

        def precise(tensor: Tensor) -> Tensor:
            applied = fn(tensor)
            if applied.is_floating_point() and applied.dtype.itemsize < 4:
                applied = tensor.to(applied.device)
            return applied

        rest = [child for child in self.children() if child is not self.discriminator]
        if not recurse:
            return self
        for child in rest:
            child._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._critic._apply(precise, recurse)  # type: ignore[no-untyped-call]
        self._discriminator_step.move_state(precise)
        return self

    def get_extra_state(self) -> Tensor:
        """Returns what `state_dict()` holds besides weights, as one tensor of bytes.

        Its length stays the same during a run.
        """
        return packed(self._progress())

    def set_extra_state(self, state: Tensor) -> None:
        """Restores what `get_extra_state` returned.

        Raises:
            ValueError: If it was averaged or converted, or is of other feature maps.
        """
        saved = unpacked(state)
        self._discriminator_step.load_state(self._critic, saved["adam"])
        (criterion,) = self._criterion
        if criterion is not None:
            load_buffers(criterion, saved["criterion"])
        if isinstance(self.features, FeaturePyramid):
            check_layers(saved.get("layers"), self.features)
            self.features.change.load_state(saved["view_change"])
        if not saved["ramps"].isnan().all():
            schedule = self.schedule.with_state(saved["ramps"])
            if not saved["adam"]:  # of a run without a critic
                schedule = replace(schedule, adversarial=self.schedule.adversarial)
            self.schedule = schedule
        self._turns = Turns(int(saved.get("turns", saved["steps"] - 1)))
        self._count(int(saved["steps"]))

    def _progress(self) -> dict[str, Any]:
        """Returns where the run is, in tensors of fixed shapes, and its layers."""
        ramps = self.schedule.state()
        if not self._schedule_was_set:
            ramps = torch.full_like(ramps, math.nan)
        state: dict[str, Any] = {"steps": torch.tensor(self.steps), "ramps": ramps}
        state["turns"] = torch.tensor(self._turns.taken)
        if isinstance(self.features, FeaturePyramid):
            state["layers"] = self.features.layers
            state["view_change"] = self.features.change.state()
        (criterion,) = self._criterion
        state["criterion"] = {} if criterion is None else buffers_of(criterion)
        state["adam"] = self._discriminator_step.state(self._critic)
        return state

    def extra_repr(self) -> str:
        """Names stage and steps in the module's repr."""
        return f"stage={self.stage!r}, steps={self.steps}"


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _run_eagerly(module: nn.Module, *arguments: Any) -> Any:
    """Runs a module whose outputs are differentiated twice."""
    return module(*arguments)


def _on_device_of(
    features: FeaturePyramid | RestoringHost,
    discriminator: nn.Module | None,
    target_channels: int,
    conditional: bool,
) -> nn.Module:
    """Makes the critic, unless it is given, without a change of the random state."""
    weight = next(features.backbone.parameters())
    if discriminator is None:
        channels = target_channels + (features.image_channels if conditional else 0)
        dims = features.spatial_dims
        with same_randomness(weight.device):
            discriminator = PatchDiscriminator(channels, spatial_dims=dims)
    # Losses and Adam's step are computed in at least 32 bits.
    precise = torch.promote_types(weight.dtype, torch.float32)
    return discriminator.to(weight.device, precise)


def check_loss(loss: object) -> None:
    """Raises a ValueError if the method's loss does not have exactly one element."""
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        got = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else loss
        raise ValueError(
            "DiRA: expected the method's loss as a scalar, a tensor of one "
            f"element, got {got}. Reduce it first, for example with `loss.mean()`."
        )
