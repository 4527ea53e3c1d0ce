"""Several processes, by gloo, against one that has the whole batch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import processes
import pytest
import torch
from torch import multiprocessing


def assert_same(first, second, **tolerance) -> None:
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(one, other, **dict(rtol=0, atol=0) | tolerance)


def test_gradients_of_two_processes_are_those_of_one(tmp_path: Path) -> None:
    """In all three stages, which change in the middle of the run."""
    processes.run(0, 1, tmp_path)
    multiprocessing.spawn(processes.run, (2, tmp_path), nprocs=2)
    one, *two = (torch.load(tmp_path / f"{n}.pt") for n in ("1-0", "2-0", "2-1"))
    for step in range(processes.STEPS):
        assert_same(two[0]["gradients"][step], two[1]["gradients"][step])
        expected = one["gradients"][step]
        assert_same(two[0]["gradients"][step], expected, rtol=1e-9, atol=1e-9)
    # The bias in front of a normalisation has no gradient.
    moving = [bool(gradient.abs().sum() > 0) for gradient in one["gradients"][-1]]
    assert sum(moving) >= len(moving) - 3
    assert_same(two[0]["weights"], two[1]["weights"])
    assert_same(two[0]["weights"], one["weights"], rtol=1e-9, atol=1e-9)


def test_a_wrapper_that_nobody_averages(tmp_path: Path) -> None:
    with pytest.raises(
        multiprocessing.ProcessRaisedException,
        match=r"heads of the processes differ.*DistributedDataParallel\(dira\)",
    ):
        multiprocessing.spawn(processes.run, (2, tmp_path, False), nprocs=2)


def test_lightning(tmp_path: Path) -> None:
    """`Trainer(strategy="ddp")`, without `find_unused_parameters`."""
    for devices in (1, 2):
        command = [sys.executable, processes.__file__, str(tmp_path), str(devices)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        subprocess.run(command, check=True, timeout=300, env=environment)
    one, *two = (torch.load(tmp_path / f"fit-{n}.pt") for n in ("1-0", "2-0", "2-1"))
    assert_same(two[0], two[1])
    assert_same(two[0], one, rtol=1e-9, atol=1e-9)
