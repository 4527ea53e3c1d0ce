"""pytest tests/benchmarks --benchmark-only"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np
import published_pipeline
import pytest
import torch
from lightly.transforms import MoCoV2Transform
from nilearn import datasets
from PIL import Image
from steps import make_batch, make_step
from torch.utils.data import DataLoader, Dataset

from lightly_dira import DiRATransform
from lightly_dira.data.image_files import read_image
from lightly_dira.transforms import BatchDistortion, published_mixture

BATCH = range(16)  # images in turn, as a worker of a data loader has them


@pytest.fixture(scope="module")
def image() -> Image.Image:
    """A real slice of a brain, 1024 x 1024, grey, 8 bits; as a PNG about 0.45 MB."""
    volume = datasets.load_mni152_template(resolution=1).get_fdata()
    grey = Image.fromarray((220 * volume[..., 90] / volume.max()).astype(np.uint8))
    pixels = np.asarray(grey.resize((1024, 1024), Image.Resampling.BICUBIC), np.float32)
    noise = np.random.default_rng(0).normal(0, 1.5, pixels.shape)
    return Image.fromarray((pixels + 20 + noise).clip(0, 255).astype(np.uint8))


def test_transform_alone(compare, image) -> None:
    pixels, colour = np.asarray(image), image.convert("RGB")
    transform = DiRATransform()
    compare(
        "published pipeline, 1024 x 1024 grey image to views",
        lambda: [transform(pixels) for _ in BATCH],
        lambda: [published_pipeline.transform(colour) for _ in BATCH],
        goal=">= 10",
    )


def test_from_png(compare, image, tmp_path) -> None:
    path = str(tmp_path / "image.png")
    image.save(path)
    transform = DiRATransform()
    compare(
        "the same from the PNG file",
        lambda: [transform(read_image(path)) for _ in BATCH],
        lambda: [
            published_pipeline.transform(published_pipeline.load(path)) for _ in BATCH
        ],
        goal=">= 3",
    )


class Files(Dataset):
    """Images from PNG files, read and transformed by one worker of a loader."""

    def __init__(self, paths: list[str], load: Callable) -> None:
        self.paths, self.load = paths, load

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> object:
        return self.load(self.paths[index])


def test_loader(compare, record, image, tmp_path) -> None:
    """One worker, beside a training process on one thread: is it kept fed?"""
    paths = [str(tmp_path / f"{number}.png") for number in range(64)]
    for path in paths:
        image.save(path)
    transform = DiRATransform()

    def ours(path: str) -> object:
        return transform(read_image(path))

    def published(path: str) -> object:
        return published_pipeline.transform(published_pipeline.load(path))

    def read(load: Callable) -> None:
        for _ in DataLoader(Files(paths, load), batch_size=8, num_workers=1):
            pass

    seconds = []

    def timed() -> None:
        start = time.perf_counter()
        read(ours)
        seconds.append(time.perf_counter() - start)

    compare(
        "images per second, PNG files through a DataLoader with one worker",
        timed,
        lambda: read(published),
        goal="",
        rounds=5,
    )
    step, views = make_step("SimSiam", dira=True), make_batch()
    step(views)
    start = time.perf_counter()
    step(views)
    batches = len(paths) / 8
    step_time = time.perf_counter() - start
    wait = statistics.median(seconds) / batches / step_time
    record("  the same, time per batch of 8 / step of a ResNet-50, CPU", wait, "< 1")


def test_wrapping_moco(compare, image) -> None:
    colour = image.convert("RGB")
    base = MoCoV2Transform()
    transform = DiRATransform(base)
    compare(
        "MoCoV2Transform, bare / wrapped",
        lambda: [transform(colour) for _ in BATCH],
        lambda: [base(colour) for _ in BATCH],
        goal=">= 0.87 (15 % more time)",
        rounds=40,
    )


@pytest.mark.parametrize("inplace", [False, True])
def test_distortions_of_a_batch(compare, inplace: bool) -> None:
    """64 x 3 x 224 x 224 on the CPU, against one array at a time, then a new batch."""
    images = torch.rand(64, 3, 224, 224)
    arrays = [np.ascontiguousarray(image.movedim(0, -1).numpy()) for image in images]
    mixture, random = published_mixture(), np.random.default_rng(0)

    def one_at_a_time() -> object:
        distorted = [mixture(array, random) for array in arrays]
        if inplace:  # the arrays alone, which no batch holds yet
            return distorted
        return torch.stack([torch.from_numpy(d).movedim(-1, 0) for d in distorted])

    distort = BatchDistortion(inplace=inplace)
    compare(
        "distorting a batch, speed against arrays"
        + (", in place / without a batch" if inplace else " and their batch"),
        lambda: distort(images),
        one_at_a_time,
        goal=">= 1" if not inplace else "",
        rounds=30,
    )


@pytest.mark.parametrize("bits", [8, 16])
def test_grey_images(compare, image, bits: int) -> None:
    """One channel until the normalisation, against the same image in three."""
    transform = DiRATransform(MoCoV2Transform())
    grey = np.asarray(image)
    grey = grey if bits == 8 else grey.astype(np.uint16) * 257
    colour = np.repeat(grey[..., None], 3, axis=2)
    compare(
        f"DiRA(MoCoV2), grey image of {bits} bits, speed against three channels",
        lambda: [transform(grey) for _ in BATCH],
        lambda: [transform(colour) for _ in BATCH],
        goal=">= 2.2",
    )
