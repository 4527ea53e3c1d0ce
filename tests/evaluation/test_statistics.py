from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from lightly_dira.evaluation.statistics import compare_paired, summarise


class TestStatistics:
    @pytest.fixture
    def rows(self) -> pd.DataFrame:
        random = np.random.default_rng(0)
        return pd.DataFrame(
            [
                {"task": task, "stage": stage, "seed": seed, "value": random.random()}
                for task in ("a", "b", "c")
                for stage in ("di", "dira")
                for seed in range(5)
            ]
        )

    def values(self, rows: pd.DataFrame, task: str, stage: str) -> np.ndarray:
        return rows[(rows.task == task) & (rows.stage == stage)].value.to_numpy()

    def test_intervals_as_scipy(self, rows) -> None:
        for row in summarise(rows, ["task", "stage"]).itertuples():
            values = self.values(rows, row.task, row.stage)
            low, high = stats.t.interval(
                0.95, len(values) - 1, values.mean(), stats.sem(values)
            )
            assert (row.low, row.high) == (pytest.approx(low), pytest.approx(high))
            assert (row.runs, row.mean) == (5, pytest.approx(values.mean()))

    def test_tests_as_scipy(self, rows) -> None:
        # Pairs belong together by their seeds, not by their order.
        shuffled = rows.sample(frac=1, random_state=0)
        table = compare_paired(shuffled, "stage", "dira", "di", by=["task"])
        table = table.set_index("task").loc[["a", "b", "c"]]
        expected = []
        for row in table.itertuples():
            first, second = (self.values(rows, row.Index, s) for s in ("dira", "di"))
            test = stats.ttest_rel(first, second)
            assert row.p == pytest.approx(test.pvalue)
            assert row.difference == pytest.approx((first - second).mean())
            interval = test.confidence_interval()
            assert (row.low, row.high) == pytest.approx((interval.low, interval.high))
            expected.append(test.pvalue)
        # Holm: the smallest of m times m, the next times m - 1, never falling, up to 1.
        order = np.argsort(expected)
        corrected = np.maximum.accumulate(np.array(expected)[order] * [3, 2, 1])
        found = table.p_holm.to_numpy()[order]
        np.testing.assert_allclose(found, np.minimum(corrected, 1))

    def test_unpaired_rows_do_not_count(self, rows) -> None:
        few = rows[(rows.stage == "di") | (rows.seed == 0)]
        table = compare_paired(few, "stage", "dira", "di", by=["task"])
        assert table.pairs.tolist() == [1, 1, 1]
        assert table[["low", "high", "p", "p_holm"]].isna().all(axis=None)

    def test_ambiguous_rows(self, rows) -> None:
        with pytest.raises(ValueError, match="several values for one stage and seed"):
            compare_paired(rows.assign(x=0), "stage", "dira", "di", by=["x"])


def test_equal_values_are_no_difference() -> None:
    """Found: p was not a number, and the pair left Holm's correction."""
    rows = pd.DataFrame(
        {
            "task": ["a"] * 6 + ["b"] * 6,
            "stage": (["di"] * 3 + ["dira"] * 3) * 2,
            "seed": [0, 1, 2] * 4,
            "value": [0.5, 0.75, 1.0] * 2 + [0.1, 0.2, 0.3, 0.21, 0.32, 0.4],
        }
    )
    table = compare_paired(rows, "stage", "dira", "di", by=["task"])
    assert table["difference"][0] == 0
    assert table["p"][0] == 1
    assert table["p_holm"][1] == pytest.approx(2 * table["p"][1])


def test_groups_without_a_name_are_kept() -> None:
    """Found: rows with NaN in a column of `by` were dropped."""
    rows = pd.DataFrame(
        {
            "stage": ["di", "dira"] * 4,
            "fraction": [None] * 4 + [0.1] * 4,
            "seed": [0, 0, 1, 1] * 2,
            "value": np.arange(8.0),
        }
    )
    assert len(summarise(rows, ["stage", "fraction"])) == 4
    assert len(compare_paired(rows, "stage", "dira", "di", by=["fraction"])) == 2
