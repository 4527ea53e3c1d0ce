from __future__ import annotations

import numpy as np
import pytest

from lightly_dira.evaluation.splits import draw_splits

NAMES = "train", "val", "test"


def test_every_split_has_every_class() -> None:
    """Found: 99 of 200 draws of 20 labels validated on one class, and AUC was NaN."""
    for seed in range(50):
        labels = np.random.default_rng(seed).permutation([0, 1] * 10)
        splits = draw_splits(np.arange(20), seed, labels=labels)
        assert [(splits == name).sum() for name in NAMES] == [14, 2, 4]
        assert all(len(set(labels[splits == name])) == 2 for name in NAMES)


def test_rare_classes_are_held_out_too() -> None:
    labels = np.array([0] * 15 + [1] * 5)
    for seed in range(20):
        splits = draw_splits(np.arange(20), seed, labels=labels)
        assert all(len(set(labels[splits == name])) == 2 for name in NAMES)


def test_proportions_of_grouped_images() -> None:
    random = np.random.default_rng(0)
    groups = random.integers(0, 300, 2000)
    labels = (groups % 5 == 0).astype(int)
    splits = draw_splits(groups, 0, labels=labels)
    for name, part in zip(NAMES, (0.7, 0.1, 0.2), strict=True):
        chosen = splits == name
        assert chosen.mean() == pytest.approx(part, abs=0.02)
        assert labels[chosen].mean() == pytest.approx(labels.mean(), abs=0.03)
        assert not set(groups[chosen]) & set(groups[~chosen])


def test_findings() -> None:
    labels = np.random.default_rng(0).random((400, 3)) < (0.5, 0.2, 0.05)
    splits = draw_splits(np.arange(400), 0, labels=labels.astype(int))
    for name in NAMES:
        part = labels[splits == name].mean(axis=0)
        np.testing.assert_allclose(part, labels.mean(axis=0), atol=0.12)
        assert part.min() > 0


@pytest.mark.parametrize("count", [1, 2, 3, 5, 9, 11])
def test_few_groups(count: int) -> None:
    splits = draw_splits(np.repeat(np.arange(count), 2), 0)
    assert (splits == "train").any()
    assert set(splits) <= set(NAMES)
    for number in range(count):
        assert len(set(splits[2 * number : 2 * number + 2])) == 1


def test_seeds_differ() -> None:
    first, same, other = (draw_splits(np.arange(40), seed) for seed in (0, 0, 1))
    assert (first == same).all()
    assert (first != other).any()


def test_classes_are_not_held_out_wholly() -> None:
    labels = np.zeros(200, int)
    labels[:100], labels[[5, 120]] = 1, 2
    for seed in range(3):
        splits = draw_splits(np.arange(200), seed, labels=labels)
        assert 2 in labels[splits == "train"]


def test_sizes_count() -> None:
    """Found: one large patient made the test split."""
    groups = np.concatenate([np.zeros(100, int), np.arange(1, 13)])
    labels = (groups > 6).astype(int)
    splits = draw_splits(groups, 0, labels=labels)
    assert (splits == "train").sum() > 90
