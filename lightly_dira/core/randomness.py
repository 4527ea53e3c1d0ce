"""Keeps, returns and restores the state of the global random generators."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor


@contextlib.contextmanager
def same_randomness(device: torch.device) -> Iterator[None]:
    """Leaves the random state of the CPU and of `device` as it was."""
    if device.type == "cpu":
        forked = torch.random.fork_rng(devices=[])
    else:
        forked = torch.random.fork_rng([device], device_type=device.type)
    with forked:
        yield


def states_on_cpu() -> tuple[Tensor, Any, Any]:
    """Returns the states of the generators of PyTorch (CPU), NumPy and Python."""
    return torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002


def set_states_on_cpu(states: tuple[Tensor, Any, Any]) -> None:
    """Restores what `states_on_cpu` returned."""
    torch.set_rng_state(states[0])
    np.random.set_state(states[1])  # noqa: NPY002
    random.setstate(states[2])


def random_state() -> dict[str, Any]:
    """Returns the state of all global generators, as tensors and plain numbers."""
    of_torch, (_, keys, *rest), of_python = states_on_cpu()
    state = {
        "torch": of_torch,
        "numpy": (torch.tensor(keys.astype(np.int64)), *rest),
        "python": of_python,
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_random_state(state: Mapping[str, Any]) -> None:
    """Restores what `random_state` returned."""
    keys, *rest = state["numpy"]
    of_numpy = ("MT19937", keys.numpy(force=True).astype(np.uint32), *rest)
    set_states_on_cpu((state["torch"].cpu(), of_numpy, state["python"]))
    if "cuda" in state and torch.cuda.device_count() == len(state["cuda"]):
        torch.cuda.set_rng_state_all([each.cpu() for each in state["cuda"]])
