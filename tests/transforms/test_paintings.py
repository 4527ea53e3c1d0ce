"""Paintings: blocks, or all but blocks, of black or noise."""

from __future__ import annotations

import numpy as np
import pytest
from distorted import rectangles
from scipy import stats

from lightly_dira.transforms import InPainting, OutPainting


@pytest.mark.parametrize(
    ("distortion", "shortest", "longest"),
    [(InPainting, 10, 70), (OutPainting, 154, 174)],
)
def test_published_rectangles(distortion, shortest: int, longest: int) -> None:
    drawn = rectangles(distortion())
    sides, borders = [], []
    for top, left, bottom, right in (r for image in drawn for r in image):
        sides += [bottom - top, right - left]
        borders.append(min(top, left, 224 - bottom, 224 - right))
    assert min(borders) == 3
    counts = np.bincount(sides)[shortest:]
    assert len(counts) == longest - shortest + 1
    assert stats.chisquare(counts).pvalue > 1e-4
    # After each of at most 10 rectangles, stop with probability 0.1.
    numbers = np.bincount([len(image) for image in drawn], minlength=11)[1:]
    expected = [0.1 * 0.9**k for k in range(9)] + [0.9**9]
    assert stats.chisquare(numbers, len(drawn) * np.array(expected)).pvalue > 1e-4


class TestDistortions:
    @pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
    def test_noise(self, dtype) -> None:
        top = 1 if dtype is np.float32 else np.iinfo(dtype).max
        volume = np.full((32, 64, 64, 1), top, dtype)
        painting = OutPainting(1, (3 / 7, 4 / 7), 3 / 64, fill="noise")
        out = painting(volume)
        noise = out[out != top] / top
        assert out.dtype == dtype
        assert noise.mean() == pytest.approx(0.5, abs=0.01)
        assert noise.std() == pytest.approx(12**-0.5, abs=0.01)
