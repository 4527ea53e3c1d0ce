from __future__ import annotations

import numpy as np
import pytest
import torch

from lightly_dira.evaluation import dense
from lightly_dira.evaluation.data import MNI152Slices
from lightly_dira.evaluation.dense import dense_probe


class TestMNI152Slices:
    def test_slabs_share_no_voxel(self) -> None:
        """Every test slice differs from every training slice, in any direction."""
        train, test = MNI152Slices("train"), MNI152Slices("test")
        assert len(train) > 300
        assert len(test) > 200
        seen = {row.tobytes() for image in train.images for row in image if row.any()}
        assert not any(
            row.tobytes() in seen
            for image in test.images
            for row in image
            if np.count_nonzero(row) > 20
        )

    def test_every_slice_shows_brain(self) -> None:
        data = MNI152Slices("test")
        assert ((data.images > 0).mean(axis=(1, 2)) >= 0.1).all()
        assert set(np.unique(data.tissues)) == {0, 1, 2}
        assert set(data.directions) == {0, 1, 2}
        grey, white = (data.images[data.tissues == tissue].mean() for tissue in (1, 2))
        assert grey < white, "in a T1 image white matter is brighter"

    def test_items(self) -> None:
        image, direction, name = MNI152Slices("test", lambda image: image.mode)[0]
        assert (image, direction) == ("RGB", 0)
        assert name.startswith("sagittal-")

    def test_bad_split(self) -> None:
        with pytest.raises(ValueError, match="'train' or 'test', got 'val'"):
            MNI152Slices("val")


class TestDenseProbe:
    @pytest.fixture
    def data(self):
        generator = torch.Generator().manual_seed(0)
        images = torch.rand(20, 1, 16, 16, generator=generator)
        return images, (images[:, 0] > 0.4).long() + (images[:, 0] > 0.7).long()

    def test_finds_what_is_there(self, data) -> None:
        images, labels = data
        scores = dense_probe(
            lambda x: [torch.cat([x, x**2, x**3], 1)], images, labels, images, labels
        )
        assert set(scores) == {1, 2}
        assert 0.9 < min(scores.values()) <= max(scores.values()) <= 1

    def test_finds_nothing_in_noise(self, data) -> None:
        images, labels = data
        noise = lambda x: [torch.rand(len(x), 4, 16, 16)]  # noqa: E731
        scores = dense_probe(noise, images, labels, images, labels)
        assert max(scores.values()) < 0.6

    def test_coarse_maps_are_interpolated_as_when_enlarged(self, data) -> None:
        images, labels = data
        coarse = torch.nn.functional.avg_pool2d(images, 4)
        large = torch.nn.functional.interpolate(coarse, size=(16, 16), mode="bilinear")
        random = np.random.default_rng(0)
        found, classes = dense._draw_pixels(
            lambda x: [coarse[:16]] if len(x) == 16 else [coarse[16:]],
            images,
            labels,
            256,
            random,
        )
        random = np.random.default_rng(0)
        order = np.stack([random.permutation(256) for _ in images])
        expected = np.take_along_axis(large.flatten(1).numpy(), order, axis=1)
        np.testing.assert_allclose(found[:, 0], expected.ravel(), atol=1e-5)
        truth = np.take_along_axis(labels.flatten(1).numpy(), order, axis=1)
        assert np.array_equal(classes, truth.ravel())

    def test_labels_must_fit(self, data) -> None:
        images, labels = data
        with pytest.raises(ValueError, match=r"need labels \(20, 16, 16\)"):
            dense_probe(lambda x: [x], images, labels[:, :8], images, labels)
