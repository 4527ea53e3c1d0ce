"""Steps the discriminator after the user's optimiser has stepped the head."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import Adam
from torch.utils.hooks import RemovableHandle

from lightly_dira.features.hooks import Hook, remove_handles
from lightly_dira.training.autograd import after_backward


class DiscriminatorStep:
    """Adam for the discriminator, independent of the scale of the user's loss.

    The discriminator's gradients carry whatever factor the loop put on the loss: a
    `GradScaler`'s, an accumulation's, a sum's. That factor is the gradient that arrives
    at the returned scalar. It is accumulated along with the gradients, which are
    divided by it before Adam sees them. Nothing here waits for the device.

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
        witnesses: Returns groups of parameters; the first group that has any gradients
            reveals a `zero_grad()`.
    """

    def __init__(self, discriminator: nn.Module, head: nn.Module, *, lr: float) -> None:
        """Creates Adam with the published betas."""
        self.parameters = list(discriminator.parameters())
        self.adam = Adam(self.parameters, lr=lr, betas=(0.5, 0.999))
        self.witnesses: Callable[[], Sequence[list[Parameter]]] = lambda: ()
        self._out_of_reach = [*self.parameters, *head.parameters()]
        self._scale: Tensor | None = None
        # Parameters with gradients after the last pass; their addresses and versions.
        self._reached: list[Parameter] = []
        self._left: list[tuple[int, int] | None] = []
        self._in_backward = False
        self._handles: list[RemovableHandle] = []

    def __getstate__(self) -> dict[str, Any]:
        """Returns all but `witnesses` and hooks, which only the owner can set."""
        return {**self.__dict__, "witnesses": tuple, "_handles": []}

    def watch(self, total: Tensor) -> None:
        """Notes every backward pass through `total`, as it begins."""
        self._in_backward = False  # the last may have ended with an exception
        total.register_hook(self._begin_backward)  # type: ignore[no-untyped-call]

    def step(self) -> None:
        """Steps Adam with the gathered gradients, if any, and drops them.

        If some are not finite, all count as 0: a scaler checks only the user's
        optimiser.
        """
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        if self._scale is None or not gradients:
            self.forget()
            return
        for gradient in gradients:
            gradient.div_(self._scale)
        finite = torch.stack([g.isfinite().all() for g in gradients]).all()
        for gradient in gradients:
            gradient.masked_fill_(~finite, 0)
        self.adam.step()
        self.forget()

    def forget(self) -> None:
        """Drops what has been gathered."""
        self.adam.zero_grad()
        self._scale = None

    def follow(self, parameters: Iterable[Parameter]) -> None:
        """Notes every backward pass that is about to reach one of these, as it begins.

        This includes passes that `watch` does not see, such as that of another loss.
        """
        remove_handles(self._handles)
        self._handles = [
            parameter.register_hook(Hook(self._reach))  # type: ignore[no-untyped-call]
            for parameter in parameters
            if parameter.requires_grad
        ]
        weakref.finalize(self, remove_handles, self._handles)

    def _begin_backward(self, scale: Tensor) -> None:
        # Where several losses are summed, this runs several times before any gradient
        # is written; then nothing is gathered, or what is gathered has been emptied.
        self._reach(scale)
        self._scale = scale.detach() + (0 if self._scale is None else self._scale)

    def _reach(self, gradient: Tensor) -> None:
        """Checks what is left of the gradients before a backward pass adds to them."""
        if self._in_backward:
            return
        self._in_backward = True
        gathered = [p.grad for p in self._out_of_reach if p.grad is not None]
        if gathered and self._left != self._marks():
            self._drop_emptied(gathered)
        # Code that averages or shards gradients may wait for the end, too: come last.
        after_backward(lambda: after_backward(self._end_backward))

    def _end_backward(self) -> None:
        self._in_backward = False
        groups = self.witnesses()
        reached = ([p for p in group if p.grad is not None] for group in groups)
        self._reached = next(filter(None, reached), [])
        self._left = self._marks()

    def _marks(self) -> list[tuple[int, int] | None]:
        """Returns what identifies gradients and their changes, without their values."""
        return [
            None if p.grad is None else (_own_part(p.grad).data_ptr(), p.grad._version)
            for p in self._reached
        ]

    def _drop_emptied(self, gathered: list[Tensor]) -> None:
        """Drops what was gathered, if the witnesses' gradients are all gone or zero."""
        left = [_own_part(p.grad) for p in self._reached if p.grad is not None]
        if not left:
            for parameter in self._out_of_reach:
                parameter.grad = None
            self._scale = None
            return
        if left[0].device.type == "cpu":
            # Reading does not wait here, and the first that is not zero is enough.
            emptied = torch.tensor(not any(bool(part.any()) for part in left))
        else:
            emptied = ~torch.stack([part.any() for part in left]).any()
        for gradient in gathered:
            gradient.masked_fill_(emptied, 0)
        if self._scale is not None:
            self._scale = self._scale.masked_fill(emptied, 0)


def _own_part(tensor: Tensor) -> Tensor:
    """Returns this process's part of a tensor that may be sharded."""
    to_local = getattr(tensor, "to_local", None)
    return tensor if to_local is None else to_local()
