"""Private functions and attributes of PyTorch that this library uses.

They follow backward passes, tell changes of tensors, look into modules and containers,
end a loader's workers and collate batches. They were tested with 2.4.1 and 2.15.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.data._utils.collate import collate, default_collate_fn_map

__all__ = [
    "after_backward",
    "buffers_of",
    "changes_of",
    "collate",
    "default_collate_fn_map",
    "drop_workers",
    "in_backward",
    "keeps_graph",
    "tree_leaves",
    "uncompiled",
    "with_own_children",
]


def in_backward() -> bool:
    """Whether this code is run by a backward pass, as in activation checkpointing."""
    return bool(_graph_task() != -1)


def after_backward(function: Callable[[], None]) -> None:
    """Calls a function at the end of the running backward pass."""
    _queue(function)


def keeps_graph() -> bool:
    """Whether the running backward pass leaves its graph for another one.

    Before PyTorch 2.6 this is not known, and True.
    """
    return _keeps_graph is None or bool(_keeps_graph())


def drop_workers(loader: object) -> None:
    """Lets a data loader with persistent workers start new ones."""
    if getattr(loader, "persistent_workers", False):
        loader._iterator = None  # type: ignore[attr-defined]


def changes_of(*tensors: Tensor | None) -> tuple[int, ...]:
    """Returns how often tensors have been changed in place, of those that know it."""
    known = (x for x in tensors if x is not None and not x.is_inference())
    return tuple(x._version for x in known)


def buffers_of(module: nn.Module) -> dict[str, Tensor | None]:
    """Returns the dictionary in which a module itself holds its buffers."""
    return module._buffers


def uncompiled(module: nn.Module) -> nn.Module:
    """Returns the module inside the wrapper of `torch.compile`, or itself."""
    inner: nn.Module = getattr(module, "_orig_mod", module)
    return inner


def with_own_children(module: nn.Module) -> nn.Module:
    """Returns a shallow copy whose children can be replaced without the module's."""
    twin = copy.copy(module)
    twin._modules = dict(module._modules)
    return twin


def _private(owner: object, name: str) -> Callable[..., object]:
    found = getattr(owner, name, None)
    if found is None:
        raise RuntimeError(
            f"DiRA: PyTorch {torch.__version__} no longer has `{name}`, which "
            "lightly-dira needs to follow backward passes. Install a newer "
            "lightly-dira, or PyTorch 2.15."
        )
    return found  # type: ignore[no-any-return]


_graph_task = _private(torch._C, "_current_graph_task_id")
_queue = _private(torch.autograd.Variable._execution_engine, "queue_callback")
_keeps_graph = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
