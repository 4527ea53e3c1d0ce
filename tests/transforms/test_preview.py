"""Pictures of what a transform makes."""

from __future__ import annotations

import albumentations as A
import numpy as np
import pytest
from lightly.transforms import MoCoV2Transform, PIRLTransform
from pictures import cube, smooth
from PIL import Image

from lightly_dira import DiRATransform


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
