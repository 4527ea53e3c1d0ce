"""Keeps, returns and restores the state of the random generators."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Mapping
from typing import Any, cast

import numpy as np
import torch


@contextlib.contextmanager
def same_randomness(device: torch.device) -> Iterator[None]:
    """Leaves the random state of the CPU and of `device` as it was."""
    if device.type == "cpu":
        forked = torch.random.fork_rng(devices=[])
    else:
        forked = torch.random.fork_rng([device], device_type=device.type)
    with forked:
        yield


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
    """Restores what `random_state` returned."""
    torch.set_rng_state(state["torch"].cpu())
    keys, *rest = state["numpy"]
    np.random.set_state(  # noqa: NPY002
        ("MT19937", keys.numpy(force=True).astype(np.uint32), *rest)
    )
    random.setstate(state["python"])
    if "cuda" in state and torch.cuda.device_count() == len(state["cuda"]):
        torch.cuda.set_rng_state_all([each.cpu() for each in state["cuda"]])
