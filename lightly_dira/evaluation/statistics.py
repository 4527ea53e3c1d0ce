"""Is one way of training better than another? Paired statistics over seeds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lightly_dira.core.extras import extra

with extra("evaluation"):
    import pandas as pd
    from scipy import stats
    from statsmodels.stats.multitest import multipletests


def summarise(
    rows: pd.DataFrame, by: Sequence[str], *, confidence: float = 0.95
) -> pd.DataFrame:
    """Summarises the rows of each group, usually the seeds of one setting.

    Args:
        rows: A row for each result, with a column "value".
        by: Columns whose values define a group.
        confidence: Confidence level of the interval.

    Returns:
        A row for each group: `by`, "runs", "mean", and "low" and "high", the bounds of
        Student's confidence interval of the mean (NaN for a single run).

    Examples:
        >>> import pandas as pd
        >>> from lightly_dira.evaluation.statistics import summarise
        >>> rows = pd.DataFrame({"stage": ["di", "di"], "value": [0.5, 0.7]})
        >>> summarise(rows, ["stage"]).round(2).values.tolist()
        [['di', 2, 0.6, -0.67, 1.87]]
    """
    grouped = rows.groupby(list(by), sort=False, dropna=False)["value"]
    table = grouped.agg(runs="count", mean="mean", error="sem").reset_index()
    half = stats.t.ppf((1 + confidence) / 2, table["runs"] - 1) * table.pop("error")
    return table.assign(low=table["mean"] - half, high=table["mean"] + half)


def compare_paired(
    rows: pd.DataFrame,
    column: str,
    first: str,
    second: str,
    *,
    by: Sequence[str],
    pair: str = "seed",
    confidence: float = 0.95,
) -> pd.DataFrame:
    """Tests whether `first` gives higher values than `second`, seed by seed.

    Each group gets a two-sided paired t-test. The p-values are corrected over all
    groups by Holm's method [0].

    - [0]: Holm, 1979, https://www.jstor.org/stable/4615733

    Args:
        rows: A row for each result, with a column "value".
        column: The column that holds `first` and `second`, such as "stage".
        first: One of its values, such as "dira".
        second: Another of its values, such as "di".
        by: Columns whose values define a group, such as method and task.
        pair: The column by which the rows of a group are paired.
        confidence: Confidence level of the interval of the difference.

    Returns:
        A row for each group: `by`, "pairs", "difference" (mean of first minus second),
        its "low" and "high", "p" and "p_holm" (all NaN for fewer than two pairs).

    Raises:
        ValueError: If a group has several values for one value of `column` and `pair`.

    Examples:
        >>> import pandas as pd
        >>> from lightly_dira.evaluation.statistics import compare_paired
        >>> rows = pd.DataFrame(
        ...     {
        ...         "task": "lungs",
        ...         "stage": ["di"] * 3 + ["dira"] * 3,
        ...         "seed": [0, 1, 2] * 2,
        ...         "value": [0.50, 0.60, 0.70, 0.61, 0.70, 0.82],
        ...     }
        ... )
        >>> table = compare_paired(rows, "stage", "dira", "di", by=["task"])
        >>> table[["pairs", "difference", "p"]].round(3).values.tolist()
        [[3.0, 0.11, 0.003]]
    """
    found = []
    for key, group in rows.groupby(list(by), sort=False, dropna=False):
        both = group[group[column].isin([first, second])]
        if both.duplicated([pair, column]).any():
            raise ValueError(
                f"compare_paired: {dict(zip(by, key, strict=True))} has several values "
                f"for one {column} and {pair}; add what tells them apart to `by`."
            )
        values = both.pivot(index=pair, columns=column, values="value")
        values = values.reindex(columns=[first, second]).dropna()
        if values.empty:
            continue
        result = {**dict(zip(by, key, strict=True)), "pairs": len(values)}
        difference = values[first] - values[second]
        result |= {"difference": difference.mean(), "low": np.nan, "high": np.nan}
        result["p"] = np.nan
        if len(values) > 1:
            test = stats.ttest_rel(values[first], values[second])
            interval = test.confidence_interval(confidence)
            # Without any difference, t is 0 / 0.
            p = test.pvalue if difference.any() else 1.0
            result |= {"low": interval.low, "high": interval.high, "p": p}
        found.append(result)
    numbers = {"pairs": int} | dict.fromkeys(["difference", "low", "high", "p"], float)
    table = pd.DataFrame(found, columns=[*by, *numbers]).astype(numbers)
    tested = table["p"].notna()
    table["p_holm"] = np.nan
    if tested.any():
        corrected = multipletests(table.loc[tested, "p"], method="holm")[1]
        table.loc[tested, "p_holm"] = corrected
    return table
