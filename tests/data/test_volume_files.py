"""Volumes in files of every kind, in one orientation."""

from __future__ import annotations

import itertools
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from nibabel.orientations import axcodes2ornt, ornt_transform
from pydicom.data import get_testdata_file
from pydicom.pixels.utils import set_pixel_data
from scipy.ndimage import map_coordinates

from lightly_dira import DiRATransform
from lightly_dira.transforms import read_volume

SHAPE = 6, 7, 8  # head, back, left


def volume(dtype=np.int16) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 1000, SHAPE).astype(dtype)


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


def save_series(
    folder: Path,
    pixels: np.ndarray,
    *,
    across=(1, 0, 0),
    down=(0, 1, 0),
    slope: float = 2.0,
    leave_out: tuple[int, ...] = (),
    series: tuple[str, ...] = ("1.2.3",),
) -> Path:
    """Saves slices, 2.5 mm apart, under names in another order."""
    folder.mkdir(exist_ok=True)
    normal = np.cross(across, down)
    names = np.random.default_rng(1).permutation(len(pixels))
    for number, image in enumerate(pixels):
        if number in leave_out:
            continue
        file = pydicom.Dataset()
        file.SOPClassUID = pydicom.uid.CTImageStorage
        file.SOPInstanceUID = pydicom.uid.generate_uid()
        file.SeriesInstanceUID = series[number % len(series)]
        file.file_meta = pydicom.dataset.FileMetaDataset()
        file.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        file.ImageOrientationPatient = [*map(float, (*across, *down))]
        file.ImagePositionPatient = [*map(float, 2.5 * number * normal - 40.0)]
        file.PixelSpacing = [1.5, 0.5]
        file.RescaleSlope, file.RescaleIntercept = slope, -1000 * (slope != 1)
        set_pixel_data(file, np.ascontiguousarray(image), "MONOCHROME2", 16)
        file.save_as(folder / f"{names[number]:03}.dcm", enforce_file_format=True)
    (folder / "notes.txt").write_text("not a slice")
    return folder


class TestSeries:
    def test_axial(self, tmp_path: Path) -> None:
        folder = save_series(tmp_path, volume(np.uint16))
        read = read_volume(folder)
        assert read.dtype == np.float32
        np.testing.assert_array_equal(read, 2.0 * volume() - 1000)
        resampled = read_volume(folder, spacing=(2.5, 1.5, 1.0))
        assert resampled.shape == (6, 7, 4)

    @pytest.mark.parametrize(
        ("across", "down", "order", "flips"),
        [
            # Coronal, rows to the left and down to the feet; slices go to the back.
            ((1, 0, 0), (0, 0, -1), (1, 0, 2), (0,)),
            # Sagittal, rows to the back and down to the feet; slices go to the right.
            ((0, 1, 0), (0, 0, -1), (1, 2, 0), (0, 2)),
            # Axial from below: rows to the right, slices to the feet.
            ((-1, 0, 0), (0, 1, 0), (0, 1, 2), (0, 2)),
        ],
    )
    def test_other_directions(self, across, down, order, flips, tmp_path) -> None:
        """Turned by hand from what was saved."""
        saved = volume(np.uint16)
        folder = save_series(tmp_path, saved, across=across, down=down, slope=1)
        expected = np.flip(saved.transpose(order), flips)
        np.testing.assert_array_equal(read_volume(folder), expected)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"leave_out": (3,)}, r"2.5 mm apart, but .* 5 mm apart: 1 missing"),
            ({"leave_out": (2, 3)}, r"2 missing there"),
            ({"leave_out": (0, 1, 2, 3, 4)}, "holds 1 DICOM images"),
            ({"series": ("1.2", "1.3")}, "holds 2 series"),
        ],
    )
    def test_what_is_missing_is_said(self, options, message: str, tmp_path) -> None:
        folder = save_series(tmp_path, volume(np.uint16), **options)
        with pytest.raises(ValueError, match=message):
            read_volume(folder)

    def test_doubled_slices(self, tmp_path: Path) -> None:
        folder = save_series(tmp_path, volume(np.uint16))
        (folder / "copy.dcm").write_bytes((folder / "002.dcm").read_bytes())
        with pytest.raises(ValueError, match="lie at the same place"):
            read_volume(folder)

    def test_slices_of_another_shape(self, tmp_path: Path) -> None:
        folder = save_series(tmp_path, volume(np.uint16))
        file = pydicom.dcmread(folder / "000.dcm")
        set_pixel_data(file, np.zeros((4, 4), np.uint16), "MONOCHROME2", 16)
        file.save_as(folder / "000.dcm")
        with pytest.raises(ValueError, match="differ in shape"):
            read_volume(folder)


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
