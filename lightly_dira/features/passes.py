"""One pass of a backbone: what went in, and the captured maps."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from lightly_dira.core.private_torch import changes_of, keeps_graph


@dataclass(eq=False)
class Pass:
    """One pass of the backbone: its input and the captured maps.

    Attributes:
        images: What the module that receives the image was called with.
        called_with: What the backbone itself was called with, if it was.
        training: Whether the backbone was in training mode.
        maps: The captured outputs, by module and number.
        compiled: What modules output in compiled code, by their names, each with
            whether gradients were on.
        outputs: How many tensors each module has output.
        without_gradients: Maps made while gradients were off.
        is_over: Whether a backward pass has been through it, so that no other can be.
        versions: How often `images` and `called_with` had been changed in place when
            the last map was captured.
    """

    images: Tensor
    called_with: Tensor | None
    training: bool
    maps: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    compiled: dict[str, list[tuple[bool, Any]]] = field(default_factory=dict)
    outputs: Counter[str] = field(default_factory=Counter)
    without_gradients: set[tuple[str, int]] = field(default_factory=set)
    versions: tuple[int, ...] = ()
    thread: int = field(default_factory=threading.get_ident)
    interleaved: bool = False
    is_over: bool = False

    def note_versions(self) -> None:
        """Notes how often the input has been changed in place so far."""
        self.versions = self._versions()

    @property
    def is_stale(self) -> bool:
        """Whether the input has been changed in place since."""
        return self.versions != self._versions()

    def note_backward(self, gradient: Tensor) -> None:
        """Notes that a backward pass frees the graph, so that no other can follow.

        A wrapped backbone that something else trains then keeps no maps of the past.
        """
        self.is_over |= not keeps_graph()

    def received(self, images: Tensor) -> bool:
        """Whether this very tensor arrived, and has not been changed since."""
        return images is self.images and not self.is_stale

    def was_called_with(self, images: Tensor) -> bool:
        """Whether the backbone or its entry was called with this very tensor."""
        same = images is self.images or images is self.called_with
        return same and not self.is_stale

    def _versions(self) -> tuple[int, ...]:
        return changes_of(self.images, self.called_with)


NO_PASS = (
    "DiRA: the backbone has made no pass with gradients since DiRA was "
    "last called or the optimiser last stepped, so there is nothing to "
    "decode. Run the model on the batch, with gradients on and in the "
    "mode it trains in (to freeze BatchNorm, call `eval()` of those layers "
    "alone), then call `loss = dira(loss, batch)`, once per "
    "batch. Wrap the very module that the loop calls, not one that "
    "shares its layers, and wrap it before its first compiled pass. Leave "
    "the layer that receives the image out of reentrant checkpointing. "
    "For a copied model, create a new wrapper; `prepare_qat` and "
    "`torch.export` make copies: wrap what they return."
)

INTERLEAVED = (
    "DiRA: passes of the backbone run into each other, so DiRA cannot tell "
    "which pass the maps belong to. Finish the pass of one view before "
    "the next, in one thread."
)

MISSING = (
    "output nothing in this pass, unlike in "
    "the dry pass. Choose other `layers` if training skips these or calls "
    "their parts one by one (activation checkpointing set after "
    "wrapping), and wrap a compiled backbone before its first pass (or "
    "call `torch._dynamo.reset()`)."
)
