"""What a run needs, beside weights and optimisers, to go on as if never interrupted."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn


def random_state() -> dict[str, Any]:
    """Returns the state of all global generators, as tensors and plain numbers."""
    _, keys, *rest = cast(tuple[Any, ...], np.random.get_state())  # noqa: NPY002
    state = {
        "torch": torch.get_rng_state(),
        "numpy": (torch.tensor(keys.astype(np.int64)), *rest),
        "python": random.getstate(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_random_state(state: Mapping[str, Any]) -> None:
    """Takes up what `random_state` returned."""
    torch.set_rng_state(state["torch"].cpu())
    keys, *rest = state["numpy"]
    np.random.set_state(  # noqa: NPY002
        ("MT19937", keys.numpy(force=True).astype(np.uint32), *rest)
    )
    random.setstate(state["python"])
    if "cuda" in state and torch.cuda.device_count() == len(state["cuda"]):
        torch.cuda.set_rng_state_all([each.cpu() for each in state["cuda"]])


def buffers_of(module: nn.Module, *, left_out: bool = False) -> dict[str, Tensor]:
    """Returns copies of a module's buffers.

    Args:
        module: Whose buffers are copied.
        left_out: Whether to return only those that `state_dict()` leaves out, such as
            the queue of Lightly's memory banks.
    """
    others = module.state_dict() if left_out else {}
    return {
        name: buffer.detach().clone()
        for name, buffer in module.named_buffers()
        if name not in others
    }


@torch.no_grad()
def load_buffers(module: nn.Module, saved: Mapping[str, Tensor]) -> None:
    """Takes up what `buffers_of` returned; names that are no longer there are left.

    Raises:
        ValueError: If a buffer has another shape.
    """
    for name, buffer in module.named_buffers():
        if name not in saved:
            continue
        value = saved[name]
        if buffer.shape != value.shape:
            # Banks whose size is known only at the first batch are empty before.
            if buffer.numel():
                raise ValueError(
                    f"DiRA: the buffer {name} was saved with shape "
                    f"{tuple(value.shape)}, and is of shape {tuple(buffer.shape)} now. "
                    "Build the method as it was when the checkpoint was written."
                )
            buffer.resize_(value.shape)
        buffer.copy_(value)
