"""Shufflings of blocks, and of the pixels inside blocks."""

from __future__ import annotations

import numpy as np
import pytest
from distorted import rectangles
from pictures import numbered
from scipy import stats

from lightly_dira.transforms import PatchShuffling, PixelShuffling


def test_published_shuffling() -> None:
    sides = []
    for pairs in rectangles(PatchShuffling(), "pairs"):
        assert len(pairs) == 10
        covered = np.zeros((224, 224), int)
        for first, second in pairs:
            sizes = {(b - t, r - l_) for t, l_, b, r in (first, second)}
            assert len(sizes) == 1
            sides += sizes.pop()
            for top, left, bottom, right in (first, second):
                covered[top:bottom, left:right] += 1
        assert covered.max() == 1, "rectangles overlap"
    counts = np.bincount(sides)[10:]
    assert len(counts) == 6
    assert stats.chisquare(counts).pvalue > 1e-4


def test_shuffling_exchanges() -> None:
    transform, image = PatchShuffling(count=1), numbered()
    drawn = transform.draw(image.shape, np.random.default_rng(0))
    shuffled = transform.apply(image, **drawn)
    ((t, l_, b, r), (top, left, bottom, right)) = drawn["pairs"][0]
    assert np.array_equal(shuffled[t:b, l_:r], image[top:bottom, left:right])
    assert np.array_equal(shuffled[top:bottom, left:right], image[t:b, l_:r])
    assert (shuffled != image).sum() == 2 * (b - t) * (r - l_)


def test_crowded_image_gets_fewer_exchanges() -> None:
    transform = PatchShuffling(count=50, side=(0.3, 0.3))
    image = numbered(16, 16)
    drawn = transform.draw(image.shape, np.random.default_rng(0))
    shuffled = transform.apply(image, **drawn)
    assert 0 < len(drawn["pairs"]) < 50
    assert np.array_equal(np.sort(shuffled, axis=None), np.sort(image, axis=None))


class TestPixelShuffling:
    def test_pixels_stay_in_their_blocks(self) -> None:
        """The same permutation for all channels; what lies outside stays."""
        transform = PixelShuffling(count=1, side=(0.25, 0.25))
        image = np.arange(32 * 32, dtype=np.uint16).reshape(32, 32)
        image = np.stack([image, image + 2000], axis=2)
        out = transform(image, np.random.default_rng(0))
        changed = np.argwhere((out != image).any(axis=2))
        low, high = changed.min(axis=0), changed.max(axis=0) + 1
        assert (high - low <= 8).all()
        block = np.s_[low[0] : high[0], low[1] : high[1]]
        assert np.array_equal(np.sort(out[block], None), np.sort(image[block], None))
        assert np.array_equal(out[..., 1], out[..., 0] + 2000)
        assert len(changed) > 32, "most pixels move"

    def test_volumes_by_blocks_of_three_dimensions(self) -> None:
        transform = PixelShuffling(count=1, side=(0.25, 0.25))
        volume = np.arange(16 * 24 * 32, dtype=np.float32).reshape(16, 24, 32)
        out = transform(volume[..., None], np.random.default_rng(0))[..., 0]
        changed = np.argwhere(out != volume)
        spread = changed.max(axis=0) + 1 - changed.min(axis=0)
        assert (spread <= (4, 6, 8)).all()
        assert (spread > (2, 3, 5)).all()
        assert np.array_equal(np.sort(out, None), np.sort(volume, None))

    @pytest.mark.parametrize("sizes", [(20, 30), (10, 12, 14)])
    def test_of_blocks_that_overlap_the_last_counts(self, sizes) -> None:
        """Each position holds a value of the last block that covers it."""
        transform = PixelShuffling()
        random = np.random.default_rng(0)
        lengths = random.integers(1, 6, (40, len(sizes)))
        starts = random.integers(0, np.subtract(sizes, lengths), endpoint=True)
        image = np.arange(np.prod(sizes)).reshape(sizes)
        out = transform.apply(image, starts=starts, lengths=lengths, seed=0)
        owner = np.full(sizes, -1)
        areas = [
            tuple(map(slice, start, start + length))
            for start, length in zip(starts, lengths, strict=True)
        ]
        for number, area in enumerate(areas):
            owner[area] = number
        assert np.array_equal(out[owner < 0], image[owner < 0])
        whole = 0
        for number, area in enumerate(areas):
            seen = out[owner == number]
            assert np.isin(seen, image[area]).all()
            assert len(np.unique(seen)) == len(seen)
            whole += seen.size == image[area].size > 1
        assert whole > 0
        assert (out != image).mean() > 0.2

    def test_many_blocks(self) -> None:
        """As in Models Genesis: no voxel stays where it was, none moves far."""
        transform = PixelShuffling(count=10_000, side=(1 / 64, 6 / 64))
        ramp = np.linspace(0, 1, 64, dtype=np.float32)
        volume = np.tile(ramp, (32, 64, 1))[..., None]
        out = transform(volume, np.random.default_rng(0))[..., 0]
        moved = np.abs(out - ramp) * 63
        assert (moved > 0.5).mean() > 0.3
        assert moved.max() < 6
