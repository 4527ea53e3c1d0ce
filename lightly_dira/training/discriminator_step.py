"""Steps the discriminator after the user's optimiser has stepped the head."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import Adam

from lightly_dira.core.hooks import Hook, HookSet
from lightly_dira.core.private_torch import after_backward, changes_of
from lightly_dira.core.user_warnings import warn
from lightly_dira.training.optimizer_groups import held_by, replace_parameters

# What Adam keeps of each parameter, besides the number of its steps.
_MOMENTS = ("exp_avg", "exp_avg_sq")


class DiscriminatorStep:
    """Adam for the discriminator, independent of the scale of the user's loss.

    The discriminator's gradients carry whatever factor the loop put on the loss: a
    `GradScaler`'s, an accumulation's, a sum's. That factor is the gradient of a zero
    that is added to the returned scalar. PyTorch accumulates it as it does all others,
    which are divided by it before Adam sees them. Nothing here waits for the device.

    A `zero_grad()` ends an accumulation, even if a scaler skipped the step before it.
    The next backward pass notices it from the backbone's gradients: all of them are
    gone, or all are zero and some have changed since the previous backward pass. Then
    the gradients that the `zero_grad()` did not reach are dropped: the discriminator's
    and, after `model.zero_grad()`, the head's.

    Args:
        discriminator: The module to train.
        head: The module that the user's optimiser trains but the model does not hold.
        lr: Adam's learning rate.

    Attributes:
        witnesses: Returns groups of parameters; the first group that has any trained
            ones reveals a `zero_grad()`.
        was_left: Whether a scalar has been watched since the last step, and no backward
            pass has gone through one.
        began_empty: Whether a backward pass has begun without any gradients, as after a
            `zero_grad()`, since this was last set to False.
    """

    def __init__(self, discriminator: nn.Module, head: nn.Module, *, lr: float) -> None:
        """Creates Adam with the published betas."""
        self._named = dict(discriminator.named_parameters())
        self.parameters = list(self._named.values())
        # A group may be empty, where there is no adversary.
        group = {"params": self.parameters}
        self.adam = Adam([group], lr=lr, betas=(0.5, 0.999))
        self.witnesses: Callable[[], Sequence[list[Parameter]] | None] = lambda: ()
        self.was_left = self.began_empty = self._passed = False
        self._out_of_reach = [*self.parameters, *head.parameters()]
        self._zero = torch.zeros((), requires_grad=True)
        self._last_scale: Tensor | None = None
        # Parameters with gradients after the last pass; their addresses and versions.
        self._reached: list[Parameter] = []
        self._left: list[tuple[int, ...] | None] = []
        # The same of the discriminator's.
        self._gathered: list[tuple[int, ...] | None] = []
        self._in_backward = self._aborted = False
        self._followed: list[Parameter] = []
        self._trainable = 0
        self._hooks = HookSet()

    def __getstate__(self) -> dict[str, Any]:
        """Returns all but `witnesses`, which only the owner can set."""
        return {**self.__dict__, "witnesses": tuple}

    def watch(self, total: Tensor) -> Tensor:
        """Returns the same scalar, whose backward passes are noted as they begin."""
        self.was_left = not self._passed
        # The last may have ended with an exception.
        self._aborted, self._in_backward = self._in_backward, False
        if sum(p.requires_grad for p in self._followed) != self._trainable:
            self.follow(self._followed)
        zero = self._zero
        if (zero.device, zero.dtype) != (total.device, total.dtype):
            self._zero = zero = total.detach().new_zeros((), requires_grad=True)
        total = total + zero
        total.register_hook(Hook(self._begin_backward))  # type: ignore[no-untyped-call]
        return total

    @property
    def scale(self) -> Tensor | None:
        """The factor on the gradients that have been gathered, if there are any."""
        return self._zero.grad

    @property
    def is_scaled(self) -> bool:
        """Whether the last backward pass had a scale that a `GradScaler` would have.

        These are powers of two, and large, divided by the steps of an accumulation. It
        waits for the device.
        """
        scale = 0.0 if self._last_scale is None else float(self._last_scale)
        powers = (math.log2(scale * n) for n in range(1, 65) if scale >= 16)
        return any(abs(power - round(power)) < 1e-6 for power in powers)

    def adopt(self, discriminator: nn.Module, head: nn.Module) -> None:
        """Trains these parameters, also where some have replaced those known so far."""
        named = dict(discriminator.named_parameters())
        replace_parameters(self.adam, self._named, named)
        held = held_by(self.adam)
        new = (p for p in named.values() if id(p) not in held)
        self.adam.param_groups[0]["params"].extend(new)
        self._named, self.parameters = named, list(named.values())
        self._out_of_reach = [*self.parameters, *head.parameters()]

    def state(self, discriminator: nn.Module) -> dict[str, Tensor]:
        """Returns Adam's state by parameter, zeros before its first step."""
        state = {}
        for name, parameter in discriminator.named_parameters():
            known = self.adam.state.get(parameter, {})
            state[f"{name}.step"] = known.get("step", torch.zeros(()))
            for moment in _MOMENTS:
                zeros = torch.zeros_like(parameter, requires_grad=False)
                state[f"{name}.{moment}"] = known.get(moment, zeros)
        return state

    def load_state(self, discriminator: nn.Module, state: Mapping[str, Tensor]) -> None:
        """Restores what `state` returned."""
        for name, parameter in discriminator.named_parameters():
            self.adam.state.pop(parameter, None)
            # Of another discriminator, PyTorch names the weights that do not fit.
            fits = getattr(state.get(f"{name}.exp_avg"), "shape", None)
            if fits == parameter.shape and float(state[f"{name}.step"]):
                self.adam.state[parameter] = {
                    # On the CPU, where Adam keeps it.
                    "step": state[f"{name}.step"].detach().cpu().float().clone(),
                    **{
                        moment: torch.zeros_like(parameter, requires_grad=False).copy_(
                            state[f"{name}.{moment}"]
                        )
                        for moment in _MOMENTS
                    },
                }

    def move_state(self, move: Callable[[Tensor], Tensor]) -> None:
        """Moves Adam's moments as the discriminator is moved."""
        for state in self.adam.state.values():
            for moment in _MOMENTS:
                state[moment] = move(state[moment])

    def step(self) -> None:
        """Steps Adam with the gathered gradients, if any, and drops them.

        If some are not finite, all count as 0: a scaler checks only the user's
        optimiser.
        """
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        if self.scale is None or not gradients:
            self.forget()
            return
        if self._gathered and self._gathered != self._marks(self.parameters):
            _warn_of_changes()
        for gradient in gradients:
            gradient.div_(self.scale)
        finite = torch.stack([g.isfinite().all() for g in gradients]).all()
        for gradient in gradients:
            gradient.masked_fill_(~finite, 0)
        self.adam.step()
        self.forget()

    def forget(self) -> None:
        """Drops what has been gathered."""
        self.adam.zero_grad()
        self._zero.grad = None
        self._gathered = []
        self.was_left = self._passed = False

    def follow(self, parameters: Iterable[Parameter]) -> None:
        """Notes every backward pass that is about to reach one of these, as it begins.

        This includes passes that `watch` does not see, such as that of another loss.
        """
        followed = list(parameters)
        trained = [p for p in followed if p.requires_grad]
        same = list(map(id, followed)) == list(map(id, self._followed))
        if self._hooks and same and len(trained) == self._trainable:
            return
        self._hooks.clear()
        self._followed, self._trainable = followed, len(trained)
        for parameter in trained:
            hook = Hook(self._reach)
            self._hooks.add(parameter.register_hook(hook))  # type: ignore[no-untyped-call]

    def drop_if_gone(self) -> None:
        """Drops what a `zero_grad()` left, if no backward pass came after it.

        The next one would notice, but a step of another loss comes before.
        """
        gathered = [p.grad for p in self._out_of_reach if p.grad is not None]
        if gathered and self._reached and all(p.grad is None for p in self._reached):
            self._drop_emptied(gathered)

    def _begin_backward(self, scale: Tensor) -> None:
        # Where several losses are summed, this runs several times before any gradient
        # is written; then nothing is gathered, or what is gathered has been emptied.
        self._reach(scale)
        self.was_left, self._passed = False, True
        self._last_scale = scale.detach()

    def _reach(self, gradient: Tensor) -> None:
        """Checks what is left of the gradients before a backward pass adds to them."""
        if self._in_backward:
            return
        self._in_backward = True
        self.began_empty |= all(p.grad is None for p in self._followed)
        gathered = [p.grad for p in self._out_of_reach if p.grad is not None]
        if self._aborted:
            # Nothing was noted at its end: judge by what is left of it.
            self._note_reached()
        if gathered and (self._aborted or self._left != self._marks(self._reached)):
            self._drop_emptied(gathered)
        self._aborted = False
        # Code that averages or shards gradients may wait for the end, too: come last.
        after_backward(lambda: after_backward(self._end_backward))

    def _end_backward(self) -> None:
        self._in_backward = False
        self._note_reached()

    def _note_reached(self) -> None:
        groups = self.witnesses() or ()  # None where the wrapper is gone
        trained = (group for group in groups if any(p.requires_grad for p in group))
        self._reached = [p for p in next(trained, ()) if p.grad is not None]
        self._left = self._marks(self._reached)
        self._gathered = self._marks(self.parameters)

    def _marks(self, parameters: list[Parameter]) -> list[tuple[int, ...] | None]:
        """Returns what identifies gradients and their changes, without their values."""
        return [
            None
            if p.grad is None
            else (_own_part(p.grad).data_ptr(), *changes_of(p.grad))
            for p in parameters
        ]

    def _drop_emptied(self, gathered: list[Tensor]) -> None:
        """Drops what was gathered, if the witnesses' gradients are all gone or zero."""
        left = [_own_part(p.grad) for p in self._reached if p.grad is not None]
        if not left:
            for parameter in (*self._out_of_reach, self._zero):
                parameter.grad = None
            return
        if left[0].device.type == "cpu":
            # Reading does not wait here, and the first that is not zero is enough.
            emptied = torch.tensor(not any(bool(part.any()) for part in left))
        else:
            emptied = ~torch.stack([part.any() for part in left]).any()
        scale = [] if self.scale is None else [self.scale]
        for gradient in (*gathered, *scale):
            gradient.masked_fill_(emptied, 0)


@functools.cache
def _warn_of_changes() -> None:
    """Warns, once in a process."""
    warn(
        "DiRA: gradients of the discriminator were changed after the backward pass, as "
        "clip_grad_norm_ of all parameters of a module that holds the wrapper does: "
        "the discriminator's are much larger, and the method's were clipped by their "
        "norm. Clip by `dira.clip_grad_norm_(max_norm)` or, with Lightning, by "
        "Trainer(gradient_clip_val=...)."
    )


def _own_part(tensor: Tensor) -> Tensor:
    """Returns this process's part of a tensor that may be sharded."""
    to_local = getattr(tensor, "to_local", None)
    return tensor if to_local is None else to_local()
