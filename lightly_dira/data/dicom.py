"""DICOM files: what their pixels mean."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightly_dira.core.extras import extra
from lightly_dira.core.user_warnings import warn
from lightly_dira.data.white import Stored


def is_dicom(file: Path) -> bool:
    """Whether a file is of DICOM, as its first bytes tell, also without a preamble."""
    with file.open("rb") as opened:
        return starts_as_dicom(opened.read(132))


def starts_as_dicom(start: bytes) -> bool:
    """Whether these are the first bytes of a DICOM file."""
    # Without a preamble it starts with an element of group 2 or 8.
    group, element = start[:2], start[2:4]
    known = (b"\x00\x00", b"\x01\x00", b"\x05\x00", b"\x08\x00", b"\x16\x00")
    return start[128:132] == b"DICM" or (
        group in (b"\x02\x00", b"\x08\x00") and element in known
    )


def read_dicom(data: bytes, name: str, *, voi: bool = False) -> NDArray[Any]:
    """Returns the one image of a DICOM file; see `read_image`."""
    with extra("medical"):
        import pydicom
    try:
        file = pydicom.dcmread(io.BytesIO(data), force=True)
        frames = int(file.get("NumberOfFrames") or 1)
        if "PixelData" not in file or frames != 1:
            held = frames if "PixelData" in file else 0
            cure = "separate its frames with pydicom" if held else "leave it out"
            raise ValueError(
                f"expected a DICOM file with one image, got {name} with {held}: {cure}"
            )
        return as_displayed(file) if voi else values_of(file)
    except Exception as error:
        raise ValueError(f"read_image: {name} cannot be read: {error}.") from error


def values_of(file: Any) -> NDArray[Any]:
    """Returns the values of a DICOM file.

    Those with units, such as the Hounsfield units of CT, are float32; others know what
    is white. White is high: MONOCHROME1 is inverted, among the values that its bits can
    hold. Padding, which is not a part of the image, becomes black where it is bright.
    """
    from pydicom.pixels.processing import apply_color_lut, apply_modality_lut

    pixels: NDArray[Any] = file.pixel_array
    photometric = file.get("PhotometricInterpretation", "")
    inverted = photometric == "MONOCHROME1"
    if photometric == "PALETTE COLOR":
        return np.asarray(apply_color_lut(pixels, file))
    outside = _padding_of(file, pixels)
    if tables := file.get("ModalityLUTSequence"):
        values = np.asarray(apply_modality_lut(pixels, file), dtype=np.float32)
        if inverted:
            table = _entries_of(tables[0]).astype(np.float32)
            values = table.max() + table.min() - values
        return _blackened(values, outside)
    unsigned = pixels.dtype.kind == "u"
    white = (1 << file.BitsStored) - 1
    if inverted:
        if unsigned and white == 65535 and pixels.max() <= 4095:
            warn(_FEW_BITS_INVERTED)
        pixels = pixels.dtype.type(white) - pixels if unsigned else ~pixels
    pixels = _blackened(pixels, outside)
    slope, intercept = _rescaling_of(file)
    if (slope, intercept) != (1.0, 0.0):
        return pixels.astype(np.float32) * slope + np.float32(intercept)
    if unsigned and pixels.ndim == 2 and white < np.iinfo(pixels.dtype).max:
        return Stored.of(pixels, white)
    return pixels


_FEW_BITS_INVERTED = (
    "read_image: a DICOM file in which 0 is white (MONOCHROME1) says that it has 16 "
    "bits, and uses at most 0 to 4095: inverted, it is almost white. If all files do, "
    "take DiRATransform(..., window=(61440, 65535))."
)


def as_displayed(file: Any) -> NDArray[Any]:
    """Returns pixels in [0, 1] by the file's own window, or table, for displays."""
    from pydicom.pixels.processing import apply_modality_lut, apply_windowing

    pixels: NDArray[Any] = file.pixel_array
    if pixels.ndim == 3 or file.get("PhotometricInterpretation") == "PALETTE COLOR":
        return values_of(file)  # colours need no window
    for group in _functional_groups(file):
        for place in group.get("FrameVOILUTSequence") or ():
            file.update(place)
    if "ModalityLUTSequence" in file:
        values = np.asarray(apply_modality_lut(pixels, file))
    else:
        slope, intercept = _rescaling_of(file)
        values = pixels * slope + intercept
    if tables := file.get("VOILUTSequence"):
        shown = _by_table(values, tables[0])
    elif all(file.get(name) not in (None, "") for name in _WINDOW):
        with np.errstate(over="ignore"):
            low, high = apply_windowing(np.array([-1e30, 1e30]), file)
            shown = (apply_windowing(values, file) - low) / (high - low)
    else:
        raise ValueError(
            'it states no window. Choose one, DiRATransform(..., window="percentiles") '
            "or (low, high), and leave voi at False"
        )
    if file.get("PhotometricInterpretation") == "MONOCHROME1":
        shown = 1 - shown
    if (outside := _padding_of(file, pixels)) is not None:
        shown[outside] = 0
    return Stored.of(np.asarray(shown, dtype=np.float32), 1)


# What a window is stated by; a part of it states none.
_WINDOW = ("WindowCenter", "WindowWidth")


def _padding_of(file: Any, pixels: NDArray[Any]) -> NDArray[Any] | None:
    """Returns where grey pixels are padding, of one value or of a range of them."""
    value = file.get("PixelPaddingValue")
    if value is None or pixels.ndim > 2:
        return None
    limit = file.get("PixelPaddingRangeLimit")
    # Some files state the bits of negative values as if they were unsigned.
    stated = np.array([value, value if limit is None else limit])
    low, high = np.sort(stated.astype(pixels.dtype))
    return np.asarray((low <= pixels) & (pixels <= high))


def _blackened(values: NDArray[Any], outside: NDArray[Any] | None) -> NDArray[Any]:
    """Makes padding black, if it is brighter than half of the image.

    Padding that is darker than the image, as beside CT, would rule its percentiles.
    """
    if outside is None or outside.all() or not outside.any():
        return values
    inside, padding = values[~outside], values[outside]
    black = 0 if values.dtype.kind == "u" else inside.min()
    if black <= padding.min() and padding.max() <= np.median(inside):
        return values
    return np.where(outside, values.dtype.type(black), values)


def _by_table(values: NDArray[Any], table: Any) -> NDArray[Any]:
    """Looks values up. pydicom's own function wraps numbers in tables of 8 bits."""
    _, first, bits = map(int, table.LUTDescriptor)
    entries = _entries_of(table)
    numbers = np.rint(values - first).clip(0, len(entries) - 1).astype(np.int64)
    looked_up: NDArray[Any] = entries[numbers] / ((1 << bits) - 1)
    return looked_up


def _entries_of(table: Any) -> NDArray[Any]:
    """Returns the entries of a table, which files may keep as numbers or as bytes."""
    entries = table.LUTData
    if isinstance(entries, bytes):
        count = int(table.LUTDescriptor[0]) or 1 << 16
        entries = np.frombuffer(entries, "u1" if len(entries) == count else "<u2")
    return np.asarray(entries)


def _functional_groups(file: Any) -> list[Any]:
    names = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
    return [group for name in names for group in file.get(name) or ()]


def _rescaling_of(file: Any) -> tuple[float, float]:
    """Returns slope and intercept, which enhanced files keep in functional groups."""
    places = [file]
    for group in _functional_groups(file):
        places += group.get("PixelValueTransformationSequence") or ()
    found = []
    for tag, default in (("RescaleSlope", 1.0), ("RescaleIntercept", 0.0)):
        values = (place.get(tag) for place in places)
        known = [value for value in values if value not in (None, "")]
        found.append(float(known[-1]) if known else default)
    return found[0], found[1]
