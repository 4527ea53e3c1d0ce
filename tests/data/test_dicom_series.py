"""Folders of DICOM slices: order, directions, and what is missing."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from dicom_files import save_series, save_slice
from pictures import volume
from pydicom.pixels.utils import set_pixel_data

from lightly_dira.data.pixels import to_pixels
from lightly_dira.data.volume_files import lie_on_one_grid
from lightly_dira.transforms import read_volume


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

    def test_hidden_files(self, tmp_path: Path) -> None:
        """Found: what a system left beside the slices was read as one of them."""
        folder = save_series(tmp_path, volume(np.uint16))
        (folder / "._000.dcm").write_bytes((folder / "002.dcm").read_bytes())
        np.testing.assert_array_equal(read_volume(folder), 2.0 * volume() - 1000)

    def test_slices_without_a_scale(self, tmp_path: Path) -> None:
        """Found: one slice was brighter by 1000."""
        folder = save_series(tmp_path, volume(np.uint16))
        file = pydicom.dcmread(folder / "001.dcm")
        del file.RescaleSlope, file.RescaleIntercept
        file.save_as(folder / "001.dcm")
        with pytest.raises(ValueError, match=r"some slices in .*RescaleSlope"):
            read_volume(folder)

    def test_windows_and_spacing(self, tmp_path: Path) -> None:
        """Found: resampled values no longer knew that 1 is white."""
        folder = save_series(tmp_path, volume(np.uint16))
        for path in folder.glob("*.dcm"):
            file = pydicom.dcmread(path)
            file.WindowCenter, file.WindowWidth = 40, 400
            file.save_as(path)
        for spacing in (None, (2.5, 1.5, 1.0)):
            shown = read_volume(folder, voi=True, spacing=spacing)
            with pytest.raises(ValueError, match="was windowed as its file says"):
                to_pixels(shown, (-160, 240), 3)
            assert to_pixels(shown, None, 3).min() >= 0

    def test_slices_of_another_shape(self, tmp_path: Path) -> None:
        folder = save_series(tmp_path, volume(np.uint16))
        file = pydicom.dcmread(folder / "000.dcm")
        set_pixel_data(file, np.zeros((4, 4), np.uint16), "MONOCHROME2", 16)
        file.save_as(folder / "000.dcm")
        with pytest.raises(ValueError, match="differ in shape"):
            read_volume(folder)


class TestDicom:
    pixels = np.random.default_rng(0).integers(0, 4096, (32, 40), dtype=np.uint16)

    def series(self, folder: Path, change) -> Path:
        folder.mkdir(exist_ok=True)
        for number in range(5):
            place = {
                "ImagePositionPatient": [0.0, 0.0, 2.0 * number],
                "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
                "PixelSpacing": [1.0, 1.0],
            }
            change(number, place)
            path = folder / f"{number}.dcm"
            save_slice(path, self.pixels, BitsStored=16, **place)
        return folder

    def test_a_straight_series(self, tmp_path: Path) -> None:
        folder = self.series(tmp_path / "a", lambda number, place: None)
        assert read_volume(folder).shape == (5, 32, 40)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            # Found: sheared, shifted or stretched, in silence.
            (lambda n, p: p["ImagePositionPatient"].__setitem__(1, 0.6 * n), "sheared"),
            (lambda n, p: p["ImagePositionPatient"].__setitem__(0, 9 * (n > 3)), "mm"),
            (lambda n, p: p.update(PixelSpacing=[1.0 + (n > 2), 1.0]), "different"),
            (lambda n, p: p.update(PixelSpacing=None), "PixelSpacing"),
        ],
    )  # fmt: skip
    def test_series_that_are_not(self, change, message: str, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=message):
            read_volume(self.series(tmp_path / "a", change))

    def test_windows_of_a_series(self, tmp_path: Path) -> None:
        def change(number, tags):
            tags.update(WindowCenter=100 + number, WindowWidth=200)

        folder = self.series(tmp_path / "a", change)
        with pytest.raises(ValueError, match="state 5 windows, and a volume has one"):
            read_volume(folder, voi=True)
        same = self.series(tmp_path / "b", lambda _, tags: change(0, tags))
        volume = read_volume(same, voi=True)
        assert 0 <= volume.min() < volume.max() <= 1


def turned_at_random(seed: int) -> np.ndarray:
    """Returns three directions at right angles."""
    random = np.random.default_rng(seed).normal(size=(3, 3))
    return np.linalg.qr(random)[0]


@pytest.mark.parametrize("seed", range(12))
def test_oblique_series_lie_as_nifti_does(seed: int, tmp_path: Path) -> None:
    """Found: axes more than 45 degrees off were turned in another way than NIfTI's."""
    across, down, _ = turned_at_random(seed).round(6)
    saved = volume(np.uint16)
    folder = save_series(tmp_path / "series", saved, across=across, down=down, slope=1)
    # The same in NIfTI: (columns, rows, slices), to the right, the front and the head.
    affine = np.eye(4)
    normal = np.cross(across, down)
    affine[:3, :3] = np.stack([0.5 * across, 1.5 * down, 2.5 * normal], axis=1)
    affine[:3, 3] = -40
    affine[:2] *= -1
    image = nibabel.Nifti1Image(saved.T, affine)
    nibabel.save(image, tmp_path / "same.nii.gz")
    read = read_volume(folder)
    np.testing.assert_array_equal(read, read_volume(tmp_path / "same.nii.gz"))
    assert lie_on_one_grid(folder, tmp_path / "same.nii.gz")
    affine[:3, 3] += 2
    nibabel.save(nibabel.Nifti1Image(saved.T, affine), tmp_path / "else.nii.gz")
    nibabel.save(nibabel.Nifti1Image(saved.T, np.eye(4)), tmp_path / "eye.nii.gz")
    assert not lie_on_one_grid(folder, tmp_path / "else.nii.gz")
    assert not lie_on_one_grid(folder, tmp_path / "eye.nii.gz")
