"""Pairs measured alternately in one process, and a table of their ratios.

`--keep` also writes them into ratios.csv, from which the README's table is.
"""

from __future__ import annotations

import csv
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import pytest
import torch

RATIOS: list[tuple[str, float, str]] = []


@pytest.fixture(autouse=True)
def threads(request):
    """One thread, unless a test is marked `threads(n)`."""
    mark = request.node.get_closest_marker("threads")
    count = mark.args[0] if mark else 1
    before = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(count)
    cv2.setNumThreads(count)
    yield
    torch.set_num_threads(before[0])
    cv2.setNumThreads(before[1])


@pytest.fixture
def record() -> Callable[..., None]:
    """Adds a ratio to the table."""

    def add(name: str, ratio: float, goal: str) -> None:
        RATIOS.append((name, ratio, goal))

    return add


@pytest.fixture
def compare(benchmark, record) -> Callable[..., float]:
    """Times `ours` with `baseline` before each round; returns the ratio of medians."""

    def run(
        name: str,
        ours: Callable,
        baseline: Callable,
        *,
        goal: str,
        rounds: int = 15,
        inverse: bool = False,
        predicted: float = 1.0,
    ) -> float:
        times = []

        def time_baseline() -> None:
            start = time.perf_counter()
            baseline()
            times.append(time.perf_counter() - start)

        warmup = min(3, rounds // 3)
        benchmark.pedantic(
            ours, setup=time_baseline, rounds=rounds, warmup_rounds=warmup
        )
        ratio = statistics.median(times[warmup:]) / benchmark.stats.stats.median
        ratio = (1 / ratio if inverse else ratio) / predicted
        record(name, ratio, goal)
        return ratio

    return run


@pytest.fixture
def medians(benchmark) -> Callable[..., dict[str, float]]:
    """Times several steps in turn, and returns the median seconds of each."""

    def run(
        steps: dict[str, Callable[[], object]], *, rounds: int, warmup: int = 1
    ) -> dict[str, float]:
        seconds: dict[str, list[float]] = {name: [] for name in steps}

        def in_turn() -> None:
            for name, step in steps.items():
                start = time.perf_counter()
                step()
                seconds[name].append(time.perf_counter() - start)

        benchmark.pedantic(in_turn, rounds=rounds)
        return {name: statistics.median(s[warmup:]) for name, s in seconds.items()}

    return run


def pytest_configure(config) -> None:
    config.addinivalue_line("markers", "threads(n): torch and OpenCV threads")


def pytest_addoption(parser) -> None:
    parser.addoption("--keep", action="store_true", help="write ratios.csv")


def pytest_terminal_summary(terminalreporter, config) -> None:
    if RATIOS:
        if config.getoption("--keep"):
            keep_ratios()
        terminalreporter.section("ratios, medians")
        for name, ratio, goal in RATIOS:
            terminalreporter.write_line(f"{name:66} {ratio:6.2f}   goal {goal}")


def keep_ratios() -> None:
    """Replaces what was measured now, and leaves the rest of the file."""
    path = Path(__file__).with_name("ratios.csv")
    kept: dict[str, str] = {}
    if path.exists():
        with path.open(newline="") as file:
            kept = dict(list(csv.reader(file))[1:])
    kept |= {name: f"{ratio:.3f}" for name, ratio, _ in RATIOS}
    with path.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(
            [("what", "ratio"), *kept.items()]
        )
