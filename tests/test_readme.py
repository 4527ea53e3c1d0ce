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
        written = (folder / f"{name}.csv").read_text()
        assert compare_report.as_csv(table) == written


def test_pilots_are_those_of_the_rows() -> None:
    """Means over parts of the labels and draws, in the order of the rows."""
    results = ROOT / "examples/results"
    rows = pd.read_csv(results / "pilots.csv").fillna(-1)
    runs = list(rows.columns[: list(rows.columns).index("task")])
    means = rows.groupby([*runs, "task"], sort=False)["value"].mean().unstack()
    lines = (results / "README.md").read_text().splitlines()
    table = [
        line for line in lines if line.startswith(("| resnet", "| encoder | crops"))
    ]
    head, *table = ([cell.strip() for cell in line.split("|")[1:-1]] for line in table)
    means = means.reindex(pd.MultiIndex.from_frame(rows[runs].drop_duplicates()))
    settings, numbers = rows[runs].drop_duplicates(), means[head[6:]].to_numpy()
    for line, run, values in zip(
        table, settings.itertuples(index=False), numbers, strict=True
    ):
        trained = (
            "not trained" if run.stage == "random" else f"{run.method} {run.stage}"
        )
        floats = (run.smallest_crop, run.jitter, run.lr, run.restorative_weight)
        crop, jitter, lr, weight = ("" if x == -1 else f"{x:g}" for x in floats)
        cells = [run.encoder, crop, jitter, trained, lr, weight]
        assert line == cells + [f"{value:.3f}" for value in values]
