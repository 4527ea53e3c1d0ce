"""The published pipeline: crops, flips, colours and blur."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pictures import picture

from lightly_dira import DiRATransform
from lightly_dira.transforms.published_pipeline import PublishedPipeline

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
