"""Images in the forms that steps take."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms as v1

from lightly_dira import DiRATransform
from lightly_dira.transforms.step_images import (
    as_array,
    as_torchvision,
    brightest,
    copied,
    from_array,
    in_range,
    with_channels_of,
)

GREY = np.arange(40 * 40, dtype=np.uint8).reshape(40, 40)


@pytest.mark.parametrize(
    "image", [GREY.copy(), torch.from_numpy(GREY.copy()), Image.fromarray(GREY)]
)
def test_copied(image: Any) -> None:
    copy = copied(image)
    assert copy is not image
    assert np.array_equal(copy, image)
    assert copied("a word") == "a word"


def test_arrays_and_back() -> None:
    volume = torch.rand(2, 4, 5, 6)
    assert as_array(volume).shape == (4, 5, 6, 2)
    assert from_array(as_array(volume)).equal(volume)
    assert from_array(GREY) is GREY


def test_torchvision_gets_images_that_lose_nothing() -> None:
    assert isinstance(as_torchvision(GREY), Image.Image)
    deep = as_torchvision(GREY / np.float32(255))
    assert deep.shape == (1, 40, 40)
    assert deep.dtype == torch.float32


@pytest.mark.parametrize(
    ("image", "inside", "bright"),
    [
        (np.float32([[0, 0.5]]), True, 0.5),
        (torch.tensor([0.0, 1.5]), False, 0.0),
        (torch.tensor([-0.1, 0.5]), False, 0.0),
        (GREY, True, 0.0),
        (np.zeros((0, 3), np.float32), True, 0.0),
        ("a word", True, 0.0),
    ],
)
def test_ranges(image: Any, inside: bool, bright: float) -> None:
    assert in_range(image) is inside
    assert brightest(image) == bright


def test_channels_of_a_normalisation() -> None:
    view = torch.rand(1, 8, 8)
    assert with_channels_of(v1.Normalize([0.5] * 3, [0.5] * 3), view).shape[0] == 3
    # One number for all, as tutorials write it.
    assert with_channels_of(v1.Normalize((0.5), (0.5)), view) is view


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_to_pil_image(channels: int) -> None:
    """Found: torchvision's v1 step failed on arrays, which were images already."""
    image = np.repeat(GREY[..., None], channels, axis=2)
    steps = [v1.ToPILImage(), v1.RandomCrop(32), v1.ColorJitter(0.2), v1.ToTensor()]
    views = DiRATransform(v1.Compose(steps), distortion=None)(image)
    assert views[0].shape == (channels, 32, 32)
