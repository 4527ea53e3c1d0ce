"""Tables and pictures of a comparison: python examples/compare/report.py FOLDER."""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from charts import HEADLINES, draw_bars, draw_fractions, draw_gains, percent
from settings import STAGES

from lightly_dira.evaluation.statistics import compare_paired, summarise

TASK = ["task", "protocol", "fraction", "metric"]
# Main outcomes: means over all tasks and over the parts with few labels.
OUTCOMES, FEW = ("linear", "dense", "frozen U-Net", "U-Net"), 0.1
# Pairs of these are tested in any case, as committed tables were.
USUAL = ("di", "dir", "dira", "random")
# The bare method, on the views of its authors and on DiRA's.
BARE = ("di", "di+views")
PAIRS = (
    ("dira", "di"),
    ("dira", "random"),
    ("dir", "di"),
    ("dira", "dir"),
    # What is restoration's own, and what the views give the bare method.
    ("dir", "di+views"),
    ("dira", "di+views"),
    ("lean", "di"),
    ("lean", "di+views"),
    ("lean", "dir"),
    ("di+views", "di"),
    ("di+curves", "di"),
    ("di+distortions", "di"),
    # Against the bare method on whichever views are better for it, by outcome.
    ("recipe", "di"),
    ("recipe", "di+views"),
    ("recipe", "dir"),
    ("recipe", "better bare"),
    ("published", "di"),
    ("published", "di+distortions"),
    ("apart", "di"),
    ("apart", "dir"),
    ("dir", "better bare"),
    ("lean", "better bare"),
    ("dira", "better bare"),
)


def report(folder: Path) -> None:
    """Writes tables and pictures of results.csv, and prints the main tables."""
    rows = pd.read_csv(folder / "results.csv")
    tables = make_tables(rows)
    for name, table in tables.items():
        (folder / f"{name}.csv").write_text(as_csv(table))
    summary, outcomes = tables["summary"], tables["outcomes"]
    figures = {"fractions": draw_fractions(summary)}
    if summary["runs"].max() > 1:  # bars of one seed would look like findings
        figures |= {"bars": draw_bars(summary), "outcomes": draw_bars(outcomes)}
    differences = tables["outcome_tests"].dropna(subset="p")
    gains = differences[differences["second"] == "di"]
    if len(gains):
        figures["gains"] = draw_gains(gains)
    for name, figure in figures.items():
        figure.savefig(folder / f"{name}.png", dpi=120)
        plt.close(figure)
    parts = [as_markdown(summary), outcomes_as_markdown(outcomes)]
    if len(differences):
        parts.append(differences_as_markdown(differences))
    if "recipe_tests" in tables:
        parts.append(recipe_as_markdown(tables["recipe_tests"]))
    print("\n\n".join(parts))


def make_tables(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Returns the tables of a comparison by their files' names."""
    rows = in_order(rows)
    few = average_few(rows)
    tables = {
        "summary": summarise_rows(rows),
        "tests": compare_stages(rows),
        "outcomes": summarise_rows(few),
        "outcome_tests": compare_stages(few),
    }
    if {"recipe", *BARE} <= {*rows["stage"]}:
        tables["recipe_tests"] = compare_recipe(few)
    return tables


def in_order(rows: pd.DataFrame) -> pd.DataFrame:
    """Puts methods in the order of their first rows, and their stages one by one."""
    methods = [*rows["method"].unique()]
    place = rows["method"].map(methods.index)
    step = rows["stage"].map({stage: i for i, stage in enumerate(STAGES)}).fillna(-1)
    return rows.iloc[np.lexsort((step, place))].reset_index(drop=True)


def as_csv(table: pd.DataFrame) -> str:
    return table.to_csv(index=False, float_format="%.4g")


def average_few(rows: pd.DataFrame) -> pd.DataFrame:
    """Returns a row for each outcome of each run."""
    few = (rows["fraction"] <= FEW) & rows["protocol"].isin(OUTCOMES)
    rows = rows[few & rows["metric"].isin(HEADLINES)]
    run = ["method", "stage", "seed", "protocol", "metric"]
    means = rows.groupby(run, sort=False)["value"].mean().reset_index()
    return means.assign(task="all tasks", fraction=f"at most {100 * FEW:g} %")


def summarise_rows(rows: pd.DataFrame) -> pd.DataFrame:
    """Returns mean and 95 % interval over seeds of each method, stage and task."""
    return summarise(rows, ["method", "stage", *TASK])


def compare_stages(rows: pd.DataFrame) -> pd.DataFrame:
    """Tests stages against each other, and dira against random, for each method.

    What others have pre-trained (`start`) is summarised, not tested.

    Holm's correction is over the methods and tasks of a pair of stages.
    """
    rows = rows[rows["metric"].isin(HEADLINES)]
    trained = rows[rows["stage"].isin(STAGES)]
    random = rows[rows["stage"] == "random"]
    # Every method is compared with the same random encoders.
    twins = [random.assign(method=method) for method in trained["method"].unique()]
    everything = pd.concat([trained, *twins, *better_bare(trained)])
    known = {*everything["stage"], *USUAL}
    tables = [
        compare_paired(everything, "stage", first, second, by=["method", *TASK]).assign(
            first=first, second=second
        )
        for first, second in PAIRS
        if {first, second} <= known
    ]
    return pd.concat(tables, ignore_index=True)


def compare_recipe(rows: pd.DataFrame) -> pd.DataFrame:
    """Tests outcomes of the recipe against the bare method, whichever views it gets.

    Holm's correction is over all of it: both bare forms, all methods and tasks.
    """
    pairs = [
        rows[rows["stage"].isin(("recipe", bare))]
        .replace({"stage": {bare: "bare"}})
        .assign(against=bare)
        for bare in BARE
    ]
    groups = ["against", "method", *TASK]
    return compare_paired(pd.concat(pairs), "stage", "recipe", "bare", by=groups)


def better_bare(rows: pd.DataFrame) -> list[pd.DataFrame]:
    """Returns the rows of the better bare form of each group, if there are both."""
    rows = rows[rows["stage"].isin(BARE)]
    if rows["stage"].nunique() < 2:
        return []
    groups = ["method", *TASK]
    means = rows.groupby([*groups, "stage"], sort=False)["value"].mean().reset_index()
    best = means.loc[means.groupby(groups, sort=False)["value"].idxmax()]
    kept = rows.merge(best[[*groups, "stage"]], on=[*groups, "stage"])
    return [kept.assign(stage="better bare")]


def as_markdown(summary: pd.DataFrame) -> str:
    """A row for each task and part of the labels, a column for each encoder."""
    return _markdown(_tabulate(summary))


def outcomes_as_markdown(outcomes: pd.DataFrame) -> str:
    """A row for each encoder, a column for each outcome."""
    table = _tabulate(outcomes).T.rename_axis("encoder")
    table.columns = [f"{p}, {m}" for _, p, m, _ in table.columns]
    return _markdown(table)


def differences_as_markdown(outcome_tests: pd.DataFrame) -> str:
    """A row for each pair of stages and method, a column for each outcome.

    Differences have their 95 % interval and, in brackets, p corrected by Holm.
    """
    tested = outcome_tests.dropna(subset="p")
    cells = [
        f"{row.difference:+.3f} ± {row.high - row.difference:.3f} ({row.p_holm:.2g})"
        for row in tested.itertuples()
    ]
    table = pd.DataFrame(
        {
            "difference": tested["first"] + " - " + tested["second"],
            "method": tested["method"],
            "outcome": tested["protocol"] + ", " + tested["metric"].map(HEADLINES),
            "cell": cells,
        }
    )
    return _markdown(_pivot(table, ["difference", "method"], "outcome", "cell"))


def recipe_as_markdown(recipe_tests: pd.DataFrame) -> str:
    """The same of the recipe, with p corrected over all of it."""
    named = recipe_tests.assign(first="recipe", second=recipe_tests["against"])
    return differences_as_markdown(named)


def _tabulate(summary: pd.DataFrame) -> pd.DataFrame:
    """Returns means and half intervals, tasks down and encoders across."""
    table = summary[summary["metric"].isin(HEADLINES)].copy()
    baselines = table["method"] == "baseline"
    best = table[baselines].groupby(TASK, sort=False)["mean"].idxmax()
    table = table[~baselines | table.index.isin(best)]
    half = ((table["high"] - table["low"]) / 2).map(
        lambda value: "" if np.isnan(value) else f" ± {value:.3f}"
    )
    names = {
        "baseline": "no encoder",
        "random": "not trained",
        "start": "others' weights",
    }
    encoders = table["method"].map(names)
    encoders = encoders.fillna(table["method"] + " " + table["stage"])
    table = table.assign(
        score=table["mean"].map("{:.3f}".format) + half,
        encoder=encoders,
        labels=percent(table["fraction"]),
        metric=table["metric"].map(HEADLINES),
    )
    keys = ["task", "protocol", "metric", "labels"]
    return _pivot(table, keys, "encoder", "score")


def _pivot(
    table: pd.DataFrame, keys: list[str], columns: str, values: str
) -> pd.DataFrame:
    """Pivots without sorting, which pandas would do; gaps are empty."""
    wide = table.pivot(index=keys, columns=columns, values=values).fillna("")
    wide = wide.reindex(pd.MultiIndex.from_frame(table[keys].drop_duplicates()))
    return wide[table[columns].drop_duplicates()]


def _markdown(table: pd.DataFrame) -> str:
    table = table.reset_index()
    lines = [[*table.columns], ["---"] * len(table.columns), *table.to_numpy()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    report(Path(sys.argv[1]))
