"""Pairs measured alternately in one process, and a table of their ratios."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import cv2
import pytest
import torch

RATIOS: list[tuple[str, float, str]] = []


@pytest.fixture(autouse=True)
def single_thread():
    threads = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    yield
    torch.set_num_threads(threads[0])
    cv2.setNumThreads(threads[1])


@pytest.fixture
def compare(benchmark) -> Callable[..., float]:
    """Times `ours` with `baseline` before each round; returns the ratio of medians."""

    def run(
        name: str, ours: Callable, baseline: Callable, *, goal: str, rounds: int = 15
    ) -> float:
        times = []

        def time_baseline() -> None:
            start = time.perf_counter()
            baseline()
            times.append(time.perf_counter() - start)

        benchmark.pedantic(ours, setup=time_baseline, rounds=rounds, warmup_rounds=3)
        ratio = statistics.median(times[3:]) / benchmark.stats.stats.median
        RATIOS.append((name, ratio, goal))
        return ratio

    return run


def pytest_terminal_summary(terminalreporter) -> None:
    if RATIOS:
        terminalreporter.section("ratios: baseline / ours, medians")
        for name, ratio, goal in RATIOS:
            terminalreporter.write_line(f"{name:60} {ratio:6.2f}   goal {goal}")
