"""Several processes, by gloo, against one that has the whole batch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import processes
import pytest
import torch
from torch import multiprocessing, nn

from lightly_dira import DiRA

pytestmark = pytest.mark.slow


def assert_same(first, second, **tolerance) -> None:
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(one, other, **dict(rtol=0, atol=0) | tolerance)


CASES = [(criterion, "replicated") for criterion in processes.CRITERIA]
CASES += [("pairwise", how) for how in ("sharded", "flat", "accumulated")]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """What one process did with whole batches, and two with half of each."""
    folder = tmp_path_factory.mktemp("runs")
    processes.run_all(0, 1, folder, CASES)
    multiprocessing.spawn(processes.run_all, (2, folder, CASES), nprocs=2)
    return folder


@pytest.mark.parametrize(("criterion", "wrapped"), CASES)
def test_two_processes_do_what_one_does(
    criterion: str, wrapped: str, runs: Path
) -> None:
    """In all three stages, which change in the middle of the run."""
    paths = [runs / f"{criterion}-{wrapped}-{end}.pt" for end in ("1-0", "2-0", "2-1")]
    one, *two = map(torch.load, paths)
    for expected, *found in zip(
        *(run["gradients"] for run in (one, *two)), strict=True
    ):
        assert_same(found[0], found[1])
        assert_same(found[0], expected, rtol=1e-9, atol=1e-9)
    if wrapped == "replicated":
        # The bias in front of a normalisation has no gradient.
        moving = [bool(gradient.abs().sum() > 0) for gradient in one["gradients"][-1]]
        assert sum(moving) >= len(moving) - 3
    assert_same(two[0]["weights"], two[1]["weights"])
    assert_same(two[0]["weights"], one["weights"], rtol=1e-9, atol=1e-9)


def test_a_wrapper_that_nobody_averages(tmp_path: Path) -> None:
    cases = [("pairwise", "alone")]
    with pytest.raises(
        multiprocessing.ProcessRaisedException,
        match=r"heads of the processes differ.*DistributedDataParallel\(dira\)",
    ):
        multiprocessing.spawn(processes.run_all, (2, tmp_path, cases), nprocs=2)


def test_sharded_before_wrapping() -> None:
    class Sharded(nn.Parameter):
        def to_local(self):
            raise NotImplementedError

    backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3))
    backbone[0].weight = Sharded(torch.zeros(0))
    with pytest.raises(ValueError, match=r"sharded over processes.*Make DiRA first"):
        DiRA(backbone)


@pytest.mark.parametrize(
    ("accumulated", "rebuilds"), [(1, False), (1, True), (2, True)]
)
def test_lightning(accumulated: int, rebuilds: bool, tmp_path: Path) -> None:
    """`Trainer(strategy="ddp")`, without `find_unused_parameters`.

    Found: on GPUs the strategy rebuilds the batch's lists, and the target was lost.
    """
    for devices in (1, 2):
        options = map(str, (devices, accumulated, int(rebuilds)))
        command = [sys.executable, processes.__file__, str(tmp_path), *options]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        subprocess.run(command, check=True, timeout=300, env=environment)
    one, *two = (torch.load(tmp_path / f"fit-{n}.pt") for n in ("1-0", "2-0", "2-1"))
    assert_same(two[0], two[1])
    assert_same(two[0], one, rtol=1e-9, atol=1e-9)
