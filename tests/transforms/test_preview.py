"""Pictures of what a transform makes."""

from __future__ import annotations

import albumentations as A
import numpy as np
import pytest
import torch
from lightly.transforms import DINOTransform, MoCoV2Transform, PIRLTransform
from pictures import cube, smooth
from PIL import Image
from pytorch_lightning import seed_everything

from lightly_dira import DiRATransform
from lightly_dira.transforms import orthogonal_slices


def test_preview() -> None:
    pytest.importorskip("matplotlib")
    figure = DiRATransform(MoCoV2Transform(32)).preview(np.zeros((40, 40), np.uint8), 3)
    assert len(figure.axes) == 9
    assert {axis.get_ylabel() for axis in figure.axes} - {""} == {
        "clean target",
        "view 0",
        "view 1",
    }


def test_preview_of_volumes() -> None:
    figure = DiRATransform(spatial_dims=3, input_size=(8, 16, 24)).preview(cube(), n=2)
    assert len(figure.axes) == 2 * 3
    assert figure.axes[0].images[0].get_array().shape[:2] == (16, 2 * 24 + 16)


class TestPreview:
    def test_of_stacks(self) -> None:
        picture = Image.fromarray(smooth(top=255).astype(np.uint8)).convert("RGB")
        figure = DiRATransform(PIRLTransform(input_size=64)).preview(picture, n=2)
        assert len(figure.axes) == 6

    def test_of_normalised_bytes(self) -> None:
        """Found: white."""
        steps = [
            A.Normalize((123,) * 3, (58,) * 3, max_pixel_value=1.0),
            A.ToTensorV2(),
        ]
        picture = np.repeat(smooth(top=255).astype(np.uint8)[..., None], 3, axis=2)
        figure = DiRATransform(A.Compose(steps), distortion=None).preview(picture, n=1)
        shown = figure.axes[1].images[0].get_array()
        np.testing.assert_allclose(shown, picture / 255, atol=0.01)


class TestPixelsBehindTheBoundary:
    """What a review found: each was wrong in silence, or an error in mid-run."""

    def test_preview_shows_targets_as_they_are(self) -> None:
        black = Image.new("RGB", (64, 64))
        transform = DiRATransform(MoCoV2Transform(32), target_channels=3)
        shown = transform.preview(black, n=1).axes[0].images[0].get_array()
        assert np.asarray(shown).max() == 0


def test_slices_are_those_in_the_middle() -> None:
    """Side by side, each in the middle of the sheet's height, and black elsewhere."""
    volumes = torch.rand(2, 1, 4, 6, 10)
    sheet = orthogonal_slices(volumes)
    assert sheet.shape == (2, 1, 6, 10 + 10 + 6)
    assert sheet[..., :10].equal(volumes[:, :, 2])
    assert sheet[..., 1:5, 10:20].equal(volumes[:, :, :, 3])
    assert sheet[..., 1:5, 20:].equal(volumes[..., 5])
    assert not sheet[..., [0, 5], 10:].any()


@pytest.mark.parametrize("base", [None, DINOTransform(global_crop_size=32)])
def test_contact_sheets_show_views_of_one_size(base) -> None:
    """A column for each image: the target, then its large views."""
    transform = DiRATransform(base, input_size=32)
    images = [smooth(top=255).astype(np.uint8), smooth(top=99).astype(np.uint8)]
    seed_everything(0)
    sheet = transform.contact_sheet(images)
    seed_everything(0)
    for column, views in enumerate(map(transform, images)):
        large = [view for view in views if view.shape[1:] == (32, 32)]
        assert len(large) == 2
        pictures = map(transform._boundary.picture_of_view, large)
        for row, picture in enumerate([views.target, *pictures]):
            top, left = 2 + 34 * row, 2 + 34 * column
            shown = sheet[:, top : top + 32, left : left + 32]
            torch.testing.assert_close(shown, picture.expand(3, -1, -1))
    assert sheet.shape == (3, 2 + 34 * 3, 2 + 34 * 2)
