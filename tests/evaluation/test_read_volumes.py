"""Odd volumes: a right result, or an error with the cure."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lightly_dira.evaluation.read_volumes import read_nifti


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
