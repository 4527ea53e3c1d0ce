"""pytest tests/benchmarks --benchmark-only"""

from __future__ import annotations

import numpy as np
import published_pipeline
import pytest
from lightly.transforms import MoCoV2Transform
from nilearn import datasets
from PIL import Image

from lightly_dira import DiRATransform
from lightly_dira.images import read_image

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
