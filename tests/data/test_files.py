"""Data sets of files as people have them."""

from __future__ import annotations

import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from lightly.transforms import MoCoV2Transform
from pictures import ramp
from PIL import Image
from pydicom.data import get_testdata_file
from torch.utils.data import DataLoader

from lightly_dira import DiRATransform
from lightly_dira.data import ImageFiles, VolumeFiles
from lightly_dira.evaluation.manifest import Manifest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What a folder of scans looks like after some years."""
    for name in ("a", "a/b", ".cache", "__MACOSX"):
        (tmp_path / name).mkdir()
    for name in ("x.png", "a/y.TIF", "a/b/z.tiff", ".hidden.png", ".cache/c.png"):
        good, data = cv2.imencode(Path(name).suffix.lower(), ramp())
        assert good
        (tmp_path / name).write_bytes(data.tobytes())
    (tmp_path / "a/._y.png").write_bytes(b"fork")
    (tmp_path / "__MACOSX/x.png").write_bytes(b"fork")
    Image.fromarray(ramp(255).astype(np.uint8)).save(tmp_path / "a/photo.jpeg")
    np.save(tmp_path / "a/array.npy", ramp())
    data = Path(get_testdata_file("CT_small.dcm")).read_bytes()
    (tmp_path / "IM000001").write_bytes(data)
    (tmp_path / "a/notes.txt").write_text("not an image")
    return tmp_path


NAMES = ["IM000001", "a/array.npy", "a/b/z.tiff", "a/photo.jpeg", "a/y.TIF", "x.png"]


class TestImageFiles:
    def test_all_and_nothing_else(self, folder: Path) -> None:
        dataset = ImageFiles(folder)
        assert sorted(dataset.names) == NAMES
        for number, (image, own, name) in enumerate(dataset):
            assert own == number
            assert name == dataset.names[number]
            if name in ("a/y.TIF", "a/b/z.tiff", "x.png", "a/array.npy"):
                np.testing.assert_array_equal(image, ramp())
                assert image.dtype == np.uint16
            elif name == "a/photo.jpeg":
                assert image.mode == "L"
            else:
                assert image.dtype == np.float32

    def test_sixteen_bits_are_not_white(self, folder: Path) -> None:
        """Found: PIL made 62 to 89 % of the pixels white, in silence."""
        transform = DiRATransform(
            MoCoV2Transform(input_size=32), distortion=None, window=(0, 4095)
        )
        dataset = ImageFiles(sorted(folder.rglob("*.png"))[-1:], transform)
        (views, _, names) = next(iter(DataLoader(dataset, batch_size=1)))
        assert (views.target == 1).float().mean() < 0.05
        assert names[0].endswith("x.png")

    def test_workers_and_paths(self, folder: Path) -> None:
        paths = [folder / "x.png", str(folder / "a/y.TIF")]
        dataset = ImageFiles(paths, DiRATransform(input_size=32, window="percentiles"))
        assert dataset.names == [str(path) for path in paths]
        for views, numbers, _ in DataLoader(dataset, batch_size=2, num_workers=2):
            assert views[0].shape == (2, 3, 32, 32)
            assert numbers.tolist() == [0, 1]
        assert len(pickle.loads(pickle.dumps(dataset))) == 2
        assert dataset[-1][1] == 1
        with pytest.raises(IndexError):
            dataset[2]

    def test_errors_name_what_is_there(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="which is empty"):
            ImageFiles(tmp_path)
        (tmp_path / "a.mha").write_bytes(b"x")
        with pytest.raises(ValueError, match=r"found none of \.png.*only \.mha"):
            ImageFiles(tmp_path)
        with pytest.raises(FileNotFoundError, match="not a folder"):
            ImageFiles(tmp_path / "a.mha")
        with pytest.raises(ValueError, match="at least one path"):
            ImageFiles([])
        (tmp_path / "broken.png").write_bytes(b"\x89PNG broken")
        with pytest.raises(ValueError, match=r"broken\.png"):
            ImageFiles(tmp_path)[0]
        (tmp_path / "broken.npy").write_bytes(b"broken")
        with pytest.raises(ValueError, match=r"broken\.npy"):
            ImageFiles(tmp_path)[0]

    def test_manifest(self, folder: Path) -> None:
        manifest = Manifest.of(folder)
        dataset = ImageFiles(folder, manifest=manifest)
        dataset[0]
        Image.fromarray(np.zeros((20, 20), np.uint8)).save(folder / "x.png")
        with pytest.raises(ValueError, match=r"x\.png has another checksum"):
            dataset[dataset.names.index("x.png")]

    def test_what_fails_is_named(self, tmp_path: Path) -> None:
        """Found: of many files, an error did not say which."""
        np.save(tmp_path / "right.npy", np.zeros((32, 32)))
        np.save(tmp_path / "wrong.npy", np.full((32, 32), np.nan))
        dataset = ImageFiles(tmp_path, DiRATransform(input_size=32))
        assert len(dataset[0][0]) == 2
        with pytest.raises(ValueError, match=r"^wrong.npy: DiRATransform: .*NaN"):
            dataset[1]

    def test_index_of_a_disc(self, folder: Path) -> None:
        """Found: it was listed as an image, and ended the first epoch."""
        names = ImageFiles(folder).names
        (folder / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
        assert ImageFiles(folder).names == names


class TestVolumeFiles:
    @pytest.fixture
    def volumes(self, tmp_path: Path) -> Path:
        nibabel = pytest.importorskip("nibabel")
        for name in ("patient-1", "patient-2/.trash"):
            (tmp_path / name).mkdir(parents=True)
        image = nibabel.Nifti1Image(np.zeros((20, 24, 28), np.int16), np.eye(4))
        nibabel.save(image, tmp_path / "patient-1/t1.nii.gz")
        nibabel.save(image, tmp_path / "patient-2/t1.nii")
        nibabel.save(image, tmp_path / "patient-2/.trash/old.nii")
        (tmp_path / "patient-2/._t1.nii").write_bytes(b"fork")
        np.save(tmp_path / "scan.npy", np.ones((20, 24, 28), np.float32))
        return tmp_path

    def test_nested(self, volumes: Path) -> None:
        """Found: hidden files were listed, and folders taken for DICOM series."""
        dataset = VolumeFiles(volumes)
        names = ["patient-1/t1.nii.gz", "patient-2/t1.nii", "scan.npy"]
        assert dataset.names == names
        shapes = [volume.shape for volume, _, _ in dataset]
        assert shapes == [(28, 24, 20), (28, 24, 20), (20, 24, 28)]
        transform = DiRATransform(input_size=(16, 16, 16), spatial_dims=3)
        views, number, _ = VolumeFiles(volumes, transform)[2]
        assert (views[0].shape, number) == (torch.Size([1, 16, 16, 16]), 2)

    def test_single_dicom_files_are_said(self, volumes: Path) -> None:
        """Found: a file of several frames was left out without a word."""
        names = VolumeFiles(volumes).names
        (volumes / "alone").mkdir()
        source = Path(get_testdata_file("CT_small.dcm"))
        (volumes / "alone/a.dcm").write_bytes(source.read_bytes())
        with pytest.warns(UserWarning, match="a.dcm is alone in its folder"):
            assert VolumeFiles(volumes).names == names

    def test_suffixes_in_capitals(self, tmp_path: Path) -> None:
        np.save(tmp_path / "a.npy", np.zeros((4, 5, 6)))
        (tmp_path / "a.npy").rename(tmp_path / "A.NPY")
        assert VolumeFiles(tmp_path)[0][0].shape == (4, 5, 6)

    def test_percentiles_of_bits(self, tmp_path: Path) -> None:
        """Found: NumPy does not subtract them."""
        np.save(tmp_path / "a.npy", np.eye(32, dtype=bool))
        transform = DiRATransform(input_size=32, window="percentiles")
        assert ImageFiles(tmp_path, transform)[0][0].target.max() <= 1

    def test_nothing(self, tmp_path: Path) -> None:
        (tmp_path / "a.nrrd").write_bytes(b"x")
        with pytest.raises(ValueError, match=r"\.nii\.gz.*only \.nrrd"):
            VolumeFiles(tmp_path)


def test_links_that_lead_back(tmp_path) -> None:
    """Found: an error of the system, about too many levels."""
    cv2.imwrite(str(tmp_path / "a.pgm"), np.zeros((8, 8), np.uint8))
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/back").symlink_to(tmp_path)
    assert ImageFiles(tmp_path).names == ["a.pgm"]


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_files_of_other_libraries_are_said(suffix: str, tmp_path) -> None:
    """Found: ten of fifteen volumes were left out without a word."""
    np.save(tmp_path / "a.npy", np.zeros((8, 8, 8), np.uint8))
    for number in range(3):
        (tmp_path / f"{number}{suffix}").write_bytes(b"NRRD")
    with pytest.warns(UserWarning, match=rf"1 files .* left out are 3 of \{suffix}"):
        assert len(VolumeFiles(tmp_path)) == 1


@pytest.mark.parametrize("suffix", [".jfif", ".pbm", ".JPE"])
def test_other_suffixes_of_photographs(suffix: str, tmp_path) -> None:
    image = Image.new("1" if suffix == ".pbm" else "L", (32, 32))
    image.save(tmp_path / f"a{suffix}", "PPM" if suffix == ".pbm" else "JPEG")
    assert ImageFiles(tmp_path)[0][0].size == (32, 32)
