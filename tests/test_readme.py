"""Numbers in the README are those of the committed files."""

from __future__ import annotations

import csv
import re
import sys
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def rows_of(head: str) -> list[tuple[str, str]]:
    table = README.split(f"| | {head} |\n|---|---|\n")[1].split("\n\n")[0]
    return [
        re.fullmatch(r"\| (.+) \| ([\d.]+) \|", row).groups()
        for row in table.splitlines()
    ]


def test_quickstart_is_as_it_was_run() -> None:
    with (ROOT / "examples/quickstart.csv").open(newline="") as file:
        assert rows_of("value") == [tuple(row) for row in csv.reader(file)][1:]


def test_ratios_are_those_measured() -> None:
    """Every row of a table of numbers is one of ratios.csv."""
    with (ROOT / "tests/benchmarks/ratios.csv").open(newline="") as file:
        measured = {row["what"]: float(row["ratio"]) for row in csv.DictReader(file)}
    for what, ratio in rows_of("ratio") + rows_of("times the speed"):
        assert ratio == f"{measured[what]:.2f}", what


@pytest.mark.parametrize(
    "folder",
    sorted(path.parent for path in ROOT.glob("examples/results/*/summary.csv")),
)
def test_results_are_those_of_the_rows(folder: Path, monkeypatch) -> None:
    """Summaries and tests follow from results.csv."""
    monkeypatch.syspath_prepend(ROOT / "examples")
    sys.modules.pop("compare_report", None)
    import compare_report

    rows = pd.read_csv(folder / "results.csv")
    for name, table in compare_report.make_tables(rows).items():
        assert table.to_csv(index=False) == (folder / f"{name}.csv").read_text()
