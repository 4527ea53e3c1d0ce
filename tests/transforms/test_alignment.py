"""Draws of random transforms, in a DataLoader as alone, and what leaves their steps."""

from __future__ import annotations

import random
from typing import Any

import albumentations as A
import numpy as np
import pytest
import torch
from lightly.transforms import DINOTransform, MAETransform, MoCoV2Transform
from PIL import Image, ImageOps
from pytorch_lightning import seed_everything
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms as v1
from torchvision.transforms import v2

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


class TestInPlace:
    """Steps that write into what they are given leave the target as it was."""

    def test_of_libraries(self) -> None:
        """Found: the target had the holes of the view, or was normalised with it."""
        image = torch.rand(3, 40, 40) / 2 + 0.5
        erase = v2.RandomErasing(p=1.0, inplace=True)
        for steps in ([erase], [v2.RandomResizedCrop(32), erase]):
            views = DiRATransform([v2.Compose(steps)], distortion=None)(image)
            assert views.target.min() >= 0.5
            assert views[0].min() == 0
        normalise = v2.Normalize([0.5], [0.5], inplace=True)
        transform = DiRATransform([v2.Compose([normalise])], distortion=None)
        views = transform(image[:1].clone())
        assert views.target.min() >= 0.5
        assert torch.allclose(views[0], 2 * views.target - 1)

    @pytest.mark.parametrize("dims", [2, 3])
    def test_of_the_users_own(self, dims: int) -> None:
        class Hole:
            def __call__(self, image: Any) -> Any:
                image[..., 4:20, 4:20] = 0
                return image

        image = np.full((40,) * dims, 60_000, np.uint16)
        steps = v1.Compose([Hole()])
        transform = DiRATransform(
            steps, distortion=None, kinds={Hole: "photometric"}, spatial_dims=dims
        )
        views = transform(image)
        assert views.target.min() == pytest.approx(60_000 / 65535)
        assert views[0].min() == 0


class Flip:
    """Flips every other image, by a generator of its own."""

    def __init__(self, generator: Any) -> None:
        self.generator = generator

    def __call__(self, image: Image.Image) -> Image.Image:
        return ImageOps.mirror(image) if self.generator.random() < 0.5 else image


class Bound(Flip):
    """Holds a function of its generator, which copies share."""

    def __call__(self, image: Image.Image) -> Image.Image:
        return ImageOps.mirror(image) if self.generator() < 0.5 else image


class Adapted:
    """The usual way to albumentations in a `Compose` of torchvision."""

    def __init__(self) -> None:
        self.steps = A.Compose([A.HorizontalFlip(p=0.5)])

    def __call__(self, image: Image.Image) -> Image.Image:
        return Image.fromarray(self.steps(image=np.asarray(image))["image"])


class TestOwnDraws:
    """The user's steps that move pixels draw the same for view and target."""

    image = Image.fromarray(np.tile(np.arange(0, 240, 6, dtype=np.uint8), (40, 1)))

    def pairs(self, step: Any):
        steps = v1.Compose([v1.ColorJitter(0.1), step, v1.ToTensor()])
        key = step if isinstance(step, type(lambda: 0)) else type(step)
        transform = DiRATransform(steps, distortion=None, kinds={key: "geometric"})
        return [
            (views[0][0], views.target[0])
            for views in map(transform, 40 * [self.image])
        ]

    @pytest.mark.parametrize(
        "make",
        [
            Adapted,
            lambda: Flip(np.random.default_rng(0)),
            lambda: Flip(random.Random(0)),
        ],
    )
    def test_objects(self, make) -> None:
        """Found: half of the targets were mirrored."""
        pairs = self.pairs(make())
        assert len({bool(view[0, 0] < view[0, -1]) for view, _ in pairs}) == 2
        for view, target in pairs:
            assert (view[0, 0] < view[0, -1]) == (target[0, 0] < target[0, -1])

    def test_functions(self) -> None:
        """They cannot be copied with their generator."""
        own = np.random.default_rng(0)

        def flip(image: Image.Image) -> Image.Image:
            return ImageOps.mirror(image) if own.random() < 0.5 else image

        for step in (flip, Bound(random.Random(0).random)):
            with pytest.raises(ValueError, match=r"has to move .*, and has draws"):
                self.pairs(step)
        assert len(self.pairs(ImageOps.mirror)) == 40

    def test_what_cannot_be_copied(self) -> None:
        class Locked(Flip):
            def __deepcopy__(self, memo: Any) -> Any:
                raise TypeError("cannot pickle a lock")

        with pytest.raises(ValueError, match="cannot be copied: cannot pickle a lock"):
            self.pairs(Locked(random))


def test_steps_that_divide_again() -> None:
    """Found: the view was black, without a word."""

    class ToUnits:
        def __call__(self, image: Any) -> Any:
            return torch.from_numpy(np.asarray(image, np.float32) / 65535)[None]

    image = np.full((40, 40), 60_000, np.uint16)
    transform = DiRATransform(
        v1.Compose([ToUnits()]), distortion=None, kinds={ToUnits: "conversion"}
    )
    with pytest.warns(UserWarning, match="ToUnits made pixels .* almost black"):
        transform(image)


def test_splines_of_volumes_are_clamped() -> None:
    """Found: the error asked for a window, which was there."""
    monai = pytest.importorskip("monai.transforms")
    volume = (np.random.default_rng(0).random((12, 12, 12)) > 0.5) * 2000.0 - 1000
    steps = [
        monai.EnsureChannelFirst(channel_dim="no_channel"),
        monai.RandAffine(prob=1.0, rotate_range=0.3, mode=3),
    ]
    transform = DiRATransform(
        monai.Compose(steps), spatial_dims=3, distortion=None, window=(-1000, 1000)
    )
    target = transform(volume).target
    assert 0 <= target.min() < target.max() <= 1
