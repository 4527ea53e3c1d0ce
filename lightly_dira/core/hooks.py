"""Hooks that hold their owner weakly, end with it, and do nothing in copies."""

from __future__ import annotations

import contextlib
import functools
import inspect
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.hooks import RemovableHandle

_WHY: dict[str, str] = {}
if "reason" in inspect.signature(torch.compiler.disable).parameters:
    _WHY["reason"] = (
        "lightly-dira watches this module by a hook: compile without fullgraph=True, "
        "and export the backbone with torch.export(strict=False) or before wrapping it"
    )
_left_to_python: Any = functools.partial(torch.compiler.disable, **_WHY)


class Hook:
    """A hook that holds its owner weakly and does nothing in every copy.

    Backbones and optimisers can therefore be copied, pickled and saved as if they had
    no hook: a copy carries a callable of the standard library that does nothing.
    `torch.compile` leaves the hook to Python. If it traced the hook, graphs would
    depend on what the hook has noted. Those of passes have counterparts that may be
    traced, see `TraceableHook`; a strict `torch.export` is not possible.
    """

    def __init__(self, method: Callable[..., Any], *args: object) -> None:
        self.method = weakref.WeakMethod(method)
        self.args = args

    @_left_to_python  # type: ignore[untyped-decorator]
    def __call__(self, *hooked: Any) -> Any:
        """Calls the owner's method, if the owner still exists."""
        method = self.method()
        return None if method is None else method(*self.args, *hooked)

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (contextlib.nullcontext(), "__exit__")


class HookSet:
    """The hooks of one owner: they end together, and no copy of the owner has them."""

    def __init__(self) -> None:
        """Starts empty."""
        self._handles: list[RemovableHandle] = []
        weakref.finalize(self, _remove, self._handles)

    def add(self, handle: RemovableHandle) -> None:
        """Takes one more."""
        self._handles.append(handle)

    def clear(self) -> None:
        """Removes all."""
        _remove(self._handles)

    def __len__(self) -> int:
        """Returns how many there are."""
        return len(self._handles)

    def __reduce__(self) -> tuple[Any, ...]:
        return HookSet, ()


def _remove(handles: list[RemovableHandle]) -> None:
    while handles:
        handles.pop().remove()
