"""A device that is none: tensors on it hold real values, and reading one is an error.

Code that waits for an accelerator (`.item()`, `if tensor:`, a copy to the host that is
not asynchronous) is found without one. `torch.cuda.set_sync_debug_mode` is the real
thing, see `tests/benchmarks/accelerator.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

aten = torch.ops.aten
# What returns a number, or tensors whose shape depends on values.
READS = (
    aten._local_scalar_dense.default,
    aten.is_nonzero.default,
    aten.equal.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten.unique_dim.default,
    aten._unique2.default,
)
_may_read = [True]


class WaitingError(Exception):
    pass


@contextmanager
def no_reading() -> Iterator[None]:
    """Reading a value raises a `WaitingError` meanwhile."""
    _may_read[0] = False
    try:
        yield
    finally:
        _may_read[0] = True


class OnDevice(Tensor):
    """A tensor that says it is on the device "meta", with its values on the host."""

    values: Tensor

    @staticmethod
    def __new__(cls, values: Tensor) -> OnDevice:
        made: OnDevice = Tensor._make_wrapper_subclass(
            cls,
            values.shape,
            strides=values.stride(),
            dtype=values.dtype,
            device="meta",
            requires_grad=values.requires_grad,
        )
        made.values = values.detach()
        return made

    def __repr__(self) -> str:  # type: ignore[override]
        return f"OnDevice({tuple(self.shape)})"

    @classmethod
    def __torch_dispatch__(
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        device = kwargs.get("device")
        to_host = device is not None and torch.device(device).type == "cpu"
        waits = function in READS
        if function is aten._to_copy.default:
            waits |= to_host and not kwargs.get("non_blocking")
        if function is aten.copy_.default and not isinstance(args[0], OnDevice):
            late = kwargs.get("non_blocking") or (len(args) > 2 and args[2])
            waits, to_host = waits or not late, True
        if waits and not _may_read[0]:
            raise WaitingError(f"{function} reads values of the device")
        if device is not None:
            kwargs["device"] = "cpu"
        plain = tree_map(_values_of, (args, kwargs))
        found = function(*plain[0], **plain[1])
        if function._schema.is_mutable and not function.__name__.startswith("_foreach"):
            # The tensor that was changed in place.
            for place, argument in enumerate(function._schema.arguments):
                if argument.alias_info is not None and argument.alias_info.is_write:
                    if place < len(args):
                        return args[place]
                    if argument.name in (kwargs or {}):
                        return kwargs[argument.name]
        if to_host:
            return found
        return tree_map(lambda x: cls(x) if isinstance(x, Tensor) else x, found)


def _values_of(value: Any) -> Any:
    if isinstance(value, OnDevice):
        return value.values
    if isinstance(value, Tensor) and value.device.type == "meta":
        # What autograd makes itself, for a part of a tensor without a gradient.
        return torch.zeros(value.shape, dtype=value.dtype)
    return value


def on_device(value: Any) -> Any:
    """Returns a tensor, or moves a module, to this device."""
    if isinstance(value, nn.Module):
        return value._apply(lambda t: t if isinstance(t, OnDevice) else OnDevice(t))
    return OnDevice(value)
