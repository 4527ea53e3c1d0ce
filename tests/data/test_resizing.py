"""Borders lie on borders, and pixels are averages."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from pictures import pixels

from lightly_dira.data.resizing import resize_area

SIZES = [
    (155, 32), (155, 64), (1024, 224), (1023, 224), (700, 224), (301, 100), (64, 32),
    (65, 32), (127, 32), (129, 64), (512, 128), (513, 128), (200, 199), (97, 48),
    (255, 64), (257, 64), (333, 111), (2047, 256), (90, 45), (33, 32),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new"), SIZES)
def test_a_picture_of_a_mask_is_its_mask(old: int, new: int) -> None:
    """Found: up to 7 rows at the bottom and the right were cut off, then stretched."""
    for edge in (0.1, 0.5, 0.9):
        image = np.zeros((old, old), np.float32)
        cut = round(edge * old)
        image[cut:] = 1
        right = (old - cut) * new / old
        for turned in (image, image.T):
            small = resize_area(np.ascontiguousarray(turned), new, new)
            along = small[:, 0] if turned is image else small[0]
            assert along.sum() == pytest.approx(right, abs=0.1)
            assert small.sum() == pytest.approx(right * new, rel=0.02)


def test_the_case_of_the_brain() -> None:
    image = np.zeros((155, 155), "float32")
    image[139:] = 1
    assert resize_area(image, 32, 32)[:, 0].sum() == pytest.approx(3.30, abs=0.05)


@pytest.mark.parametrize("size", [(1024, 1024), (300, 900), (900, 300), (513, 257)])
def test_shrinking_is_nearly_the_average_of_the_area(size: tuple[int, int]) -> None:
    noise = cv2.GaussianBlur(pixels(np.uint8, size), (0, 0), 1.0)
    area = cv2.resize(noise, (64, 64), interpolation=cv2.INTER_AREA).astype(float)
    bilinear = cv2.resize(noise, (64, 64), interpolation=cv2.INTER_LINEAR)
    error = np.abs(resize_area(noise, 64, 64) - area).mean()
    assert error < 0.3 * np.abs(bilinear - area).mean()
