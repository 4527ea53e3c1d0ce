"""Blocks that distortions draw: rectangles in images, cuboids in volumes."""

from __future__ import annotations

import numpy as np
import pytest

from lightly_dira.transforms import (
    InPainting,
    NonLinearIntensity,
    OutPainting,
    PatchShuffling,
)


def test_sizes_are_relative() -> None:
    transform, random = InPainting(), np.random.default_rng(0)
    for _ in range(50):
        blocks = transform.draw((448, 448), random)["blocks"]
        for top, left, bottom, right in blocks:
            assert 20 <= bottom - top <= 140
            assert 20 <= right - left <= 140


@pytest.mark.parametrize(
    ("distortion", "options"),
    [
        (InPainting, {"count": 0}),
        (InPainting, {"side": (0.5, 0.2)}),
        (OutPainting, {"side": (0.0, 0.2)}),
        (OutPainting, {"margin": 0.5}),
        (InPainting, {"stop": 1.5}),
        (PatchShuffling, {"side": (0.5, 1.2)}),
        (PatchShuffling, {"count": -1}),
        (NonLinearIntensity, {"inverted": 2.0}),
    ],
)
def test_bad_arguments(distortion, options) -> None:
    with pytest.raises(ValueError, match=distortion.__name__):
        distortion(**options)


class TestDistortions:
    @pytest.mark.parametrize("distortion", [InPainting, OutPainting, PatchShuffling])
    def test_blocks_are_cuboids(self, distortion) -> None:
        transform = distortion(count=1, side=(0.2, 0.4))
        random = np.random.default_rng(0)
        volume = 1 + np.arange(20 * 30 * 40, dtype=np.float32).reshape(20, 30, 40)
        lengths = []
        for _ in range(200):
            drawn = transform.draw(volume.shape, random)
            out = transform.apply(volume, **drawn)
            if distortion is PatchShuffling:
                (blocks,) = drawn["pairs"]
                assert np.array_equal(np.sort(out, None), np.sort(volume, None))
            else:
                blocks = drawn["blocks"]
            for block in blocks:
                sides = np.subtract(block[3:], block[:3])
                lengths.append(sides / (20, 30, 40))
                area = tuple(map(slice, block[:3], block[3:]))
                if distortion is InPainting:
                    assert (out[area] == 0).all()
                    assert (out == 0).sum() == sides.prod()
                if distortion is OutPainting:
                    assert np.array_equal(out[area], volume[area])
                    assert (out != 0).sum() == sides.prod()
        low, high = np.min(lengths, axis=0), np.max(lengths, axis=0)
        assert (np.abs(low - 0.2) <= 0.03).all()
        assert (np.abs(high - 0.4) <= 0.03).all()
        assert len({tuple(each) for each in lengths}) > 100
