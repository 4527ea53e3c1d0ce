"""Notices, after a few steps, that DiRA is there but does not train."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Sequence

import torch
from torch import nn
from torch.optim import Optimizer

from lightly_dira.core.private_torch import changes_of
from lightly_dira.core.user_warnings import warn
from lightly_dira.features.pyramid import FeaturePyramid
from lightly_dira.features.restoring_host import RestoringHost

# A warning comes after this many consecutive steps.
_MISSED_STEPS = 3
# And if DiRA has never been called, after this many: loops may warm up without it.
_STEPS_WITHOUT_CALL = 5
# Optimisers for which some wrapper has been called: several may share one.
_CALLED: weakref.WeakSet[Optimizer] = weakref.WeakSet()


class IdleWatch:
    """Counts what is missing in consecutive steps, and warns of each thing once.

    | what is missing   | how it is known                                           |
    |-------------------|-----------------------------------------------------------|
    | a step            | weights change, or the backbone is not run, between calls |
    | a call            | the optimiser steps and DiRA was never called             |
    | a trained encoder | no decoded map depends on trained weights                 |
    | a backward pass   | DiRA was called, but its scalar was not differentiated    |
    | gradients         | it was, and no parameter of head or critic has one        |
    | a trained decoder | no parameter of head or critic is trained                 |

    Steps without a call neither count nor interrupt: loops may alternate.
    """

    def __init__(self) -> None:
        """Has seen nothing yet."""
        self._versions: int | None = None
        self._missed: Counter[str] = Counter()
        self._warned: set[str] = set()
        self._called = False
        self.frozen = False

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def called(
        self,
        features: FeaturePyramid | RestoringHost,
        optimizer: Optimizer,
        *,
        in_step: bool,
        emptied: bool,
    ) -> None:
        """Notes a call with gradients.

        It warns if the backbone's weights changed several times, or it was not run, and
        no step was followed, as when a copy is trained.

        Args:
            features: What watches the backbone.
            optimizer: The attached optimiser.
            in_step: Whether its step makes this call, in a closure, as Lightning's do.
            emptied: Whether gradients were cleared since the last call: during an
                accumulation, weights may change for other reasons.
        """
        self._called, self.frozen = True, False
        _CALLED.add(optimizer)
        if in_step:
            return
        parameters = features.backbone.parameters()
        versions = sum(changes_of(*parameters))
        changed = self._versions is not None and self._versions != versions
        self._missed[_NOT_FOLLOWED] += (changed and emptied) or not features.was_run
        self._versions = versions
        self._warn_of(_NOT_FOLLOWED)

    def stepped(
        self,
        optimizer: Optimizer,
        *,
        was_run: bool,
        was_left: bool,
        parts: Sequence[nn.Module],
    ) -> None:
        """Notes a step of the attached optimiser.

        Args:
            optimizer: The attached optimiser.
            was_run: Whether the backbone was run with gradients since the last step.
            was_left: Whether DiRA's scalar was not differentiated.
            parts: The modules that should have got gradients.
        """
        self._versions, self._missed[_NOT_FOLLOWED] = None, 0
        if optimizer not in _CALLED:
            self._missed[_NEVER_CALLED] += was_run
            self._warn_of(_NEVER_CALLED, _STEPS_WITHOUT_CALL)
        if not self._called:
            return
        self._called = False
        self._count(_FROZEN, self.frozen)
        self._count(_NOT_DIFFERENTIATED, was_left)
        self._count(_NO_GRADIENT, not was_left and any(map(_is_left_out, parts)))
        self._count(_FROZEN_PARTS, any(map(_is_frozen, parts)))

    def warn_once(self, message: str) -> None:
        """Warns, unless it has done so before."""
        if message not in self._warned:
            self._warned.add(message)
            warn(message)

    def _count(self, what: str, missing: bool) -> None:
        self._missed[what] = self._missed[what] + 1 if missing else 0
        self._warn_of(what)

    def _warn_of(self, what: str, limit: int = _MISSED_STEPS) -> None:
        if self._missed[what] >= limit:
            self.warn_once(what)


def _is_left_out(module: nn.Module) -> bool:
    """Whether none of a module's trained parameters has a gradient."""
    trained = [p for p in module.parameters() if p.requires_grad]
    return bool(trained) and all(p.grad is None for p in trained)


def _is_frozen(module: nn.Module) -> bool:
    """Whether a module has parameters, and none of them is trained."""
    trained = [p.requires_grad for p in module.parameters()]
    return bool(trained) and not any(trained)


_NOT_FOLLOWED = (
    "DiRA: the backbone's weights change or it is not run, but the optimiser that "
    "DiRA is attached to takes no step: neither head nor discriminator is trained, "
    "and the stage does not change. Attach the optimiser whose `step()` runs, and "
    "every new one that you make: `dira.attach(optimizer)` (for a two-part optimiser "
    "such as SAM the inner one: `optimizer.base_optimizer`). Copy model, wrapper and "
    "optimiser in one call: `copy.deepcopy((model, dira, optimizer))`."
)

_NEVER_CALLED = (
    "DiRA: the optimiser has taken several steps, but DiRA has not been called with "
    "gradients, so that it trains nothing. Add its line to the loop, between the loss "
    "and `loss.backward()`: `loss = dira(loss, batch)`. To start without it, call it, "
    "too, and say how long: DiRA(..., restorative_start=1000), or adversarial_start."
)

_NOT_DIFFERENTIATED = (
    "DiRA: the scalar that DiRA returns is not differentiated, so that none of its "
    "parts is trained. Call `backward()` on it: `loss = dira(loss, batch)`, then "
    "`loss.backward()`; a training step of Lightning returns it."
)

_NO_GRADIENT = (
    "DiRA: the scalar that DiRA returns is differentiated, but no gradient reaches the "
    "head or the discriminator. Call `loss.backward()` without `inputs=`, and "
    "`zero_grad()` after `optimizer.step()` or before the next backward pass."
)

_FROZEN = (
    "DiRA: every parameter of the backbone is frozen (`requires_grad` is False), so "
    "that restoration trains the decoder alone and the encoder learns nothing. "
    "Unfreeze it, `backbone.requires_grad_(True)`, or leave DiRA out."
)

_FROZEN_PARTS = (
    "DiRA: every parameter of the head, or of the discriminator, is frozen "
    "(`requires_grad` is False), so that it stays as it was made. A loop over the "
    "parameters of a module that holds the wrapper freezes them, too: unfreeze them, "
    "`dira.requires_grad_(True)`."
)
