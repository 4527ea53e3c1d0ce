"""The published pipeline: crops, flips, colours and blur."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pictures import picture
from scipy import stats
from torchvision import transforms as v1

from lightly_dira import DiRATransform
from lightly_dira.transforms.published_pipeline import PublishedPipeline, _jitter_grey

SIZE = 32


class TestOutput:
    @pytest.mark.parametrize("mode", ["L", "RGB"])
    @pytest.mark.parametrize("array", [True, False])
    def test_published_pipeline(self, mode: str, array: bool) -> None:
        image = picture(mode, size=300)
        views = DiRATransform(input_size=64)(np.asarray(image) if array else image)
        assert [view.shape for view in views] == [(3, 64, 64)] * 2
        assert views.target.shape == (1, 64, 64)
        assert all(0 <= view.min() < view.max() <= 1 for view in [*views, views.target])

    def test_published_pipeline_with_other_numbers(self) -> None:
        """All of the image, in its own grey levels: every view is the target."""
        whole = PublishedPipeline(
            SIZE, scale=(1, 1), ratio=(1, 1), jitter=(0, 0, 0, 0), blur_p=0
        )
        transform = DiRATransform(whole, distortion=None)
        views = transform(picture("L"))
        for view in views:
            assert view.shape == (3, SIZE, SIZE)
            mirrored = view.flip(-1)
            assert any(torch.equal(x[:1], views.target) for x in (view, mirrored))


def test_published_pipeline_works_alone() -> None:
    torch.manual_seed(0)
    x0, x1 = PublishedPipeline(SIZE)(picture())
    assert x0.shape == x1.shape == (3, SIZE, SIZE)
    assert 0 <= x0.min() < x0.max() <= 1
    assert not torch.equal(x0, x1)


class TestErrors:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"size": 0}, "size must be 1 or more"),
            ({"scale": (0.5, 0.2)}, r"scale must be .* got \(0.5, 0.2\)"),
            ({"scale": (0.5, 2)}, "high <= 1"),
            ({"sigma": (0, 1)}, "sigma must be"),
            ({"jitter": (0.4, 0.4, 0.4, 1)}, r"hue in \[0, 0.5\]"),
            ({"flip": 2}, "probabilities"),
        ],
    )
    def test_pipeline_out_of_range(self, options, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            PublishedPipeline(**{"size": 32, **options})


def test_crops_are_drawn_as_torchvision_does() -> None:
    """Sides and centres, read off from an image whose pixels say where they are."""
    y, x = np.mgrid[:200, :300].astype(np.float32)
    image = np.stack([x / 300, y / 300, 0 * x], axis=2)
    plain = PublishedPipeline(SIZE, flip=0, jitter_p=0, blur_p=0)
    torch.manual_seed(0)
    found, expected = [], []
    for _ in range(500):
        for view in plain(image):
            across, down = 300 * view[0], 300 * view[1]
            steps = down.diff(dim=0).median(), across.diff(dim=1).median()
            sides = [SIZE * step for step in steps]
            found.append([*sides, down.mean(), across.mean()])
        scale, ratio = [0.2, 1.0], [3 / 4, 4 / 3]
        for _ in "12":
            top, left, height, width = v1.RandomResizedCrop.get_params(
                torch.empty(1, 200, 300), scale, ratio
            )
            centre = top + (height - 1) / 2, left + (width - 1) / 2
            expected.append([height, width, *centre])
    for ours, theirs in zip(np.transpose(found), np.transpose(expected), strict=True):
        assert stats.ks_2samp(ours, theirs).pvalue > 1e-3


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 1, 2, 0)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_greys_are_jittered_as_torchvision_does(dtype, order: tuple[int, ...]) -> None:
    image = np.array(picture("L"))
    image = image if dtype is np.uint8 else image / np.float32(255)
    for brightness, contrast in ((1.4, 0.6), (0.6, 1.4), (1.1, 1.3)):
        found = _jitter_grey(image, brightness, contrast, order)
        expected = torch.from_numpy(image)[None]
        steps = (
            lambda greys, by=brightness: v1.functional.adjust_brightness(greys, by),
            lambda greys, by=contrast: v1.functional.adjust_contrast(greys, by),
        )
        for step in order:
            expected = steps[step](expected) if step < 2 else expected
        # Bytes are rounded here, and cut off there.
        atol = 2 if dtype is np.uint8 else 1e-5
        assert found.dtype == dtype
        np.testing.assert_allclose(
            found.astype(float), expected[0].double().numpy(), atol=atol
        )
