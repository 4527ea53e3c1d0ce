"""Steps of albumentations, and they as distortions."""

from __future__ import annotations

import albumentations as A
import numpy as np
import torch

from lightly_dira import DiRATransform
from lightly_dira.transforms import transvw_mixture
from lightly_dira.transforms.albumentations_steps import Draws


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


def test_images_of_one_sample_share_their_draws() -> None:
    """Another sample has others, and PyTorch's seed repeats them."""
    step = A.Compose([A.RandomCrop(16, 16), A.GaussNoise(p=1), A.Rotate(p=0.5)])
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    runs = []
    for _ in "12":
        torch.manual_seed(0)
        samples = [Draws() for _ in range(6)]
        runs.append([draws.apply(step, image, image.copy()) for draws in samples])
    for (first, second), (again, _) in zip(*runs, strict=True):
        assert np.array_equal(first, second)
        assert np.array_equal(first, again)
    assert len({first.tobytes() for first, _ in runs[0]}) == 6
