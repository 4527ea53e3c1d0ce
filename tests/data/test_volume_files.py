"""Volumes in files of every kind, in one orientation."""

from __future__ import annotations

import itertools
from pathlib import Path

import nibabel
import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt, ornt_transform
from pictures import volume
from pydicom.data import get_testdata_file
from scipy.ndimage import map_coordinates

from lightly_dira import DiRATransform
from lightly_dira.transforms import read_volume


@pytest.mark.parametrize(
    "codes",
    ["".join(c) for c in itertools.product("RL", "AP", "SI")] + ["SAR", "PIR", "IRA"],
)
def test_nifti_of_any_orientation(codes: str, tmp_path: Path) -> None:
    ras = volume()[:, ::-1, ::-1].transpose(2, 1, 0)
    image = nibabel.Nifti1Image(ras, np.diag([3.0, 2.0, 1.5, 1.0]))
    turn = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(tuple(codes)))
    image = image.as_reoriented(turn)
    assert "".join(nibabel.aff2axcodes(image.affine)) == codes
    nibabel.save(image, tmp_path / "v.nii.gz")
    read = read_volume(tmp_path / "v.nii.gz")
    assert read.dtype == np.int16
    np.testing.assert_array_equal(read, volume())
    doubled = read_volume(tmp_path / "v.nii.gz", spacing=(0.75, 1.0, 1.5))
    assert doubled.shape == (12, 14, 16)


def test_resampling_is_linear(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(volume().astype(np.float32), np.diag([2.0, 2, 2, 1]))
    nibabel.save(image, tmp_path / "v.nii")
    plain = read_volume(tmp_path / "v.nii")
    read = read_volume(tmp_path / "v.nii", spacing=(1.0, 2.0, 2.0))
    # Voxel centres of half the size lie a quarter before and behind.
    places = np.arange(2 * plain.shape[0]) / 2 - 0.25
    grid = np.meshgrid(places, *map(np.arange, plain.shape[1:]), indexing="ij")
    expected = map_coordinates(plain, grid, order=1, mode="nearest")
    np.testing.assert_allclose(read, expected, atol=1e-3)


class TestNumPy:
    def test_arrays(self, tmp_path: Path) -> None:
        np.save(tmp_path / "v.npy", volume())
        np.savez(tmp_path / "v.npz", any_name=volume())
        for name in ("v.npy", "v.npz"):
            np.testing.assert_array_equal(read_volume(tmp_path / name), volume())
        views = DiRATransform(spatial_dims=3, input_size=4, window=(0, 1000))(
            read_volume(tmp_path / "v.npz")
        )
        assert views[0].shape == (1, 4, 4, 4)

    def test_errors(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "two.npz", a=volume(), b=volume())
        np.save(tmp_path / "flat.npy", np.zeros((4, 4)))
        (tmp_path / "cut.npy").write_bytes(b"\x93NUMPY")
        (tmp_path / "cut.nii").write_bytes(b"nothing")
        np.save(tmp_path / "v.npy", volume())
        for name, message in (
            ("two.npz", "2 arrays, expected one: a, b"),
            ("flat.npy", "three dimensions"),
            ("cut.npy", "cannot be read"),
            ("cut.nii", "not a NIfTI file"),
        ):
            with pytest.raises(ValueError, match=message):
                read_volume(tmp_path / name)
        with pytest.raises(ValueError, match="does not state its spacing"):
            read_volume(tmp_path / "v.npy", spacing=(1, 1, 1))
        with pytest.raises(FileNotFoundError, match="there is no"):
            read_volume(tmp_path / "none.nii")

    def test_cut_off(self, tmp_path: Path) -> None:
        """Compressed files that end too early, each with an error of its library."""
        image = nibabel.Nifti1Image(np.random.default_rng(0).random((30, 30, 30)), None)
        nibabel.save(image, tmp_path / "v.nii.gz")
        np.savez_compressed(
            tmp_path / "v.npz", np.random.default_rng(0).random((9, 9, 9))
        )
        for name, message in (("v.nii.gz", "damaged"), ("v.npz", "cannot be read")):
            path = tmp_path / name
            path.write_bytes(path.read_bytes()[:1000])
            with pytest.raises(ValueError, match=message):
                read_volume(path)

    def test_points_in_time(self, tmp_path: Path) -> None:
        image = nibabel.Nifti1Image(np.zeros((4, 4, 4, 3)), np.eye(4))
        nibabel.save(image, tmp_path / "time.nii.gz")
        with pytest.raises(ValueError, match=r"three dimensions.*one point in time"):
            read_volume(tmp_path / "time.nii.gz")


class TestOtherFormats:
    """Found: errors that did not say what is read."""

    @pytest.mark.parametrize("name", ["v.mha", "v.nrrd", "v.vtk"])
    def test_are_refused(self, name: str, tmp_path: Path) -> None:
        (tmp_path / name).write_bytes(b"ObjectType = Image\nNDims = 3\n" * 9)
        with pytest.raises(ValueError, match=rf"{name} .*Read are NIfTI.*SimpleITK"):
            read_volume(tmp_path / name)

    def test_a_single_dicom_file(self) -> None:
        path = get_testdata_file("CT_small.dcm")
        with pytest.raises(ValueError, match=r"single DICOM file.*folders with"):
            read_volume(path)

    def test_values_without_a_grid(self) -> None:
        path = Path(nibabel.__file__).parent / "tests/data/row_major.dconn.nii"
        with pytest.raises(ValueError, match="Cifti2Image, not values on a grid"):
            read_volume(path)

    def test_microns(self, tmp_path: Path) -> None:
        """Found: 500 microns were taken for 500 mm."""
        image = nibabel.Nifti1Image(volume(), np.diag([500.0, 500, 500, 1]))
        image.header.set_xyzt_units("micron")
        nibabel.save(image, tmp_path / "v.nii")
        read = read_volume(tmp_path / "v.nii", spacing=(0.5, 0.5, 1.0))
        assert read.shape == (8, 7, 3)


class TestNifti:
    def test_spacing_by_the_affine(self, tmp_path: Path) -> None:
        nibabel = pytest.importorskip("nibabel")
        image = nibabel.Nifti1Image(
            np.zeros((20, 20, 20), np.int16), np.diag([2, 2, 2, 1])
        )
        image.header["pixdim"][1:4] = 1
        image.header.set_sform(np.diag([2, 2, 2, 1]), code=1)
        nibabel.save(image, tmp_path / "a.nii")
        assert read_volume(tmp_path / "a.nii", spacing=(1, 1, 1)).shape == (40, 40, 40)

    def test_complex(self, tmp_path: Path) -> None:
        nibabel = pytest.importorskip("nibabel")
        image = nibabel.Nifti1Image(np.zeros((4, 4, 4), np.complex64), np.eye(4))
        nibabel.save(image, tmp_path / "a.nii")
        with pytest.raises(ValueError, match="complex"):
            read_volume(tmp_path / "a.nii")
