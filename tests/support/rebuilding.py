"""Batches rebuilt as strategies for accelerators rebuild them, on a CPU."""

from __future__ import annotations

from typing import Any

import torch
from pytorch_lightning.strategies import DDPStrategy, SingleDeviceStrategy
from torch import Tensor


def rebuilt(batch: Any, *, always: bool = True) -> Any:
    """Makes what `DistributedDataParallel(device_ids=...)` makes of its arguments.

    Up to PyTorch 2.13 it rebuilds containers `always`, by plain lists and tuples, and
    by the types of dicts and named tuples. Later it does so only where a tensor inside
    had to be moved; here every tensor has.
    """
    if isinstance(batch, Tensor):
        return batch if always else batch.clone()
    parts = [rebuilt(item, always=always) for item in _items(batch)]
    if isinstance(batch, tuple):
        return type(batch)(*parts) if hasattr(batch, "_fields") else tuple(parts)
    if isinstance(batch, list):
        return parts
    if isinstance(batch, dict):
        return type(batch)(zip(batch, parts, strict=True))
    return batch


def _items(batch: Any) -> list[Any]:
    if isinstance(batch, dict):
        return list(batch.values())
    return list(batch) if isinstance(batch, (list, tuple)) else []


def rebuilt_by_torch(batch: Any) -> Any:
    """The installed version's own function, with a device that all must be moved to."""
    from torch.distributed.utils import _recursive_to

    (moved,) = _recursive_to(batch, torch.device("meta"), False)
    return moved


class Rebuilding:
    """A strategy whose training steps get rebuilt batches."""

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        args, kwargs = rebuilt((args, kwargs))
        return super().training_step(*args, **kwargs)


class RebuildingDDP(Rebuilding, DDPStrategy):
    pass


class RebuildingSingle(Rebuilding, SingleDeviceStrategy):
    pass
