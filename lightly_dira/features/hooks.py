"""Hooks that hold their owner weakly and do nothing in copies."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch


class Hook:
    """A hook that holds its owner weakly and does nothing in every copy.

    Backbones and optimisers can so be copied, pickled and saved as if they had no hook;
    what is copied or loaded carries a callable of the standard library that does
    nothing. Where the backbone is compiled, the hook is left to Python: if it were
    traced, graphs would depend on what it has noted.
    """

    def __init__(self, method: Callable[..., Any], *args: object) -> None:
        self.method = weakref.WeakMethod(method)
        self.args = args

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def __call__(self, *hooked: Any) -> Any:
        """Calls the owner's method, while there is an owner."""
        method = self.method()
        return None if method is None else method(*self.args, *hooked)

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (contextlib.nullcontext(), "__exit__")


def remove_handles(handles: Sequence[torch.utils.hooks.RemovableHandle]) -> None:
    """Takes hooks away."""
    for handle in handles:
        handle.remove()
