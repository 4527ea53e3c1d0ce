"""The pipeline of views for volumes: crops, flips and curves."""

from __future__ import annotations

import numpy as np
import torch
from pictures import cube

from lightly_dira import DiRATransform
from lightly_dira.transforms import VolumePipeline

SIZE = (12, 16, 20)


def test_published_views() -> None:
    torch.manual_seed(0)
    volume = cube((40, 80, 90))
    views = DiRATransform(spatial_dims=3)(volume)
    assert [tuple(view.shape) for view in views] == [(1, 32, 64, 64)] * 2
    assert views.target.shape == (1, 32, 64, 64)
    views = DiRATransform(spatial_dims=3, input_size=16)(volume)
    assert views[0].shape == (1, 16, 16, 16)
    views = DiRATransform(spatial_dims=3, input_size=(8, 16, 24))(volume)
    assert views.target.shape == (1, 8, 16, 24)


def test_crops_are_resized_trilinearly() -> None:
    """As PyTorch does it."""
    for scale in (0.6, 1.3):
        pipeline = VolumePipeline((12, 16, 20), (scale, scale), flip=0.0, curve=0.0)
        volume = cube((round(12 * scale), round(16 * scale), round(20 * scale)))
        padded = np.zeros(np.maximum(volume.shape, (12, 16, 20)), np.float32)
        padded[tuple(map(slice, volume.shape))] = volume
        if scale < 1:
            pipeline.check = lambda _: None
            padded = volume
        view, _ = pipeline._view(padded[None], None)
        expected = torch.nn.functional.interpolate(
            torch.from_numpy(padded)[None, None], (12, 16, 20), mode="trilinear"
        )
        torch.testing.assert_close(view, expected[0], rtol=0, atol=1e-5)


def test_curves_map_every_voxel_alike() -> None:
    torch.manual_seed(0)
    pipeline = VolumePipeline(SIZE, curve=1.0, inverted=0.0)
    for _ in range(5):
        view, clean = pipeline._view(cube()[None], None)
        order = clean.ravel().argsort()
        mapped = view.ravel()[order]
        assert (mapped.diff() >= 0).all()
        assert mapped[0] >= 0
        assert mapped[-1] <= 1
