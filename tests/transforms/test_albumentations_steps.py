"""Steps of albumentations, and they as distortions."""

from __future__ import annotations

import albumentations as A
import numpy as np

from lightly_dira import DiRATransform
from lightly_dira.transforms import transvw_mixture


class TestTransforms:
    def test_replay(self) -> None:
        """Found: KeyError 'images'."""
        compose = A.ReplayCompose([A.HorizontalFlip(p=0.5), A.Normalize()])
        views = DiRATransform(compose)(np.full((40, 40, 3), 128, np.uint8))
        assert views.target.shape == (1, 40, 40)


class TestDistortions:
    def test_elastic_step_moves_in_plane(self) -> None:
        elastic, random = transvw_mixture().distortions[0], np.random.default_rng(0)
        volume = np.repeat(np.arange(1.0, 9, dtype=np.float32), 64 * 64)
        volume = volume.reshape(8, 64, 64, 1) / 8
        out = elastic(volume, random)
        assert np.allclose(out, volume, atol=1e-6), "slices stay what they are"
        ramp = np.tile(np.linspace(0, 1, 64, dtype=np.float32), (8, 64, 1))[..., None]
        out = elastic(ramp, random)
        assert np.allclose(out, out[:1]), "all slices move alike"
