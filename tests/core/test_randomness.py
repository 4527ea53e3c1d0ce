"""The state of the global generators goes into a file and comes back."""

from __future__ import annotations

import random

import numpy as np
import torch

from lightly_dira.core.randomness import (
    random_state,
    same_randomness,
    set_random_state,
    set_states_on_cpu,
    states_on_cpu,
)


def draws() -> list[float]:
    """Normal numbers: of NumPy's and Python's, every second one is kept for later."""
    of_torch = torch.randn(3).tolist()
    return [*of_torch, *np.random.normal(size=3), *(random.gauss(0, 1) for _ in "123")]


def test_from_a_plain_file(tmp_path) -> None:
    draws()
    torch.save(random_state(), tmp_path / "state.pt")
    expected = [draws(), draws()]
    assert expected[0] != expected[1]
    set_random_state(torch.load(tmp_path / "state.pt", weights_only=True))
    assert [draws(), draws()] == expected


def test_in_memory() -> None:
    draws()
    states = states_on_cpu()
    expected = draws()
    set_states_on_cpu(states)
    assert draws() == expected


def test_draws_inside_leave_no_trace() -> None:
    torch.manual_seed(0)
    expected = torch.rand(4)
    torch.manual_seed(0)
    with same_randomness(torch.device("cpu")):
        inside = torch.rand(4)
    assert torch.equal(inside, expected)
    assert torch.equal(torch.rand(4), expected)
