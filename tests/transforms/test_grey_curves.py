"""Curves of grey levels, by a table."""

from __future__ import annotations

import numpy as np
import pytest

from lightly_dira.transforms.grey_curves import bezier_curve, through_curve


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_table_is_as_good_as_a_search(dtype) -> None:
    """Against `numpy.interp`, for a thousand curves."""
    random = np.random.default_rng(0)
    errors = []
    for _ in range(1000):
        *points, falls = random.random(5)
        x, y = bezier_curve(*points, inverted=falls < 0.5)
        image = random.random((30, 30)).astype(dtype)
        image[0, :2] = 0, 1
        mapped = through_curve(image, x, y)
        assert mapped.dtype == dtype
        assert mapped.min() >= 0
        assert mapped.max() <= 1
        errors.append(np.abs(mapped - np.interp(image, x, y)).max())
    assert np.median(errors) < 1e-6
    assert np.mean(np.array(errors) > 1e-3) < 0.01


def test_values_outside_are_clipped() -> None:
    x, y = bezier_curve(0.2, 0.4, 0.3, 0.9, inverted=False)
    image = np.array([[-0.1, 1.2]], np.float32)
    assert np.allclose(through_curve(image, x, y), [[0, 1]])
