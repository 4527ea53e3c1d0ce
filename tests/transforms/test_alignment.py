"""Draws of random transforms, in a DataLoader as alone, and what leaves their steps."""

from __future__ import annotations

import albumentations as A
import numpy as np
import pytest
import torch
from lightly.transforms import DINOTransform, MAETransform, MoCoV2Transform
from pytorch_lightning import seed_everything
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lightly_dira import DiRATransform
from lightly_dira.transforms.paintings import InPainting

SIZE = 32
BASES = {
    "published": None,
    "lightly": MoCoV2Transform(input_size=SIZE),
    "albumentations": A.Compose(
        [A.RandomCrop(SIZE, SIZE), A.RandomBrightnessContrast()]
    ),
}


class Constant(Dataset):
    """Always the same image: whatever differs, the transform drew."""

    def __init__(self, base: str) -> None:
        self.transform = DiRATransform(
            BASES[base], input_size=SIZE, distortion=InPainting()
        )
        self.image = np.random.default_rng(0).integers(1, 255, (64, 64), np.uint8)

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int):
        return self.transform(self.image)


def draw(base: str, workers: int, epochs: int = 2, **options) -> list[Tensor]:
    loader = DataLoader(Constant(base), batch_size=1, num_workers=workers, **options)
    return [views[0][0] for _ in range(epochs) for views in loader]


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_all_differ_and_all_repeat(base: str, workers: int, persistent: bool) -> None:
    if persistent and not workers:
        pytest.skip("no workers to persist")
    runs = []
    for _ in range(2):
        seed_everything(7, workers=True)
        runs.append(draw(base, workers, persistent_workers=persistent))
    first, second = runs
    assert all(map(torch.equal, first, second)), "one seed, two results"
    for index, view in enumerate(first):
        for other in first[:index]:
            assert not torch.equal(view, other), "repeated in a worker or an epoch"


@pytest.mark.slow
def test_spawned_workers() -> None:
    views = draw("lightly", 2, epochs=1, multiprocessing_context="spawn")
    assert len({view.numpy().tobytes() for view in views}) == 8


def test_distortions_leave_the_global_numpy_state_alone() -> None:
    transform = DiRATransform(input_size=SIZE)
    before = np.random.get_state()[1].copy()
    transform(np.zeros((64, 64), np.uint8))
    assert np.array_equal(before, np.random.get_state()[1])


@pytest.mark.parametrize("kind", [DINOTransform, MAETransform])
@pytest.mark.parametrize("window", [None, (0, 65535), "percentiles"])
def test_bicubic_steps_of_sixteen_bits(kind, window) -> None:
    """Found: every such image was an error, as interpolation left [0, 1]."""
    image = (np.random.default_rng(0).integers(0, 2, (200, 200)) * 65535).astype("u2")
    transform = DiRATransform(kind(), window=window)
    for target in transform(image).targets:
        assert 0 <= target.min() <= target.max() <= 1
