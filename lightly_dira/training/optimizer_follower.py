"""Follows the user's optimiser: counts steps, changes stages, keeps the state."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightly_dira.features.hooks import Hook
from lightly_dira.features.pyramid import FeaturePyramid
from lightly_dira.features.restoring_host import RestoringHost
from lightly_dira.loss import DiRALossComponents
from lightly_dira.training.checks import (
    FollowedOptimizer,
    check_averaged,
    check_moved,
    versions_of,
)
from lightly_dira.training.discriminator_step import DiscriminatorStep
from lightly_dira.training.optimizer_groups import (
    add_parameters,
    check_state_knows,
    remove_parameters,
    without_gradients,
)
from lightly_dira.training.schedule import Ramp, Schedule
from lightly_dira.training.state import buffers_of, load_buffers


class OptimizerFollower(nn.Module):
    """Trains a head with the user's optimiser, and a discriminator after its steps.

    This part of `DiRA` does not depend on what is restored. It counts the steps of the
    user's optimiser, changes stages, and keeps what a resumed run needs.
    """

    def __init__(
        self,
        features: FeaturePyramid | RestoringHost,
        head: nn.Module,
        discriminator: nn.Module,
        *,
        criterion: nn.Module | None,
        discriminator_lr: float,
        starts: tuple[float, float],
        schedule: Schedule | None,
    ) -> None:
        """Takes the parts; the arguments are those of `DiRA`."""
        super().__init__()
        self.features = features
        self.head = head
        self.discriminator = discriminator
        # The tuple keeps PyTorch from registering it as a submodule.
        self._criterion = (criterion,)
        self.components: DiRALossComponents | None = None
        self._discriminator_step = DiscriminatorStep(
            discriminator, head, lr=discriminator_lr
        )
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []
        self._optimizer: Optimizer | None = None
        self._averaged = self._stepping = False
        self._before = (0, 0)
        self._followed = FollowedOptimizer()
        self.steps = 0
        if schedule is not None and any(starts):
            raise ValueError(
                "DiRA: give a schedule, or restorative_start and adversarial_start, "
                "not both."
            )
        self.follow_schedule(schedule or stages(*starts))
        self._schedule_was_set = schedule is not None

    @property
    def stage(self) -> str:
        """What the next call trains: "di", "dir" or "dira"."""
        factors = self.schedule(self.steps)
        if not factors.restorative:
            return "di"
        return "dira" if factors.adversarial else "dir"

    def start_stages(
        self, restorative_start: float = 0, adversarial_start: float = 0
    ) -> None:
        """Sets when restoration and adversary start, also in the middle of a run.

        It is the simplest form of `follow_schedule`.

        Args:
            restorative_start: Steps of the optimiser before the restoration starts.
            adversarial_start: Steps before the adversary starts. It never starts before
                the restoration does; `math.inf` leaves it out.

        Raises:
            ValueError: If a number is below 0.
        """
        self.follow_schedule(stages(restorative_start, adversarial_start))

    def follow_schedule(self, schedule: Schedule) -> None:
        """Sets the schedule of the terms' weights, also in the middle of a run.

        `state_dict()` remembers its ramps. Loading it replaces those that the wrapper
        was created with.

        Args:
            schedule: What the weights are multiplied by at each step.
        """
        self.schedule = schedule
        self._schedule_was_set = True
        self._count(self.steps)

    def attach(self, optimizer: Optimizer) -> None:
        """Trains the head with this optimiser, and the discriminator after its steps.

        The optimiser then holds every parameter of the head exactly once, and none of
        the discriminator's. The head's weights join groups with weights of the
        backbone, its biases and norms those with biases and norms, so that weight decay
        applies as intended. DiRA stops following an optimiser attached before.

        Args:
            optimizer: The optimiser that holds the backbone's parameters.

        Raises:
            TypeError: If it is not a `torch.optim.Optimizer`.
            ValueError: If it holds none of the backbone's parameters.
        """
        if not isinstance(optimizer, Optimizer):
            raise TypeError(
                "DiRA: optimizer must be a torch.optim.Optimizer, got "
                f"{type(optimizer).__name__}."
            )
        for handle in self._hooks:
            handle.remove()
        self._hooks = [
            optimizer.register_step_pre_hook(Hook(self._before_step)),
            optimizer.register_step_post_hook(Hook(self._after_step)),
            optimizer.register_load_state_dict_pre_hook(Hook(self._before_loading)),
        ]
        backbone = self.features.backbone
        add_parameters(optimizer, self.head, beside=backbone.parameters())
        remove_parameters(optimizer, self.discriminator)
        self._optimizer = optimizer
        self._discriminator_step.witnesses = Hook(self._witnesses)
        trained, held = self._witnesses()
        self._discriminator_step.follow(trained or held)

    def clip_grad_norm_(self, max_norm: float, norm_type: float = 2.0) -> Tensor:
        """Clips the gradients of model and head together, by their common norm.

        `torch.nn.utils.clip_grad_norm_(model.parameters(), ...)` leaves the head out,
        since the model does not hold it. The discriminator needs no clipping: the scale
        of its gradients does not affect its Adam.

        Args:
            max_norm: Largest norm of all gradients that the optimiser will use.
            norm_type: Order of the norm.

        Returns:
            The norm before clipping, a scalar.

        Raises:
            RuntimeError: If no optimiser is attached.
        """
        if self._optimizer is None:
            raise RuntimeError(_NO_OPTIMIZER)
        held = [p for g in self._optimizer.param_groups for p in g["params"]]
        return nn.utils.clip_grad_norm_(held, max_norm, norm_type)

    def _check_followed(self) -> None:
        """Warns if no optimiser step would train head and discriminator."""
        if self._optimizer is None:
            if self.components is None:
                warnings.warn(_NO_OPTIMIZER, stacklevel=5)
        elif torch.is_grad_enabled() and not self._stepping:
            self._followed.check(self.features)

    def __getstate__(self) -> dict[str, Any]:
        """Returns what a copy needs to train by itself."""
        return {**self.__dict__, "_hooks": [], "_followed": FollowedOptimizer()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        if self._optimizer is not None:
            self.attach(self._optimizer)

    def get_extra_state(self) -> dict[str, Any]:
        """Returns what `state_dict()` holds besides head and discriminator."""
        adam = self._discriminator_step.adam.state_dict()
        state = {"steps": self.steps, "discriminator_optimizer": adam}
        if self._schedule_was_set:
            state["schedule"] = self.schedule.state()
        (criterion,) = self._criterion
        if criterion is not None:
            state["criterion"] = buffers_of(criterion)
        return state

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restores what `get_extra_state` returned."""
        # Optimisers keep the loaded tensors themselves; modules copy them.
        adam = copy.deepcopy(state["discriminator_optimizer"])
        self._discriminator_step.adam.load_state_dict(adam)
        (criterion,) = self._criterion
        if criterion is not None:
            load_buffers(criterion, state.get("criterion", {}))
        if "schedule" in state:
            self.follow_schedule(self.schedule.with_state(state["schedule"]))
        self._count(state["steps"])

    def __setattr__(self, name: str, value: Any) -> None:
        """Rejects a new head or discriminator, which no optimiser would train."""
        old = self.__dict__.get("_modules", {}).get(name)
        if name in ("head", "discriminator") and old is not None:
            ids = [
                {id(p) for p in module.parameters()} if module else set()
                for module in (old, value)
            ]
            if ids[0] != ids[1]:
                raise AttributeError(
                    f"DiRA: a module assigned to `dira.{name}` would never be trained, "
                    "since the optimisers hold the parameters of the old one. Create "
                    f"a new wrapper: DiRA(backbone, optimizer, {name}=...)."
                )
        super().__setattr__(name, value)

    def _count(self, steps: int) -> None:
        self.steps = steps
        self.features.capturing = self.stage != "di"

    def _witnesses(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """Returns what reveals a `zero_grad()`: the backbone's parameters, then all."""
        assert self._optimizer is not None
        held = [p for g in self._optimizer.param_groups for p in g["params"]]
        backbone = {id(p) for p in self.features.backbone.parameters()}
        return [p for p in held if id(p) in backbone], held

    def _before_step(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Keeps the optimiser from stepping a head that has not started.

        With several processes, the head's gradients are zero then, not missing. A
        closure that the optimiser calls may compute them, too, as in Lightning.
        """
        self._stepping = True
        self._before = self._versions()
        if self.stage != "di":
            return None
        return without_gradients(self.head, args, kwargs)

    def _versions(self) -> tuple[int, int]:
        return versions_of(self.head), versions_of(self.features.backbone)

    def _before_loading(self, optimizer: Optimizer, state: dict[str, Any]) -> None:
        check_state_knows(self.head, optimizer, state)

    def _after_step(self, optimizer: Optimizer, *arguments: object) -> None:
        """Follows a step of the user's optimiser."""
        self.features.forget()
        self._followed.stepped()
        self._stepping = False
        # Fused optimisers are called even when a scaler has found an overflow.
        overflow = getattr(optimizer, "found_inf", None)
        if overflow is not None and overflow.item():
            self._discriminator_step.forget()
            return
        if self.stage == "dira":
            self._discriminator_step.step()
        else:
            self._discriminator_step.forget()
        # A host that restores by itself leaves only the discriminator to be compared.
        has_head = any(True for _ in self.head.parameters())
        begun = self.stage in (("dir", "dira") if has_head else ("dira",))
        if begun and not self._averaged:
            self._averaged = True
            check_moved(self._before, self._versions())
            check_averaged(self.head if has_head else self.discriminator)
        self._count(self.steps + 1)


def stages(restorative_start: float, adversarial_start: float) -> Schedule:
    """Returns the schedule of parts that start at these steps.

    Raises:
        ValueError: If a number is below 0.
    """
    if not (restorative_start >= 0 and adversarial_start >= 0):
        raise ValueError(
            "DiRA: restorative_start and adversarial_start must be at least 0, got "
            f"{restorative_start} and {adversarial_start}."
        )
    return Schedule(
        restorative=Ramp(restorative_start), adversarial=Ramp(adversarial_start)
    )


_NO_OPTIMIZER = (
    "DiRA: no optimiser is attached, so neither head nor discriminator will be "
    "stepped, and the stage will not change. Pass one, DiRA(backbone, optimizer), or "
    "call `dira.attach(optimizer)`."
)
