"""Charts of a comparison."""

from __future__ import annotations

import re

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator

PANEL = ["task", "protocol", "metric"]
HEADLINES = {"auc": "AUC", "dice": "Dice", "pointing": "pointing game"}
COLOURS = {
    "random": "0.6",
    "start": "#6a9a5b",
    "published": "#7a2a28",
    "apart": "#8f6fb0",
    "recipe": "#d9822b",
    "di": "#5b8db8",
    "di+curves": "#9bbcd6",
    "di+distortions": "#7fa8cb",
    "di+views": "#2f5f8a",
    "lean": "#eac98f",
    "dir": "#e0a458",
    "dira": "#b0413e",
}
# Stages whose gains are drawn.
DRAWN = ("di+views", "apart", "recipe", "lean", "dir", "dira", "published")
BASES = ("baseline", "random", "start")
NAMES = {
    "published": "as published",
    "apart": "restoration apart from plain views",
    "recipe": "the recipe",
    "random": "not trained",
    "start": "as pre-trained by others",
    "di": "bare method (di)",
    "di+curves": "bare method on curved views",
    "di+distortions": "bare method on distorted views",
    "di+views": "bare method on DiRA's views",
    "lean": "with a cheap restoration (lean)",
    "dir": "with restoration (dir)",
    "dira": "with restoration and adversary (dira)",
}


def draw_gains(differences: pd.DataFrame) -> plt.Figure:
    """What DiRA adds to each method: differences from the bare one, 95 % intervals.

    A panel for each outcome, a line for each method with at least two seeds; filled
    points are significant after Holm's correction.
    """
    panels = differences.groupby(["protocol", "metric"], sort=False)
    methods = [*differences["method"].unique()][::-1]
    found = set(differences["first"])
    stages = [s for s in DRAWN if s in found]
    height = 1 + 0.4 * len(methods)
    figure, axes = _panels(len(panels), len(panels), height, width=3.2)
    for axis, ((protocol, metric), here) in zip(axes, panels, strict=True):
        axis.axvline(0, color="0.3", lw=1)
        for number, stage in enumerate(stages):
            shift = 0.3 * (len(stages) - 1 - 2 * number) / max(2, len(stages))
            for row in here[here["first"] == stage].itertuples():
                axis.errorbar(
                    row.difference,
                    methods.index(row.method) + shift,
                    xerr=[[row.difference - row.low], [row.high - row.difference]],
                    fmt="o",
                    color=COLOURS[stage],
                    mfc=COLOURS[stage] if row.p_holm < 0.05 else "white",
                    capsize=2,
                )
            # The legend's marker does not depend on which point comes first.
            axis.plot([], [], "o-", color=COLOURS[stage], label=NAMES[stage])
        names = [*map(_in_words, methods)] if axis is axes[0] else []
        axis.set_yticks(range(len(methods)), names or [""] * len(methods))
        axis.set_ylim(-0.6, len(methods) - 0.4)
        axis.xaxis.set_major_locator(MaxNLocator(4))
        axis.set_xlabel(f"{HEADLINES[metric]} above the bare method's")
        axis.set_title(protocol, fontsize=10)
    _add_legend(figure, axes, "filled: significant after Holm's correction")
    return figure


def draw_bars(summary: pd.DataFrame) -> plt.Figure:
    """Grouped bars of each task at its smallest fraction, as in the paper's figure."""
    table = summary[summary["metric"].isin(HEADLINES)]
    panels = table.groupby(PANEL, sort=False)
    figure, axes = _panels(len(panels))
    for axis, ((task, protocol, metric), here) in zip(axes, panels, strict=False):
        here = here[here["fraction"] == here["fraction"].min()]
        _draw_reference(axis, here)
        methods = [m for m in here["method"].unique() if m not in BASES]
        for number, method in enumerate(methods):
            stages = here[here["method"] == method]
            width = 0.84 / max(3, len(stages))
            for place, row in enumerate(stages.itertuples()):
                error = [[row.mean - row.low], [row.high - row.mean]]
                axis.bar(
                    number + width * (place - (len(stages) - 1) / 2),
                    row.mean,
                    width - 0.02,
                    yerr=None if np.isnan(row.low) else error,
                    color=COLOURS[row.stage],
                    capsize=2,
                    label=NAMES[row.stage],
                )
        axis.set_xticks(range(len(methods)), [*map(_in_words, methods)], fontsize=9)
        axis.set_xlim(-0.6, max(len(methods), 2) - 0.4)
        shown = here[~here["method"].isin(BASES)]
        _limit(axis, [*here["mean"], *shown["low"], *shown["high"]])
        labels = ", ".join(percent(here["fraction"].drop_duplicates()))
        axis.set_title(f"{task}\n{protocol}, {labels} of the labels", fontsize=9)
        axis.set_ylabel(HEADLINES[metric])
    _add_legend(figure, axes)
    return figure


def draw_fractions(summary: pd.DataFrame) -> plt.Figure:
    """Draws scores against the part of the labels, a panel for each method and task."""
    table = summary[summary["metric"].isin(HEADLINES)]
    methods = [m for m in table["method"].unique() if m not in BASES]
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
            of = stage if stage in BASES else method
            line = here[(here["stage"] == stage) & (here["method"] == of)]
            if line.empty:
                continue
            line = line.sort_values("fraction")
            x, colour = 100 * line["fraction"], COLOURS[stage]
            axis.plot(x, line["mean"], "o-", ms=3, color=colour, label=NAMES[stage])
            if line["low"].notna().all():
                low, high = line["low"].clip(0), line["high"].clip(upper=1)
                axis.fill_between(x, low, high, color=colour, alpha=0.15)
        _limit(axis, [axis.dataLim.y0, axis.dataLim.y1])
        axis.set_xscale("log")
        axis.set_xticks(sorted(100 * here["fraction"].unique()))
        axis.xaxis.set_major_formatter("{x:g} %")
        axis.minorticks_off()
        axis.set_title(f"{method}: {task}, {protocol}", fontsize=9)
        axis.set_ylabel(HEADLINES[metric])
        axis.set_xlabel("part of the training labels")
    _add_legend(figure, axes)
    return figure


def _limit(axis: plt.Axes, values: list[float]) -> None:
    """Shows all values, as far as scores can be: in [0, 1]."""
    low, high = np.nanmin(values), np.nanmax(values)
    margin = 0.1 * (high - low) + 0.01
    axis.set_ylim(max(0, low - margin), min(1, high + margin))


def _draw_reference(axis: plt.Axes, here: pd.DataFrame) -> None:
    styles = {
        "random": "--",
        "start": (0, (6, 1)),
        "thumbnail": ":",
        "histogram": "-.",
        "position": (0, (1, 4)),
    }
    for stage, style in styles.items():
        for value in here[here["stage"] == stage]["mean"]:
            axis.axhline(
                value,
                color="0.5",
                ls=style,
                lw=1,
                label=NAMES.get(stage, f"no encoder ({stage})"),
            )


def _in_words(name: str) -> str:
    """Breaks the name of a method into lines: "MeanBarlowTwins" has three."""
    return re.sub(r"(?<=[a-z])(?=[A-Z][a-z]{4})", "\n", name)


def _panels(
    count: int,
    columns: int | None = None,
    height: float = 2.9,
    width: float = 4,
) -> tuple[plt.Figure, list[plt.Axes]]:
    """Returns a figure of panels, with as few free places as can be."""
    count = max(count, 1)
    columns = min(columns or (2 if count == 4 else 3), count)
    rows = -(-count // columns)
    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=(width * columns, height * rows + 0.6),
        squeeze=False,
        layout="constrained",
    )
    for axis in axes.flat[count:]:
        axis.remove()
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
    return figure, list(axes.flat[:count])


def _add_legend(
    figure: plt.Figure, axes: list[plt.Axes], title: str | None = None
) -> None:
    entries: dict[str, object] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    columns = max(1, round(figure.get_figwidth() / 4))
    figure.legend(
        entries.values(),
        entries,
        loc="outside lower center",
        ncols=columns,
        fontsize=8,
        title=title,
        title_fontsize=8,
    )


def percent(fractions: pd.Series) -> pd.Series:
    return fractions.map(lambda f: f if isinstance(f, str) else f"{100 * f:g} %")
