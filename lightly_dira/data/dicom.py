"""DICOM files: single images, and series of slices as volumes."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightly_dira.core.extras import extra
from lightly_dira.data.pixels import Stored

# What the place of a slice in its volume is known by.
_PLACES = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")
# What a window for displays is stated by.
_WINDOW = ("WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence")
# Slices may lie this far from where even spacing puts them, in parts of the spacing.
_UNEVEN = 0.1


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
            raise ValueError(
                f"expected a DICOM file with one image, got {name} with {held}: "
                "separate its frames with pydicom"
            )
        return _as_displayed(file) if voi else _values_of(file)
    except Exception as error:
        raise ValueError(f"read_image: {name} cannot be read: {error}.") from error


def _values_of(file: Any) -> NDArray[Any]:
    """Returns the values of a DICOM file.

    Those with units, such as the Hounsfield units of CT, are float32; others know what
    is white. White is high: MONOCHROME1 is inverted, among the values that its bits can
    hold. Its padding, which is not a part of the image, becomes black.
    """
    from pydicom.pixels.processing import apply_color_lut, apply_modality_lut

    pixels: NDArray[Any] = file.pixel_array
    photometric = file.get("PhotometricInterpretation", "")
    inverted = photometric == "MONOCHROME1"
    if photometric == "PALETTE COLOR":
        return np.asarray(apply_color_lut(pixels, file))
    if tables := file.get("ModalityLUTSequence"):
        values = np.asarray(apply_modality_lut(pixels, file), dtype=np.float32)
        table = np.asarray(tables[0].LUTData, dtype=np.float32)
        return table.max() + table.min() - values if inverted else values
    unsigned = pixels.dtype.kind == "u"
    white = (1 << file.BitsStored) - 1
    if inverted:
        padding = file.get("PixelPaddingValue")
        outside = None if padding is None else pixels == padding
        pixels = pixels.dtype.type(white) - pixels if unsigned else ~pixels
        if outside is not None:
            pixels[outside] = 0 if unsigned else pixels.min()
    slope, intercept = _rescaling_of(file)
    if (slope, intercept) != (1.0, 0.0):
        return pixels.astype(np.float32) * slope + np.float32(intercept)
    if unsigned and pixels.ndim == 2 and white < np.iinfo(pixels.dtype).max:
        return Stored.of(pixels, white)
    return pixels


def _as_displayed(file: Any) -> NDArray[Any]:
    """Returns pixels in [0, 1] by the file's own window, or table, for displays."""
    from pydicom.pixels.processing import apply_modality_lut, apply_windowing

    pixels: NDArray[Any] = file.pixel_array
    if pixels.ndim == 3:
        return _values_of(file)  # colours need no window
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
    elif file.get("WindowWidth") not in (None, ""):
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
    if (padding := file.get("PixelPaddingValue")) is not None:
        shown[pixels == padding] = 0
    return np.asarray(shown, dtype=np.float32)


def _by_table(values: NDArray[Any], table: Any) -> NDArray[Any]:
    """Looks values up. pydicom's own function wraps numbers in tables of 8 bits."""
    count, first, bits = map(int, table.LUTDescriptor)
    entries = table.LUTData
    if isinstance(entries, bytes):
        count = count or 1 << 16
        entries = np.frombuffer(entries, "u1" if len(entries) == count else "<u2")
    numbers = np.rint(values - first).clip(0, len(entries) - 1).astype(np.int64)
    looked_up: NDArray[Any] = np.asarray(entries)[numbers] / ((1 << bits) - 1)
    return looked_up


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


def read_series(
    folder: Path, *, voi: bool = False
) -> tuple[NDArray[Any], tuple[float, ...]]:
    """Returns the volume of a series, and its spacing; see `read_volume`."""
    with extra("medical"):
        import pydicom
    slices = []
    for path in sorted(folder.iterdir()):
        if path.is_file() and is_dicom(path):
            try:
                slices.append((pydicom.dcmread(path, force=True), path))
            except Exception as error:
                raise ValueError(
                    f"read_volume: {path} is damaged ({error})."
                ) from error
    slices = [(file, path) for file, path in slices if "PixelData" in file]
    if len(slices) < 2:
        raise ValueError(
            f"read_volume: {folder} holds {len(slices)} DICOM images, expected the "
            "slices of one series."
        )
    series = {str(file.get("SeriesInstanceUID", "")) for file, _ in slices}
    if len(series) > 1:
        raise ValueError(
            f"read_volume: {folder} holds {len(series)} series. Put each into a folder "
            "of its own."
        )
    for file, path in slices:
        missing = [name for name in _PLACES if not file.get(name)]
        if missing or int(file.get("NumberOfFrames") or 1) != 1:
            raise ValueError(
                f"read_volume: {path} has no {' or '.join(missing) or 'single image'}, "
                "so that its place in the volume is not known."
            )
    first = slices[0][0]
    across, down = np.reshape(np.float64(first.ImageOrientationPatient), (2, 3))
    normal = np.cross(across, down)
    placed = sorted(
        (
            (float(normal @ np.float64(file.ImagePositionPatient)), path, file)
            for file, path in slices
        ),
        key=lambda item: (item[0], str(item[1])),
    )
    _check_series(placed, folder)
    places = np.array([place for place, _, _ in placed])
    between = float(np.median(np.diff(places)))
    _check_straight(placed, normal, folder)
    windows = {str([file.get(name) for name in _WINDOW]) for _, _, file in placed}
    if voi and len(windows) > 1:
        raise ValueError(
            f"read_volume: the slices in {folder} state {len(windows)} windows, and a "
            'volume has one. Leave voi at False and choose it: window="percentiles".'
        )
    slices_of = [_slice_of(file, path, voi) for _, path, file in placed]
    rows, columns = (float(side) for side in first.PixelSpacing)
    volume, spacing = _oriented(
        np.stack(slices_of), (normal, down, across), (between, rows, columns)
    )
    whites = {getattr(part, "white", None) for part in slices_of}
    white = whites.pop() if len(whites) == 1 else None
    return volume if white is None else Stored.of(volume, white), spacing


def _slice_of(file: Any, path: Path, voi: bool) -> NDArray[Any]:
    try:
        pixels = _as_displayed(file) if voi else _values_of(file)
    except Exception as error:
        raise ValueError(f"read_volume: {path} cannot be read: {error}.") from error
    if pixels.ndim != 2:
        raise ValueError(
            f"read_volume: {path} is an image in colour, expected grey slices."
        )
    return pixels


def _check_straight(
    placed: list[tuple[float, Path, Any]], normal: NDArray[Any], folder: Path
) -> None:
    """Raises a ValueError if the slices do not lie straight behind one another."""
    spacings = {tuple(round(float(x), 4) for x in f.PixelSpacing) for _, _, f in placed}
    if len(spacings) > 1:
        raise ValueError(
            f"read_volume: the slices in {folder} have pixels of different sizes: "
            f"{sorted(spacings)} mm. Resample them first."
        )
    corners = np.array([np.float64(f.ImagePositionPatient) for _, _, f in placed])
    aside = corners - corners[0] - np.outer((corners - corners[0]) @ normal, normal)
    pixel = min(min(spacings))
    worst = int(np.argmax(np.linalg.norm(aside, axis=1)))
    if np.linalg.norm(aside[worst]) > 0.5 * pixel:
        raise ValueError(
            f"read_volume: {placed[worst][1]} lies {np.linalg.norm(aside[worst]):.3g} "
            f"mm aside of {placed[0][1].name}, so that the volume would be sheared: "
            "the gantry was tilted, or the field of view moved. Resample the series "
            "first, for example with SimpleITK."
        )


def _check_series(placed: list[tuple[float, Path, Any]], folder: Path) -> None:
    """Raises a ValueError if slices are missing, doubled or of different shapes."""
    forms = {
        (
            file.Rows,
            file.Columns,
            *(round(float(part), 3) for part in file.ImageOrientationPatient),
        )
        for _, _, file in placed
    }
    if len(forms) > 1:
        raise ValueError(
            f"read_volume: the slices in {folder} differ in shape or direction. Leave "
            "out scouts and other views."
        )
    steps = np.diff([place for place, _, _ in placed])
    between = np.median(steps)
    if between <= 0 or (steps < _UNEVEN * between).any():
        number = int(np.argmin(steps))
        raise ValueError(
            f"read_volume: {placed[number][1]} and {placed[number + 1][1]} lie at the "
            "same place. Leave one out; several points in time need folders of "
            "their own."
        )
    wide = np.abs(steps - between) > _UNEVEN * between
    if wide.any():
        number = int(np.argmax(wide))
        missing = max(1, round(steps[number] / between) - 1)
        raise ValueError(
            f"read_volume: slices of {folder} are {between:.4g} mm apart, but "
            f"{placed[number][1].name} and {placed[number + 1][1].name} are "
            f"{steps[number]:.4g} mm apart: {missing} missing there. Copy the whole "
            "series."
        )


def _oriented(
    volume: NDArray[Any],
    axes: tuple[NDArray[Any], ...],
    spacing: tuple[float, float, float],
) -> tuple[NDArray[Any], tuple[float, ...]]:
    """Turns a volume so that its axes point to the head, the back and the left.

    Args:
        volume: The volume.
        axes: Directions of its axes, in DICOM's coordinates: left, back, head.
        spacing: Millimetres between voxels along them.
    """
    directions = np.stack(axes)[:, ::-1]  # now: head, back, left
    order: list[int] = []
    for wanted in range(3):
        left = [axis for axis in range(3) if axis not in order]
        order.append(max(left, key=lambda axis: abs(directions[axis, wanted])))
    turned = volume.transpose(order)
    for wanted, axis in enumerate(order):
        if directions[axis, wanted] < 0:
            turned = np.flip(turned, wanted)
    return np.ascontiguousarray(turned), tuple(spacing[axis] for axis in order)
