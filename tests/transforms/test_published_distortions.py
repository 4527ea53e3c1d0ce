"""The published mixtures: how often what is drawn, and of what size."""

from __future__ import annotations

import numpy as np
import pytest
from pictures import numbered, picture
from scipy import stats
from scipy.ndimage import gaussian_filter

from lightly_dira import DiRATransform
from lightly_dira.transforms import models_genesis_mixture, transvw_mixture
from lightly_dira.transforms.published_distortions import published_mixture


def kind(before: np.ndarray, after: np.ndarray) -> str:
    if np.array_equal(before, after):
        return "none"
    if np.array_equal(np.sort(before, axis=None), np.sort(after, axis=None)):
        return "shuffling"
    return "outpainting" if not after[0].any() else "inpainting"


def test_published_mixture() -> None:
    image = numbered(96, 96)
    mixture, random = published_mixture(), np.random.default_rng(0)
    n = 20_000
    seen = [kind(image, mixture(image, random)) for _ in range(n)]
    names = ["inpainting", "outpainting", "shuffling", "none"]
    counts = [seen.count(name) for name in names]
    expected = n * np.array([0.30, 0.05, 0.30, 0.35])
    assert stats.chisquare(counts, expected).pvalue > 1e-4


@pytest.mark.parametrize("options", [(-0.1, 0.5, 0.5), (0.5, 0.5, 0.5), (0, 0, 0)])
def test_bad_mixture(options) -> None:
    with pytest.raises(ValueError, match="OneOf: expected a probability"):
        published_mixture(*options)


def test_own_mixture() -> None:
    transform = DiRATransform(
        distortion=published_mixture(1.0, 0.0, 0.0), input_size=64
    )
    assert all((view == 0).any() for view in transform(picture()))


class TestDistortions:
    """Of volumes."""

    def test_published_mixture(self) -> None:
        """One of four, each with a quarter; sizes of TransVW for 64 x 64 x 32."""
        # Without the elastic step each of the four leaves its own trace.
        mixture, random = transvw_mixture(displacement=0), np.random.default_rng(0)
        volume = np.linspace(0.2, 0.8, 32 * 64 * 64, dtype=np.float32)
        volume = volume.reshape(32, 64, 64, 1)
        counts = {"shuffled": 0, "curve": 0, "in": 0, "out": 0}
        for _ in range(200):
            out = mixture(volume, random)
            same = (out == volume).mean()
            # Blocks may overlap, so that a voxel may stand twice.
            if np.isin(out, volume).all():
                counts["shuffled"] += 1
                assert 1 - same <= 5 * 6 * 6 * 3 / volume.size
            elif same < 0.01:
                counts["curve"] += 1
            elif same > 0.5:
                counts["in"] += 1
                painted = (1 - same) * volume.size
                assert 5 * 11 * 11 * 0.9 <= painted <= 11 * 21 * 21
            else:
                counts["out"] += 1
                kept = same * volume.size
                assert 14 * 27 * 27 * 0.9 <= kept <= 19 * 37 * 37
        assert min(counts.values()) > 30, counts

    def test_models_genesis(self) -> None:
        """Parts with the published probabilities, in the published order."""
        mixture, random = models_genesis_mixture(), np.random.default_rng(0)
        kinds = [type(part).__name__ for part in mixture.distortions]
        assert kinds == ["PixelShuffling", "NonLinearIntensity", "OneOf"]
        mixture.distortions[1].p = 0.0  # the curve changes every voxel
        ramp = np.linspace(0.2, 0.8, 16 * 32 * 32, dtype=np.float32)
        ramp = ramp.reshape(16, 32, 32, 1)
        counts = {"same": 0, "shuffled": 0, "painted": 0}
        for _ in range(100):
            out = mixture(ramp, random)
            strange = ((out < 0.19) | (out > 0.81)).mean()
            kind = "painted" if strange > 0.005 else "shuffled"
            counts["same" if np.array_equal(out, ramp) else kind] += 1
        assert counts["painted"] == pytest.approx(90, abs=10)
        assert 0 < counts["same"] < 15

    def test_elastic_step_moves_as_far_as_published(self) -> None:
        """TransVW: noise of 991 that is smoothed over 8 voxels in three dimensions."""
        noise = np.random.default_rng(0).uniform(-991, 991, (48, 96, 96))
        expected = gaussian_filter(noise, 8, mode="wrap").std()
        assert expected == pytest.approx(3.8, rel=0.2)
        elastic = transvw_mixture(expected).distortions[0]
        random = np.random.default_rng(0)
        ramp = np.tile(np.linspace(0, 1, 64, dtype=np.float32), (2, 64, 1))[..., None]
        moved = [63 * (elastic(ramp, random) - ramp)[0] for _ in range(100)]
        inner = np.stack(moved)[:, 24:40, 24:40]
        assert inner.std() == pytest.approx(expected, rel=0.15)

    def test_no_elastic_step(self) -> None:
        assert len(transvw_mixture(0).distortions) == 1
        with pytest.raises(ValueError, match="displacement must be at least 0"):
            transvw_mixture(-1)
