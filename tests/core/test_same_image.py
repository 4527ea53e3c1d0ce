"""Images that are the same, also moved, normalised or repeated."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as V

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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_of_pale_images(dtype: torch.dtype) -> None:
    """Found: runs in bf16 ended at the first batch with little contrast."""
    view = 0.9 + 0.01 * torch.rand(4, 1, 32, 32)
    assert same_image.difference_of(view.to(dtype), view) == 0
    assert same_image.difference_of(view, view.to(dtype)) == 0
    other = 0.9 + 0.01 * torch.rand(4, 1, 32, 32)
    assert same_image.difference_of(other.to(dtype), view) > SAME_IMAGE


def bodies(number: int, dims: int = 2) -> torch.Tensor:
    """Returns images that resemble each other, as films of one part of the body do."""
    torch.manual_seed(0)
    axes = torch.meshgrid(*[torch.linspace(-1, 1, 32)] * dims, indexing="ij")
    common = 1.5 - sum(axis**2 for axis in axes) + 0.3 * axes[-1]
    own = torch.nn.functional.interpolate(
        torch.rand(number, 1, *[6] * dims), size=(32,) * dims
    )
    return common + own


@pytest.mark.parametrize("dims", [2, 3])
def test_images_of_others_and_mirrored_ones(dims: int) -> None:
    """Found: images of one part of the body correlate by more than one half."""
    view = bodies(8, dims)
    half = torch.cat([view[:4].flip(-1), view[4:]])
    assert same_image.correlations_of(half, view).mean() > same_image.HARDLY
    assert same_image.correlations_of(view.roll(1, 0), view).mean() > same_image.HARDLY
    for moved in (half, view.roll(1, 0), view.flip(-2), view.flip(-1, -2)):
        assert same_image.how_unlike(moved, view) is not None
        assert same_image.how_unlike((moved - 0.4) / 0.2, view) is not None
    noisy = view + 0.3 * torch.randn_like(view)
    for same in (view.clone(), view**2, (view - 0.4) / 0.2, noisy, view[:, :, ::2]):
        assert same_image.how_unlike(same, view) is None


@pytest.mark.parametrize("size", [32, 64, 100])
@pytest.mark.parametrize("dims", [2, 3])
def test_anatomy_that_is_nearly_symmetric(dims: int, size: int) -> None:
    """Found: mirrored brains correlate by 0.93 with their own views, as others do."""
    one = torch.nn.functional.interpolate(bodies(8, dims), size=(size,) * dims)
    common = one.mean(dim=0, keepdim=True)
    view = common + common.flip(-1) + 0.5 * one
    view = (view - view.min()) / (view.max() - view.min())
    for moved in (
        view.flip(-1),
        view.roll(1, 0),
        V.gaussian_blur(view.flip(-1).flatten(1, -3), 3).view_as(view),
    ):
        assert same_image.correlations_of(moved, view).mean() > 0.9
        assert same_image.how_unlike(moved, view) is not None
        assert same_image.how_unlike(moved**0.9, view) is not None
    noisy = view + 0.1 * torch.randn_like(view)
    for same in (
        view.clone(),
        view**2,
        view**0.5,
        (view - 0.4) / 0.2,
        noisy,
        view.half(),
    ):
        assert same_image.how_unlike(same, view) is None
    # Nothing that could be told apart.
    even = (view + view.flip(-1)) / 2
    assert same_image.how_unlike(even.bfloat16(), even) is None


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("degrees", [-20, 20])
@pytest.mark.parametrize("size", [32, 96])
def test_turned_zoomed_and_moved_images(dims: int, degrees: int, size: int) -> None:
    """Found: turned by 15 degrees, films correlate by 0.78, as noisy ones do."""
    view = torch.nn.functional.interpolate(bodies(8, dims), size=(size,) * dims)
    slices = view.flatten(1, -3)
    side, edge = size * 3 // 4, size // 8
    for moved in (
        V.affine(slices, degrees, translate=[0, 0], scale=1, shear=[0]),
        V.affine(slices, 0, translate=[edge, 0], scale=1, shear=[0]),
        V.resized_crop(slices, edge, edge, side, side, [size, size]),
    ):
        assert same_image.how_unlike(moved.view_as(view), view) is not None
    for kept in (
        V.gaussian_blur(slices, 5),
        V.elastic(slices, 0.03 * torch.randn(1, size, size, 2)),
        V.erase(slices, 0, 0, side // 2, side, torch.zeros(1)),
        slices + 0.3 * torch.randn_like(slices),
    ):
        assert same_image.how_unlike(kept.view_as(view), view) is None
