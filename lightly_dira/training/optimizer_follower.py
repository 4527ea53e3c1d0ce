"""Follows the user's optimiser: counts steps, and changes stages."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightly_dira.core.hooks import Hook, HookSet
from lightly_dira.core.leaves import leaves_of
from lightly_dira.core.user_warnings import warn
from lightly_dira.features.pyramid import FeaturePyramid
from lightly_dira.features.restoring_host import RestoringHost
from lightly_dira.loss import DiRALossComponents
from lightly_dira.loss.schedule import Schedule, starts
from lightly_dira.training.discriminator_step import DiscriminatorStep
from lightly_dira.training.first_step import FirstStep
from lightly_dira.training.idle import IdleWatch
from lightly_dira.training.optimizer_groups import (
    add_parameters,
    check_can_be_followed,
    check_not_replaced,
    check_state_knows,
    held_by,
    remove_parameters,
    replace_parameters,
    without_gradients,
)
from lightly_dira.training.trial import check_assigned


class OptimizerFollower(nn.Module):
    """Trains a head with the user's optimiser, and a discriminator after its steps.

    This part does not depend on what is restored. It counts the steps of the user's
    optimiser and changes stages.
    """

    def __init__(
        self,
        features: FeaturePyramid | RestoringHost,
        head: nn.Module,
        discriminator: nn.Module | None,
        *,
        discriminator_lr: float,
    ) -> None:
        """Takes the parts; see `DiRA`."""
        super().__init__()
        self.features = features
        self.head = head
        self.discriminator = discriminator
        self.components: DiRALossComponents | None = None
        self._discriminator_step = DiscriminatorStep(
            self._critic, head, lr=discriminator_lr
        )
        self._hooks = HookSet()
        self._optimizer: Optimizer | None = None
        self._stepping, self._first_step = False, FirstStep()
        self._idle = IdleWatch()
        # When it was attached: the head's parameters, and ids of the backbone's.
        self._of_head: dict[str, nn.Parameter] = {}
        self._of_backbone: set[int] = set()
        # What the method's loss depends on, as its first call tells.
        self._leaves, self._clips = list[nn.Parameter](), False
        self.steps = 0
        self._schedule, self._schedule_was_set = Schedule.starting(0, None), False

    @property
    def _critic(self) -> nn.Module:
        """The discriminator, or a module without parameters if there is none."""
        return _NOBODY if self.discriminator is None else self.discriminator

    @property
    def schedule(self) -> Schedule:
        """What the weights of the terms are multiplied by at each step.

        It may be set in the middle of a run. `state_dict()` remembers its ramps, and
        loading it replaces those that the wrapper was created with.
        """
        return self._schedule

    @schedule.setter
    def schedule(self, schedule: Schedule) -> None:
        if self.discriminator is None:
            if starts(schedule.adversarial):
                warn(_NO_CRITIC)
            schedule = schedule.without_adversary()
        self._schedule = schedule
        self._schedule_was_set = True
        self._count(self.steps)

    @property
    def stage(self) -> str:
        """What the next call trains: "di", "dir" or "dira"."""
        factors = self.schedule(self.steps)
        if not factors.restorative:
            return "di"
        return "dira" if factors.adversarial else "dir"

    def attach(self, optimizer: Optimizer) -> None:
        """Trains the head with this optimiser, and the discriminator after its steps.

        The optimiser then holds every parameter of the head exactly once, and none of
        the discriminator's. The head's weights join groups with weights of the
        backbone, its biases and norms those with biases and norms, so that weight decay
        applies as intended. Parameters that have been replaced since the last call, as
        by ``load_state_dict(assign=True)``, take the places of the old ones. An earlier
        optimiser loses the head, and is not followed any more.

        Args:
            optimizer: The optimiser that holds the backbone's parameters.

        Raises:
            TypeError: If it is not a `torch.optim.Optimizer`, or one that wraps
                another and has no hooks, or that cannot train the head.
            ValueError: If it holds none of the backbone's parameters.
        """
        check_can_be_followed(optimizer)
        head = dict(self.head.named_parameters())
        replace_parameters(optimizer, self._of_head, head)
        if self._optimizer is not None and self._optimizer is not optimizer:
            remove_parameters(self._optimizer, self.head)
        self._hooks.clear()
        for register, method in (
            (optimizer.register_step_pre_hook, self._before_step),
            (optimizer.register_step_post_hook, self._after_step),
            (optimizer.register_load_state_dict_pre_hook, self._before_loading),
        ):
            self._hooks.add(register(Hook(method)))
        backbone = [*self.features.backbone.parameters()]
        add_parameters(optimizer, self.head, beside=backbone)
        remove_parameters(optimizer, self._critic)
        self._optimizer = optimizer
        self._of_head, self._leaves = head, []
        self._of_backbone = {id(p) for p in backbone}
        self._discriminator_step.adopt(self._critic, self.head)
        self._discriminator_step.witnesses = Hook(self._witnesses)
        self._follow_witnesses()

    def is_attached_to(self, optimizer: Optimizer) -> bool:
        """Whether steps of this optimiser, or of one that it wraps, are followed."""
        inner = vars(optimizer).values()
        return any(each is self._optimizer for each in (optimizer, *inner))

    def clip_grad_norm_(self, max_norm: float, norm_type: float = 2.0) -> Tensor:
        """Clips the gradients of model and head together, by their common norm.

        `torch.nn.utils.clip_grad_norm_(model.parameters(), ...)` leaves the head out,
        since the model does not hold it. What the method's loss depends on is clipped,
        too, if another optimiser trains it; what must not be, such as a critic of your
        own, has to be frozen while the loss is computed. The discriminator needs no
        clipping: the scale of its gradients does not affect its Adam.

        Args:
            max_norm: Largest norm of all gradients that the optimiser will use.
            norm_type: Order of the norm.

        Returns:
            The norm before clipping.

        Raises:
            RuntimeError: If no optimiser is attached.
        """
        if self._optimizer is None:
            raise RuntimeError(_NO_OPTIMIZER)
        held = [p for g in self._optimizer.param_groups for p in g["params"]]
        self._clips, known = True, held_by(self._optimizer)
        others = [p for p in self._leaves if id(p) not in known]
        return nn.utils.clip_grad_norm_([*held, *others], max_norm, norm_type)

    def _check_followed(self, loss: Tensor) -> None:
        """Warns if no optimiser step would train head and discriminator."""
        if self._optimizer is None and torch.is_grad_enabled():
            self._idle.warn_once(_NO_OPTIMIZER)
        if self._optimizer is None or not torch.is_grad_enabled():
            return
        self._idle.called(
            self.features,
            self._optimizer,
            in_step=self._stepping,
            emptied=self._discriminator_step.began_empty,
        )
        self._discriminator_step.began_empty = False
        if self._clips or not self._leaves:
            self._leaves = leaves_of(loss)
            self._follow_witnesses()

    def _check_parameters(self) -> None:
        """Raises a RuntimeError if the optimisers hold parameters of the past.

        Not earlier than at a step: sharded modules have others within their passes.
        """
        assert self._optimizer is not None
        check_not_replaced(
            {id(p) for p in self._of_head.values()},
            {id(p) for p in self._discriminator_step.parameters},
            {id(p) for p in (*self.head.parameters(), *self._critic.parameters())},
            (self._of_backbone, {id(p) for p in self.features.backbone.parameters()}),
            held_by(self._optimizer),
        )

    def __getstate__(self) -> dict[str, Any]:
        """Returns what a copy needs to train by itself."""
        return {**self.__dict__, "_idle": IdleWatch(), "_leaves": []}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        if self._optimizer is not None:
            self.attach(self._optimizer)

    def __setattr__(self, name: str, value: Any) -> None:
        """Rejects a new head or discriminator, which no optimiser would train."""
        old = self.__dict__.get("_modules", {}).get(name)
        missing = self.__dict__.get(name, self) is None and value is not None
        if name in ("head", "discriminator") and (old is not None or missing):
            check_assigned(name, old, value)
        super().__setattr__(name, value)

    def _count(self, steps: int) -> None:
        self.steps = steps
        if isinstance(self.features, FeaturePyramid):
            self.features.capture.capturing = self.stage != "di"

    def _witnesses(self) -> list[list[nn.Parameter]]:
        """Returns what reveals a `zero_grad()`: the backbone, the method, the head."""
        assert self._optimizer is not None
        held = [p for g in self._optimizer.param_groups for p in g["params"]]
        backbone = {id(p) for p in self.features.backbone.parameters()}
        head = {id(p) for p in self._of_head.values()}
        return [
            [p for p in held if id(p) in backbone],
            [p for p in (*held, *self._leaves) if id(p) not in head],
            [p for p in held if id(p) in head],
        ]

    def _follow_witnesses(self) -> None:
        groups = self._witnesses()
        trained = (group for group in groups if any(p.requires_grad for p in group))
        self._discriminator_step.follow(next(trained, groups[0]))

    def _before_step(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Keeps the optimiser from stepping a head that has not started.

        With several processes, the head's gradients are zero then, not missing. A
        closure that the optimiser calls may compute them, too, as in Lightning.
        """
        self._stepping = True
        self._discriminator_step.drop_if_gone()
        self._check_parameters()
        self._first_step.note(self.head, self.features.backbone)
        begun = self.stage != "di"
        return None if begun else without_gradients(self.head, args, kwargs)

    def _before_loading(self, optimizer: Optimizer, state: dict[str, Any]) -> None:
        check_state_knows(self.head, optimizer, state)

    def _after_step(self, optimizer: Optimizer, *arguments: object) -> None:
        """Follows a step of the user's optimiser."""
        if not self._stepping:
            return  # of a subclass, after its base's, which has hooks, too
        parts = {} if self.stage == "di" else {"head": self.head}
        if self.stage == "dira":
            parts["critic"] = self._critic
        self._idle.stepped(
            optimizer,
            was_run=self.features.was_run,
            was_left=self._discriminator_step.was_left,
            parts=[*parts.values()],
        )
        self.features.forget()
        self._stepping = False
        # Fused optimisers are called even when a scaler has found an overflow.
        skipped = bool(getattr(optimizer, "found_inf", False))
        if self.stage == "dira" and not skipped:
            self._discriminator_step.step()
        else:
            self._discriminator_step.forget()
        if not skipped:
            self._first_step.check(self.head, self.features.backbone, parts)
            self._count(self.steps + 1)


# Stands in for a discriminator where there is no adversary.
_NOBODY = nn.Identity()

_NO_OPTIMIZER = (
    "DiRA: no optimiser is attached, so neither head nor discriminator will be "
    "stepped, and the stage will not change. Pass one, DiRA(backbone, optimizer), or "
    "call `dira.attach(optimizer)`."
)

_NO_CRITIC = (
    "DiRA: the schedule has an adversary, but this wrapper was made without one "
    "(adversarial_start=None), and goes on without it. Make it with a start, or with "
    "DiRA(..., schedule=...)."
)
