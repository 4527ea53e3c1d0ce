from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightly_dira.evaluation.label_fractions import FRACTIONS, label_fractions


class TestFractions:
    @settings(max_examples=50, deadline=None)
    @given(st.integers(0, 100), st.integers(1, 5), st.booleans(), st.booleans())
    def test_nested_stratified_and_repeatable(
        self, seed: int, classes: int, several: bool, by_patient: bool
    ) -> None:
        random = np.random.default_rng(seed)
        count = int(random.integers(20, 200))
        labels = random.integers(0, classes, count)
        if several:
            labels = random.integers(0, 2, (count, classes))
        patients = random.integers(0, count, count) if by_patient else None
        parts = label_fractions(labels, patients=patients, seed=seed)
        again = label_fractions(labels, patients=patients, seed=seed)
        smaller: set[int] = set()
        for fraction in FRACTIONS:
            part = parts[fraction]
            assert np.array_equal(part, again[fraction])
            assert len(np.unique(part)) == len(part) >= fraction * count - 1e-9
            assert smaller <= set(part.tolist())
            smaller = set(part.tolist())
            if by_patient:
                others = np.delete(patients, part)
                assert not set(patients[part]) & set(others)
            elif not several:
                for label in np.unique(labels):
                    exact = fraction * (labels == label).sum()
                    assert 0 <= (labels[part] == label).sum() - exact < 1
        assert len(parts[1.0]) == count

    def test_seeds_differ(self) -> None:
        first, second = (label_fractions([0] * 99, [0.1], seed=s) for s in (0, 1))
        assert set(first[0.1]) != set(second[0.1])

    @pytest.mark.parametrize("fraction", [0, 1.1, -1])
    def test_out_of_range(self, fraction: float) -> None:
        with pytest.raises(ValueError, match="above 0 and at most 1"):
            label_fractions([0, 1], [fraction])

    def test_patients_of_other_images(self) -> None:
        with pytest.raises(ValueError, match="2 labels need as many patients, got 3"):
            label_fractions([0, 1], patients=[1, 2, 3])
