"""Tables and pictures of a comparison: python examples/compare/report.py FOLDER."""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from lightly_dira.evaluation.statistics import compare_paired, summarise

TASK = ["task", "protocol", "fraction", "metric"]
PANEL = ["task", "protocol", "metric"]
# Main outcomes: means over all tasks and over the parts with few labels.
OUTCOMES, FEW = ("linear", "dense", "frozen U-Net", "U-Net"), 0.1
PAIRS = (("dira", "di"), ("dira", "random"), ("dir", "di"), ("dira", "dir"))
HEADLINES = {"auc": "AUC", "dice": "Dice", "pointing": "pointing game"}
COLOURS = {"random": "0.6", "di": "#5b8db8", "dir": "#e0a458", "dira": "#b0413e"}
NAMES = {
    "random": "not trained",
    "di": "bare method (di)",
    "dir": "with restoration (dir)",
    "dira": "with restoration and adversary (dira)",
}


def report(folder: Path) -> None:
    """Writes tables and pictures of results.csv, and prints the main tables."""
    rows = pd.read_csv(folder / "results.csv")
    tables = make_tables(rows)
    for name, table in tables.items():
        (folder / f"{name}.csv").write_text(as_csv(table))
    summary, outcomes = tables["summary"], tables["outcomes"]
    for name, figure in {
        "bars": draw_bars(summary),
        "fractions": draw_fractions(summary),
        "outcomes": draw_bars(outcomes),
    }.items():
        figure.savefig(folder / f"{name}.png", dpi=120)
        plt.close(figure)
    parts = [as_markdown(summary), outcomes_as_markdown(outcomes)]
    if tables["outcome_tests"]["p"].notna().any():
        parts.append(differences_as_markdown(tables["outcome_tests"]))
    print("\n\n".join(parts))


def make_tables(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Returns the tables of a comparison by their files' names."""
    few = average_few(rows)
    return {
        "summary": summarise_rows(rows),
        "tests": compare_stages(rows),
        "outcomes": summarise_rows(few),
        "outcome_tests": compare_stages(few),
    }


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

    Holm's correction is over the methods and tasks of a pair of stages.
    """
    rows = rows[rows["metric"].isin(HEADLINES)]
    trained = rows[rows["stage"].isin(["di", "dir", "dira"])]
    random = rows[rows["stage"] == "random"]
    # Every method is compared with the same random encoders.
    twins = [random.assign(method=method) for method in trained["method"].unique()]
    everything = pd.concat([trained, *twins])
    tables = [
        compare_paired(everything, "stage", first, second, by=["method", *TASK]).assign(
            first=first, second=second
        )
        for first, second in PAIRS
    ]
    return pd.concat(tables, ignore_index=True)


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


def _tabulate(summary: pd.DataFrame) -> pd.DataFrame:
    """Returns means and half intervals, tasks down and encoders across."""
    table = summary[summary["metric"].isin(HEADLINES)].copy()
    baselines = table["method"] == "baseline"
    best = table[baselines].groupby(TASK, sort=False)["mean"].idxmax()
    table = table[~baselines | table.index.isin(best)]
    half = ((table["high"] - table["low"]) / 2).map(
        lambda value: "" if np.isnan(value) else f" ± {value:.3f}"
    )
    names = {"baseline": "no encoder", "random": "not trained"}
    encoders = table["method"].map(names)
    encoders = encoders.fillna(table["method"] + " " + table["stage"])
    table = table.assign(
        score=table["mean"].map("{:.3f}".format) + half,
        encoder=encoders,
        labels=_percent(table["fraction"]),
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


def draw_bars(summary: pd.DataFrame) -> plt.Figure:
    """Grouped bars of each task at its smallest fraction, as in the paper's figure."""
    table = summary[summary["metric"].isin(HEADLINES)]
    panels = table.groupby(PANEL, sort=False)
    methods = [m for m in table["method"].unique() if m not in ("baseline", "random")]
    figure, axes = _panels(len(panels))
    for axis, ((task, protocol, metric), here) in zip(axes, panels, strict=False):
        here = here[here["fraction"] == here["fraction"].min()]
        _draw_reference(axis, here)
        for number, method in enumerate(methods):
            stages = here[here["method"] == method]
            for place, row in enumerate(stages.itertuples()):
                error = [[row.mean - row.low], [row.high - row.mean]]
                axis.bar(
                    number + 0.28 * (place - (len(stages) - 1) / 2),
                    row.mean,
                    0.26,
                    yerr=None if np.isnan(row.low) else error,
                    color=COLOURS[row.stage],
                    capsize=2,
                    label=NAMES[row.stage],
                )
        axis.set_xticks(range(len(methods)), methods, rotation=15)
        # Limits follow the means: intervals over two seeds would be far too wide.
        low, high = here["mean"].min(), here["mean"].max()
        margin = 0.4 * (high - low) + 0.01
        axis.set_ylim(max(0, low - margin), min(1, high + margin))
        labels = ", ".join(_percent(here["fraction"].drop_duplicates()))
        axis.set_title(f"{task}\n{protocol}, {labels} of the labels", fontsize=9)
        axis.set_ylabel(HEADLINES[metric])
    _add_legend(figure, axes)
    return figure


def draw_fractions(summary: pd.DataFrame) -> plt.Figure:
    """Draws scores against the part of the labels, a panel for each method and task."""
    table = summary[summary["metric"].isin(HEADLINES)]
    methods = [m for m in table["method"].unique() if m not in ("baseline", "random")]
    panels = [
        (*key, method, here)
        for key, here in table.groupby(PANEL, sort=False)
        for method in methods
        if here["fraction"].nunique() > 1
    ]
    # A row for each task, or, of a single method, panels side by side.
    columns = len(methods) if len(methods) > 1 else 3
    figure, axes = _panels(len(panels), columns=columns)
    for axis, (task, protocol, metric, method, here) in zip(axes, panels, strict=False):
        for stage in COLOURS:
            of = "random" if stage == "random" else method
            line = here[(here["stage"] == stage) & (here["method"] == of)]
            if line.empty:
                continue
            line = line.sort_values("fraction")
            x, colour = 100 * line["fraction"], COLOURS[stage]
            axis.plot(x, line["mean"], "o-", ms=3, color=colour, label=NAMES[stage])
            if line["low"].notna().all():
                axis.fill_between(
                    x, line["low"], line["high"], color=colour, alpha=0.15
                )
        axis.set_xscale("log")
        axis.set_xticks(sorted(100 * here["fraction"].unique()))
        axis.xaxis.set_major_formatter("{x:g} %")
        axis.minorticks_off()
        axis.set_title(f"{method}: {task}, {protocol}", fontsize=9)
        axis.set_ylabel(HEADLINES[metric])
        axis.set_xlabel("part of the training labels")
    _add_legend(figure, axes)
    return figure


def _draw_reference(axis: plt.Axes, here: pd.DataFrame) -> None:
    styles = {"random": "--", "thumbnail": ":", "histogram": "-.", "position": ":"}
    for stage, style in styles.items():
        for value in here[here["stage"] == stage]["mean"]:
            axis.axhline(
                value,
                color="0.5",
                ls=style,
                lw=1,
                label="not trained" if stage == "random" else f"no encoder ({stage})",
            )


def _panels(count: int, columns: int = 3) -> tuple[plt.Figure, list[plt.Axes]]:
    columns = min(columns, max(count, 1))
    rows = -(-max(count, 1) // columns)
    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=(4 * columns, 2.9 * rows + 0.6),
        squeeze=False,
        layout="constrained",
    )
    for axis in axes.flat[count:]:
        axis.set_axis_off()
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
    return figure, list(axes.flat)


def _add_legend(figure: plt.Figure, axes: list[plt.Axes]) -> None:
    entries: dict[str, object] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    columns = max(1, round(figure.get_figwidth() / 4))
    figure.legend(
        entries.values(), entries, loc="outside lower center", ncols=columns, fontsize=8
    )


def _percent(fractions: pd.Series) -> pd.Series:
    return fractions.map(lambda f: f if isinstance(f, str) else f"{100 * f:g} %")


if __name__ == "__main__":
    report(Path(sys.argv[1]))
