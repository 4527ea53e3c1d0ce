"""DICOM files, as scanners write them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
from pydicom.data import get_testdata_file
from pydicom.pixels.utils import set_pixel_data


def save_slice(path: Path, pixels: np.ndarray, **tags: object) -> Path:
    """Saves a slice of CT with other pixels and tags."""
    file = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
    for name in ("RescaleSlope", "RescaleIntercept", "PixelPaddingValue"):
        if name in file:
            delattr(file, name)
    file.PixelData = pixels.tobytes()
    file.Rows, file.Columns = pixels.shape
    file.BitsAllocated = 8 * pixels.dtype.itemsize
    file.PixelRepresentation = int(pixels.dtype.kind == "i")
    for name, value in tags.items():
        setattr(file, name, value)
    for name in {"PixelPaddingValue", "PixelPaddingRangeLimit"} & tags.keys():
        file[name].VR = "US"
    file.save_as(path)
    return path


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
