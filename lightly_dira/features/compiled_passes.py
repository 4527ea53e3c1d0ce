"""What hooks note in code that PyTorch compiles: they only write, and break no graph.

A hook that looked at what was noted before would make graphs depend on it, and each
step would compile anew. So a pass writes to a place of its own, a number that is chosen
while it is compiled, and an operator in its graph says at run time that it began.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightly_dira.core.hooks import Hook
from lightly_dira.core.private_torch import changes_of

# Before PyTorch 2.7 an export cannot be told from a compilation: hooks end graphs.
CAN_TRACE = hasattr(torch.compiler, "is_exporting")


class Written(NamedTuple):
    """What the hooks wrote in one compiled pass.

    Attributes:
        called: Whether gradients were on where the backbone was called, and what with.
        given: What the module that receives the image was called with.
        gradients: Whether gradients were on there.
        training: Whether the backbone was in training mode.
        outputs: What each watched module output, by its name, each with whether
            gradients were on.
        versions: How often images had been changed in place when it began.
        thread: The thread in which it ran.
    """

    called: tuple[bool, Any] | None
    given: Any
    gradients: bool
    training: bool
    outputs: dict[str, list[tuple[bool, Any]]]
    versions: tuple[int, ...]
    thread: int


class CompiledPasses:
    """The compiled passes of one backbone since they were last taken.

    Args:
        backbone: The network that is watched.
        dimensions: Of a batch of images.
        add: Called with each pass once it is complete.

    Attributes:
        current: What the hooks write into, of the pass that runs.
    """

    def __init__(
        self, backbone: nn.Module, dimensions: int, add: Callable[[Written], None]
    ) -> None:
        """Has seen nothing yet."""
        self._backbone, self._dimensions = backbone, dimensions
        self._add = weakref.WeakMethod(add)
        self.called: tuple[bool, Any] | None = None
        self.current: dict[str, Any] | None = None
        self._number = next(_numbers)
        self._counter = torch.zeros((), dtype=torch.int64)
        # Passes that have begun, by their places, which they have written to once the
        # place is used again or somebody asks.
        self._begun: dict[int, tuple[tuple[int, ...], int]] = {}
        _owners[self._number] = self

    # These three are compiled.

    def call(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        """Notes what the backbone is called with."""
        self.current = None
        self.called = torch.is_grad_enabled(), (args, kwargs)

    def begin(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        """Begins a pass."""
        called, self.called = self.called, None
        self.current = None
        gradients = torch.is_grad_enabled()
        if not (gradients or (called is not None and called[0])):
            return
        place = _new_place()
        first = None if called is None else self._image_in(called[1])
        _begins(
            self._counter, self._image_in((args, kwargs)), first, self._number, place
        )
        self.current = {
            "called": called,
            "given": (args, kwargs),
            "gradients": gradients,
            "training": self._backbone.training,
            "outputs": {},
        }
        setattr(self, f"place_{place}", self.current)

    def note(self, name: str, module: nn.Module, args: Any, output: Any) -> None:
        """Notes what a module outputs."""
        if self.current is not None:
            outputs = self.current["outputs"]
            pair = torch.is_grad_enabled(), output
            outputs[name] = [*outputs.get(name, ()), pair]

    def _image_in(self, given: tuple[Any, Any]) -> Tensor | None:
        """Returns the image, if it is no part of something else."""
        args, kwargs = given
        for value in (*args, *kwargs.values()):
            if isinstance(value, Tensor) and value.ndim == self._dimensions:
                return value.detach()
        return None

    # The rest is not.

    def has_begun(
        self, place: int, images: Tensor | None, given: Tensor | None
    ) -> None:
        """Notes that a pass with this place runs now."""
        if place in self._begun:  # which is complete, and so are those before it
            self._hand_over(list(self._begun).index(place) + 1)
        self._begun[place] = changes_of(images, given), threading.get_ident()

    def finish(self) -> None:
        """Hands over all passes, in the order in which they began."""
        self._hand_over(len(self._begun))
        self.current = None

    def _hand_over(self, count: int) -> None:
        add = self._add()
        for place in list(self._begun)[:count]:
            versions, thread = self._begun.pop(place)
            wrote = getattr(self, f"place_{place}", None)
            if wrote is not None:  # otherwise its graph has failed
                setattr(self, f"place_{place}", None)
                if add is not None:
                    add(Written(**wrote, versions=versions, thread=thread))


class TraceableHook(Hook):
    """A hook with a counterpart for compiled code.

    Args:
        method: What the hook calls in plain Python.
        traced: What it calls where it is compiled.
        args: What both are called with, before what PyTorch hands to hooks.
    """

    def __init__(
        self, method: Callable[..., Any], traced: Callable[..., Any], *args: object
    ) -> None:
        super().__init__(method, *args)
        self.traced = traced

    def __call__(self, *hooked: Any) -> Any:
        """Calls the one or the other."""
        if torch.compiler.is_compiling() and not torch.compiler.is_exporting():
            return self.traced(*self.args, *hooked)
        return super().__call__(*hooked)


def hook_for(
    method: Callable[..., Any], traced: Callable[..., Any], *args: object
) -> Hook:
    """Returns such a hook, or a plain one where PyTorch cannot tell an export."""
    return TraceableHook(method, traced, *args) if CAN_TRACE else Hook(method, *args)


def in_plain_python() -> Any:
    """Runs what was compiled as it was written, so that hooks see every module."""
    if CAN_TRACE:
        return torch.compiler.set_stance("force_eager")
    return contextlib.nullcontext()


_numbers, _places = itertools.count(), itertools.count()
_owners: weakref.WeakValueDictionary[int, CompiledPasses] = (
    weakref.WeakValueDictionary()
)


def _new_place() -> int:
    """Returns a number that stays in the graph that is being compiled."""
    return next(_places)


def _begins(
    counter: Tensor, images: Tensor | None, given: Tensor | None, owner: int, place: int
) -> None:
    """Tells the owner, at run time, that a pass begins.

    It changes the counter, so that no compiler leaves it out.
    """
    known = _owners.get(owner)
    if known is not None:
        known.has_begun(place, images, given)


if CAN_TRACE:
    _new_place = torch.compiler.assume_constant_result(_new_place)  # type: ignore[no-untyped-call]
    _begins = torch.library.custom_op(
        "lightly_dira::begins",
        _begins,
        mutates_args=("counter",),
        schema="(Tensor(a!) counter, Tensor? images, Tensor? given, int owner, "
        "int place) -> ()",
    )
    _begins.register_fake(lambda *args: None)
