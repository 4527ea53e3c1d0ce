"""Every pixel file in the wheels of other libraries: read as they do, or refused."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import nibabel
import numpy as np
import pydicom
import pytest
import sklearn
from PIL import Image
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut

from lightly_dira.transforms import read_image, read_volume

pytestmark = pytest.mark.filterwarnings("ignore")


def files_of(module, *suffixes: str) -> list:
    root = Path(module.__file__).parent
    found = [p for p in sorted(root.rglob("*")) if p.name.lower().endswith(suffixes)]
    return [pytest.param(path, id=path.name) for path in found if path.is_file()]


def pictures() -> list:
    modules = [matplotlib, sklearn]
    modules += [pytest.importorskip("skimage")] if _has("skimage") else []
    kinds = ".png", ".jpg", ".jpeg", ".tif", ".tiff", ".gif", ".bmp", ".webp"
    return [case for module in modules for case in files_of(module, *kinds)]


def _has(name: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(name) is not None


def refused(error: Exception, path: Path) -> None:
    """The error is ours, and names the file."""
    assert type(error) is ValueError
    assert path.name in str(error)
    assert str(error).startswith("read_")


def test_there_are_many() -> None:
    assert len(pictures()) > 20
    assert len(files_of(pydicom, ".dcm")) > 90
    assert len(files_of(nibabel, ".nii", ".nii.gz", ".mgz", ".mnc")) > 10


@pytest.mark.parametrize("path", pictures())
def test_pictures(path: Path) -> None:
    try:
        image = read_image(path)
    except ValueError as error:
        assert "multipage" in path.name or path.suffix == ".gif"
        return refused(error, path)
    with Image.open(path) as file:
        pages = getattr(file, "n_frames", 1)
        wide = {"LA": "L", "1": "L", "L": "L", "I;16": "I;16", "F": "F", "I": "I"}
        expected = np.asarray(file.convert(wide.get(file.mode, "RGB")))
    assert pages == 1
    assert image.shape == expected.shape
    if image.dtype == np.uint16 and expected.dtype == np.uint8:
        image = image >> 8  # PIL makes 8 bits of RGB
    lossy = path.suffix in (".jpg", ".jpeg")  # decoders round differently
    np.testing.assert_allclose(image, expected.astype(float), atol=2 if lossy else 0)


@pytest.mark.parametrize("path", files_of(pydicom, ".dcm"))
def test_dicom(path: Path) -> None:
    try:
        image = read_image(path)
    except ValueError as error:
        return refused(error, path)
    file = pydicom.dcmread(path, force=True)
    values = file.pixel_array
    kind = file.PhotometricInterpretation
    if kind == "PALETTE COLOR":
        expected = apply_color_lut(values, file)
    else:
        if kind == "MONOCHROME1":
            top = (1 << file.BitsStored) - 1 if file.PixelRepresentation == 0 else -1
            values = top - values.astype(np.int64)
        expected = apply_modality_lut(values, file)
    np.testing.assert_allclose(image, expected, rtol=1e-6, atol=1e-3)


def test_most_of_dicom_is_read() -> None:
    """What is refused has several frames, no image, or a compression without codec."""
    read = refusals = 0
    for case in files_of(pydicom, ".dcm"):
        (path,) = case.values
        try:
            read_image(path)
            read += 1
        except ValueError:
            refusals += 1
            file = pydicom.dcmread(path, force=True)
            try:
                one = file.pixel_array.ndim == 2 and int(file.NumberOfFrames or 1) == 1
            except Exception:
                one = False
            assert not one, path
    assert read > 40
    assert refusals > 5


@pytest.mark.parametrize(
    "path", files_of(nibabel, ".nii", ".nii.gz", ".mgz", ".mnc", ".par", ".head")
)
def test_volumes(path: Path) -> None:
    try:
        volume = read_volume(path)
    except ValueError as error:
        return refused(error, path)
    values = nibabel.as_closest_canonical(nibabel.load(path)).get_fdata()
    values = values[..., 0] if values.ndim == 4 else values
    expected = values.transpose(2, 1, 0)[:, ::-1, ::-1]
    scale = np.abs(expected).max()
    np.testing.assert_allclose(volume, expected, atol=1e-6 * scale)
