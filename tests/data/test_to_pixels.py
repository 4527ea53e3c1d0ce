"""Images and volumes as tensors of one size."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import resize

from lightly_dira.data import ToPixels


def test_images_of_all_kinds_get_one_size_and_range() -> None:
    random = np.random.default_rng(0)
    byte = random.integers(0, 256, (60, 90), dtype=np.uint8)
    for image, channels in (
        (byte, 1),
        (Image.fromarray(byte), 1),
        (Image.fromarray(byte).convert("RGB"), 3),
        (byte.astype(np.uint16) * 257, 1),
        (byte / np.float32(255), 1),
        (torch.from_numpy(byte)[None], 1),
    ):
        pixels = ToPixels(48)(image)
        assert pixels.shape == (channels, 48, 48)
        assert pixels.dtype == torch.float32
        whole = torch.from_numpy(byte / np.float32(255))[None]
        expected = resize(whole, [48, 48], antialias=True)
        assert (pixels[0] - expected[0]).square().mean().sqrt() < 0.05
        assert float(pixels.mean()) == pytest.approx(float(whole.mean()), abs=0.01)


def test_windows_and_volumes() -> None:
    scan = np.linspace(-2000, 2000, 8 * 12 * 16, dtype=np.float32).reshape(8, 12, 16)
    pixels = ToPixels((8, 6, 8), window=(-1000, 400), spatial_dims=3)(scan)
    assert pixels.shape == (1, 8, 6, 8)
    assert (pixels.min(), pixels.max()) == (0, 1)
    same = ToPixels((8, 12, 16), window=(-1000, 400), spatial_dims=3)(scan)
    assert torch.allclose(
        same[0], torch.from_numpy(scan).add(1000).div(1400).clamp(0, 1)
    )


def test_the_image_is_not_shared() -> None:
    image = np.zeros((32, 32), np.float32)
    ToPixels(32)(image).fill_(1)
    assert not image.any()


@pytest.mark.parametrize(
    ("size", "dims"), [(0, 2), ((8, 8, 8), 2), ((8, 8), 3), (8, 4)]
)
def test_sizes_out_of_range(size: Any, dims: int) -> None:
    with pytest.raises(ValueError, match="ToPixels: size must be"):
        ToPixels(size, spatial_dims=dims)


def test_units_need_a_window() -> None:
    with pytest.raises(ValueError, match="window"):
        ToPixels(32)(np.full((32, 32), 900.0, np.float32))
