from __future__ import annotations

import numpy as np
import pytest

from lightly_dira.evaluation.data import MNI152Slices


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
