"""Odd volumes: a right result, or an error with the cure."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest

from lightly_dira.evaluation.labelled import LabelledImages, Samples
from lightly_dira.evaluation.read_volumes import read_mni152, read_nifti
from lightly_dira.transforms import read_volume


class TestVolumes:
    @pytest.fixture
    def write(self, tmp_path: Path):
        nibabel = pytest.importorskip("nibabel")

        def write(name: str, volume, affine=None) -> Path:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            affine = np.eye(4) if affine is None else affine
            nibabel.save(nibabel.Nifti1Image(volume, affine), path)
            return path

        return write

    ZEROS = np.zeros((4, 5, 6), np.int16)

    def test_same_names(self, write) -> None:
        """Found: `s1/t1.nii` and `s2/t1.nii` became one patient."""
        paths = [write(f"s{i}/t1.nii", self.ZEROS) for i in (1, 2)]
        with pytest.raises(ValueError, match=r"named 't1'.*patients="):
            read_nifti(paths)
        data = read_nifti(paths, patients=r"/(s\d)/")
        assert sorted(set(data.patients)) == ["s1", "s2"]
        assert len(set(data.names)) == len(data.names) == 12
        data = read_nifti(paths, patients=["a", "a"])
        assert set(data.patients) == {"a"}
        with pytest.raises(ValueError, match="finds no patient"):
            read_nifti(paths, patients="sub-(.)")
        with pytest.raises(ValueError, match="as many patients"):
            read_nifti(paths, patients=["a"])

    def test_names_with_dots(self, write) -> None:
        """Found: `a.1.nii` and `a.2.nii` were one patient, `a`."""
        paths = [write(f"a.{i}.nii.gz", self.ZEROS) for i in (1, 2)]
        assert sorted(set(read_nifti(paths).patients)) == ["a.1", "a.2"]

    def test_masks(self, write) -> None:
        """Found: floored probabilities, other grids and too many were accepted."""
        path = write("v.nii", self.ZEROS)
        probabilities = write("p.nii", np.full(self.ZEROS.shape, 0.4, np.float32))
        with pytest.raises(ValueError, match=r"holds 0.4.*whole numbers"):
            read_nifti([path], masks=[probabilities])
        shifted = write("s.nii", self.ZEROS, np.diag([2.0, 1, 1, 1]))
        other = write("o.nii", np.zeros((4, 5, 7), np.int16))
        for mask in (shifted, other):
            with pytest.raises(ValueError, match="different grids"):
                read_nifti([path], masks=[mask])
        with pytest.raises(ValueError, match="as many masks, got 2"):
            read_nifti([path], masks=[path, path])
        whole = write("w.nii", np.ones(self.ZEROS.shape, np.float32))
        assert read_nifti([path], masks=[whole]).mask(0).all()

    def test_damaged(self, write, tmp_path: Path) -> None:
        path = write("v.nii.gz", self.ZEROS)
        path.write_bytes(path.read_bytes()[:-30])
        (tmp_path / "text.nii").write_text("no volume")
        for broken in (path, tmp_path / "text.nii"):
            with pytest.raises(ValueError, match="is not a NIfTI file, or is damaged"):
                read_nifti([broken])


class TestReaders:
    def test_nifti(self, tmp_path) -> None:
        """Slices are upright whatever the axes of the file, and of its type."""
        volume = np.arange(16 * 18 * 20, dtype=np.int16).reshape(16, 18, 20) - 1000
        turned = nibabel.Nifti1Image(volume, np.diag([-1, 1, 1, 1]))  # to the left
        nibabel.save(turned, tmp_path / "a.nii.gz")
        nibabel.save(
            nibabel.Nifti1Image(volume[::-1].copy(), np.eye(4)), tmp_path / "b.nii"
        )
        mask = (volume > 0).astype(np.uint8)
        nibabel.save(nibabel.Nifti1Image(mask, np.eye(4)), tmp_path / "mask.nii.gz")
        data = read_nifti([tmp_path / "a.nii.gz", tmp_path / "b.nii"], axis=1)
        assert len(data) == 36
        assert data.pixels(0).dtype == np.int16
        assert data.pixels(0).shape == (20, 16)
        for index in range(18):
            assert np.array_equal(data.pixels(index), data.pixels(18 + index))
        # The head is above the feet, and the right hand on the right.
        highest = volume[:, 4, -1]
        assert np.array_equal(data.pixels(4)[0], highest[::-1])
        assert data.names[21] == "b-003"
        assert set(data.patients) == {"a", "b"}

        paths = [tmp_path / "b.nii"]
        masked = read_nifti(paths, masks=[tmp_path / "mask.nii.gz"], window=(-1000, 0))
        assert masked.mask(19).sum() == mask[:, :, 19].sum()
        image, _ = Samples(masked, 16, "mask")[0]
        assert 0 <= image.min() < image.max() <= 1
        with pytest.raises(ValueError, match=r"DiRATransform\(..., window=") as error:
            Samples(dataclasses.replace(masked, window=None), 16, "mask")[0]
        assert "int16" in str(error.value)

    def test_nifti_errors(self, tmp_path) -> None:
        for name, shape in (("a", (16, 16, 4)), ("b", (16, 16, 5)), ("c", (16, 16))):
            image = nibabel.Nifti1Image(np.zeros(shape, np.uint8), np.eye(4))
            nibabel.save(image, tmp_path / f"{name}.nii")
        a, b, c = (tmp_path / f"{name}.nii" for name in "abc")
        with pytest.raises(ValueError, match="different grids"):
            read_nifti([a], masks=[b])
        with pytest.raises(ValueError, match="three dimensions"):
            read_nifti([c])

    def test_mni152_has_room_between_splits(self) -> None:
        data = read_mni152()
        rows = {
            name: {
                row.tobytes()
                for image in data.split(name).images
                for row in image
                if np.count_nonzero(row) > 20
            }
            for name in ("train", "val", "test")
        }
        assert not rows["train"] & rows["val"]
        assert not rows["train"] & rows["test"]
        assert not rows["val"] & rows["test"]

    def test_nifti_of_whole_volumes(self, tmp_path) -> None:
        """Volumes as `read_volume` orients them, masks with them."""
        volume = np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6)
        nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), tmp_path / "a.nii.gz")
        classes = (volume % 4).astype(np.uint8)
        nibabel.save(nibabel.Nifti1Image(classes, np.eye(4)), tmp_path / "m.nii.gz")
        path = tmp_path / "a.nii.gz"
        data = read_nifti([path], masks=[tmp_path / "m.nii.gz"], axis=None)
        assert (len(data), data.spatial_dims, data.names) == (1, 3, ["a"])
        assert np.array_equal(data.pixels(0), read_volume(path))
        assert np.array_equal(data.mask(0), data.pixels(0) % 4)
        # Files that are read when they are needed.
        paths = [tmp_path / "a.nii.gz"], [tmp_path / "m.nii.gz"]
        lazy = LabelledImages(paths[0], masks=paths[1], spatial_dims=3)
        assert np.array_equal(lazy.pixels(0), data.pixels(0))
        assert np.array_equal(lazy.mask(0), data.mask(0))


def test_columns_of_pandas(tmp_path) -> None:
    """Found: masks of a shuffled table lay on other volumes."""
    rows = []
    for number in range(4):
        volume = np.zeros((16, 16, 16), np.uint8)
        volume[number : number + 3, 4:8, 4:8] = 1
        row = {}
        for name, values in (("v", 100 * volume), ("m", volume)):
            row[name] = tmp_path / f"{name}{number}.nii.gz"
            nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), row[name])
        rows.append(row)
    table = pd.DataFrame(rows).sample(frac=1, random_state=1)
    data = read_nifti(table["v"], masks=table["m"], axis=None)
    for index in range(4):
        assert np.array_equal(data.pixels(index) > 0, data.mask(index) > 0)
