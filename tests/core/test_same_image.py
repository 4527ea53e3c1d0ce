"""Images that are the same, also moved, normalised or repeated."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lightly_dira.core import same_image
from lightly_dira.core.same_image import SAME_IMAGE


@pytest.mark.parametrize("size", [(12, 9), (5, 6, 7)])
def test_the_difference_is_that_of_correlation(size: tuple[int, ...]) -> None:
    """2 (1 - r), by NumPy, over all channels."""
    images, view = torch.rand(2, 3, 2, *size, dtype=torch.float64)
    found = same_image.differences_of(images, view)
    for one, other, difference in zip(images, view, found, strict=True):
        pairs = zip(one.flatten(1).numpy(), other.flatten(1).numpy(), strict=True)
        r = np.mean([np.corrcoef(*pair)[0, 1] for pair in pairs])
        assert difference.item() == pytest.approx(2 * (1 - r), rel=1e-4)
    assert same_image.difference_of(images, view) == found.max()


@pytest.mark.parametrize(
    ("change", "same"),
    [
        (lambda x: (x - 0.4) / 0.2, True),
        (lambda x: x.half(), True),
        (lambda x: x.mean(dim=1, keepdim=True), True),
        (lambda x: x.flip(-1), False),
        (lambda x: x + 0.1 * torch.randn_like(x), False),
        (lambda x: 1 - x, False),
    ],
)
def test_what_counts_as_the_same(change, same: bool) -> None:
    view = torch.rand(2, 3, 32, 32)
    assert (same_image.difference_of(change(view), view) < SAME_IMAGE) == same


def test_grey_and_colours() -> None:
    """A grey image is compared with the mean of channels, two never with three."""
    grey = torch.rand(2, 1, 16, 16)
    colours = grey.expand(-1, 3, -1, -1)
    assert same_image.difference_of(grey, colours) < 1e-6
    assert same_image.difference_of(colours, grey) < 1e-6
    assert same_image.difference_of(colours[:, :2], colours) == torch.inf


def test_of_a_blank_image_only_rounding_is_left() -> None:
    """It is like another one, and unlike an image."""
    blank = torch.full((1, 3, 16, 16), 0.485)
    normalised = (blank - 0.2) / 0.229 + 1e-7 * torch.randn(1, 3, 16, 16)
    assert same_image.difference_of(normalised, blank) < SAME_IMAGE
    assert same_image.difference_of(torch.rand(1, 3, 16, 16), blank) > 0.5


class TestAccelerator:
    """Where a value would be waited for: here by saying so of the CPU."""

    def test_samples_stand_for_images_on_another_device(self, monkeypatch) -> None:
        images = torch.rand(2, 3, 224, 224)
        sampled = same_image._sampled(images)
        assert sampled.shape == (2, 3, 32, 32)
        difference = same_image.difference_of(sampled, same_image._sampled(images / 2))
        assert difference < 1e-6
