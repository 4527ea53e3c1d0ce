"""Who steps what: the head with the user's optimiser, the discriminator after it."""

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
    """Adam for the discriminator, blind to how the user's loop scales its loss.

    The discriminator's gradients carry whatever factor the loop put on the loss: a
    `GradScaler`'s, an accumulation's, a sum's. The gradient that arrives at the
    returned scalar is that factor, so it is summed up beside the gradients and divided
    out before Adam sees them. Nothing here waits for the device.

    A `zero_grad()` ends what was gathered, also where a scaler skipped the step before
    it. It is noticed by the backbone's gradients, as the next backward pass begins: all
    of them are gone, or all are zero and some were changed since the backward pass
    before. What the `zero_grad()` did not reach is dropped then: the discriminator's
    gradients and, after `model.zero_grad()`, the head's.

    Args:
        discriminator: The module to train.
        head: The module that the user's optimiser trains but the model does not hold.
        lr: Adam's learning rate.

    Attributes:
        witnesses: Returns groups of parameters; the gradients of the first group that
            has any tell of a `zero_grad()`.
    """

    def __init__(self, discriminator: nn.Module, head: nn.Module, *, lr: float) -> None:
        """Creates Adam with the published betas."""
        self.parameters = list(discriminator.parameters())
        self.adam = Adam(self.parameters, lr=lr, betas=(0.5, 0.999))
        self.witnesses: Callable[[], Sequence[list[Parameter]]] = lambda: ()
        self._out_of_reach = [*self.parameters, *head.parameters()]
        self._scale: Tensor | None = None
        # What the latest backward pass gave gradients, and their places and versions.
        self._reached: list[Parameter] = []
        self._left: list[tuple[int, int] | None] = []
        self._in_backward = False
        self._handles: list[RemovableHandle] = []

    def __getstate__(self) -> dict[str, Any]:
        """Returns all but what only the owner can give: see `witnesses`."""
        return {**self.__dict__, "witnesses": tuple, "_handles": []}

    def watch(self, total: Tensor) -> None:
        """Notes every backward pass through `total`, as it begins."""
        self._in_backward = False  # the last may have ended with an exception
        total.register_hook(self._begin_backward)  # type: ignore[no-untyped-call]

    def step(self) -> None:
        """Steps Adam with what has been gathered, if anything, and forgets it.

        Gradients that are not finite count as 0: a scaler looks at the user's
        optimiser alone.
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

        Also one that `watch` knows nothing of, such as that of another loss.
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
        """Looks, before a backward pass adds to any gradient, what is left of them."""
        if self._in_backward:
            return
        self._in_backward = True
        gathered = [p.grad for p in self._out_of_reach if p.grad is not None]
        if gathered and self._left != self._marks():
            self._drop_emptied(gathered)
        # What averages or shards gradients may itself wait for the end: come last.
        after_backward(lambda: after_backward(self._end_backward))

    def _end_backward(self) -> None:
        self._in_backward = False
        groups = self.witnesses()
        reached = ([p for p in group if p.grad is not None] for group in groups)
        self._reached = next(filter(None, reached), [])
        self._left = self._marks()

    def _marks(self) -> list[tuple[int, int] | None]:
        """Tells gradients apart, and whether they were changed, by no value of them."""
        return [
            None if p.grad is None else (_own_part(p.grad).data_ptr(), p.grad._version)
            for p in self._reached
        ]

    def _drop_emptied(self, gathered: list[Tensor]) -> None:
        """Drops what was gathered, if gradients of the witnesses are gone or zero."""
        left = [_own_part(p.grad) for p in self._reached if p.grad is not None]
        if not left:
            for parameter in self._out_of_reach:
                parameter.grad = None
            self._scale = None
            return
        if left[0].device.type == "cpu":
            # Nothing has to be waited for, and the first that is not zero will do.
            emptied = torch.tensor(not any(bool(part.any()) for part in left))
        else:
            emptied = ~torch.stack([part.any() for part in left]).any()
        for gradient in gathered:
            gradient.masked_fill_(emptied, 0)
        if self._scale is not None:
            self._scale = self._scale.masked_fill(emptied, 0)


def _own_part(tensor: Tensor) -> Tensor:
    """Returns what this process has of a tensor that may be sharded."""
    to_local = getattr(tensor, "to_local", None)
    return tensor if to_local is None else to_local()
