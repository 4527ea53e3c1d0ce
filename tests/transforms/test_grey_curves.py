"""Curves of grey levels, by a table."""

from __future__ import annotations

import numpy as np
import pytest

from lightly_dira.transforms import NonLinearIntensity
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


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("inverted", [0.0, 1.0])
def test_nonlinear_intensity_is_monotone(dtype, inverted: float) -> None:
    top = 1 if dtype is np.float32 else np.iinfo(dtype).max
    ramp = (np.linspace(0, 1, 4096).reshape(64, 64) * top).astype(dtype)
    transform = NonLinearIntensity(inverted=inverted)
    curves = set()
    for seed in range(20):
        mapped = transform(ramp, np.random.default_rng(seed))
        assert mapped.dtype == dtype
        steps = np.diff(mapped.ravel().astype(np.float64))
        assert (steps <= 1e-6).all() if inverted else (steps >= -1e-6).all()
        assert {mapped.min(), mapped.max()} == {0, top}
        curves.add(mapped.tobytes())
    assert len(curves) == 20


def test_nonlinear_intensity_follows_the_bezier_curve() -> None:
    """de Casteljau's construction, point by point."""
    transform = NonLinearIntensity(inverted=0.0)
    params = transform.draw((16, 16), np.random.default_rng(1))
    a, b, c, d, _ = np.random.default_rng(1).random(5)
    xs, ys = sorted((a, b)), sorted((c, d))
    points = np.array([(0, 0), *zip(xs, ys, strict=True), (1, 1)])
    for t in (0.2, 0.5, 0.9):
        row = points
        while len(row) > 1:
            row = (1 - t) * row[:-1] + t * row[1:]
        index = round(1000 * t)
        np.testing.assert_allclose((params["x"][index], params["y"][index]), row[0])
