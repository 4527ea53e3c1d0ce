from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from small import bars, small_encoder

from lightly_dira.evaluation.protocol import Task, evaluate


class TestEvaluate:
    def test_same_seed_same_rows(self) -> None:
        protocols = ("linear", "knn", "fine-tuned", "dense", "frozen U-Net", "U-Net")
        task = Task("bars", bars(64), 32, protocols, (0.25, 1.0), steps=10)
        backbone = small_encoder(channels=3)
        rows, again = (list(evaluate(task, backbone, seed=1)) for _ in range(2))
        assert rows == again
        assert [*dict.fromkeys(row["protocol"] for row in rows)] == list(protocols)
        assert {row["images"] for row in rows} == {8, 32}
        assert all(0 <= row["value"] <= 1 for row in rows)
        other = list(evaluate(task, backbone, seed=2))
        assert rows != other

    def test_draws_are_averaged(self) -> None:
        data, backbone = bars(64), small_encoder(channels=3)
        task = Task("bars", data, 32, ("linear",), (0.1, 1.0), draws=3)
        rows = list(evaluate(task, backbone, seed=1))
        assert [(row["fraction"], row["images"]) for row in rows[::3]] == [
            (0.1, 4),
            (1.0, 32),
        ]
        single = dataclasses.replace(task, draws=1)
        values = np.array(
            [
                [row["value"] for row in evaluate(single, backbone, seed=seed)]
                for seed in (3, 4, 5)
            ]
        )
        assert len(np.unique(values[:, 0])) > 1
        assert [row["value"] for row in rows] == pytest.approx(values.mean(axis=0))
        with pytest.raises(ValueError, match="draws must be at least 1, got 0"):
            Task("bars", data, 32, ("linear",), draws=0)

    def test_unknown_protocol(self) -> None:
        with pytest.raises(ValueError, match=r"protocols are linear, knn.*'magic'"):
            Task("bars", bars(8), 32, ("magic",))


def test_masks_that_show_nothing_most_of_the_time() -> None:
    """Found: a part without lesions ended the comparison, after hours."""
    data = bars(64)
    masks = np.stack([data.mask(i) * (i % 3 == 0) for i in range(64)])
    task = Task(
        "lesions",
        dataclasses.replace(data, labels=None, masks=masks),
        32,
        ("dense",),
        (0.05, 1.0),
    )
    rows = list(evaluate(task, small_encoder(channels=3), seed=1))
    assert [row["images"] for row in rows if row["metric"] == "dice"] == [3, 32]
    # Pixels that are drawn may all lie beside a small one.
    task = dataclasses.replace(task, pixels=8, fractions=(0.05,))
    for seed in range(6):
        (row,) = evaluate(task, small_encoder(channels=3), seed=seed)
        assert 0 <= row["value"] <= 1
