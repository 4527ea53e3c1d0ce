"""A folder of DICOM slices as one volume, whose axes are known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightly_dira.core.extras import extra
from lightly_dira.data.dicom import as_displayed, is_dicom, values_of
from lightly_dira.data.folders import files_of

# What the place of a slice in its volume is known by.
_PLACES = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")
# What a window for displays is stated by.
_WINDOW = ("WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence")
# Slices may lie this far from where even spacing puts them, in parts of the spacing.
_UNEVEN = 0.1


def read_series(
    folder: Path, *, voi: bool = False
) -> tuple[NDArray[Any], NDArray[np.float64], float | None]:
    """Returns a series as a volume, its affine, and what is white, if it is known.

    The axes of the volume are the slices' normal, their columns and their rows. See
    `read_volume`.
    """
    placed = _placed(folder)
    windows = {str([file.get(name) for name in _WINDOW]) for _, _, file in placed}
    if voi and len(windows) > 1:
        raise ValueError(
            f"read_volume: the slices in {folder} state {len(windows)} windows, and a "
            'volume has one. Leave voi at False and choose it: window="percentiles".'
        )
    scaled = {_is_scaled(file) for _, _, file in placed}
    if len(scaled) > 1:
        raise ValueError(
            f"read_volume: some slices in {folder} state how their values become those "
            "of the scan (RescaleSlope), and others do not. Correct their headers, or "
            "leave these slices out."
        )
    slices = [_slice_of(file, path, voi) for _, path, file in placed]
    whites = {getattr(part, "white", None) for part in slices}
    white = whites.pop() if len(whites) == 1 else None
    return np.stack(slices), _affine_of(placed), white


def place_series(folder: Path) -> tuple[tuple[int, ...], NDArray[np.float64]]:
    """Returns shape and affine of a series."""
    # Pixels are left in their files.
    placed = _placed(folder, defer_size="1 KB")
    first = placed[0][2]
    return (len(placed), first.Rows, first.Columns), _affine_of(placed)


def _affine_of(placed: list[tuple[float, Path, Any]]) -> NDArray[np.float64]:
    """Returns what maps indices of voxels to millimetres, as affines of NIfTI do.

    They are counted to the right, the front and the head.
    """
    (low, _, first), (high, _, _) = placed[0], placed[-1]
    across, down, normal = _directions_of(first)
    between = (high - low) / (len(placed) - 1)
    rows, columns = (float(side) for side in first.PixelSpacing)
    affine = np.eye(4)
    affine[:3, :3] = np.stack([normal * between, down * rows, across * columns], axis=1)
    affine[:3, 3] = np.float64(first.ImagePositionPatient)
    affine[:2] *= -1  # DICOM's point to the left and the back
    return affine


def _directions_of(file: Any) -> tuple[NDArray[Any], ...]:
    """Returns the directions of a slice's rows and columns, and their normal."""
    across, down = np.reshape(np.float64(file.ImageOrientationPatient), (2, 3))
    return across, down, np.cross(across, down)


def _placed(folder: Path, **reading: Any) -> list[tuple[float, Path, Any]]:
    """Returns the checked slices of a series in their order along the normal."""
    with extra("medical"):
        import pydicom
    slices = []
    for path in files_of(folder):
        if is_dicom(path):
            try:
                slices.append((pydicom.dcmread(path, force=True, **reading), path))
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
    _, _, normal = _directions_of(slices[0][0])
    placed = sorted(
        (
            (float(normal @ np.float64(file.ImagePositionPatient)), path, file)
            for file, path in slices
        ),
        key=lambda item: (item[0], str(item[1])),
    )
    _check_series(placed, folder)
    _check_straight(placed, normal, folder)
    return placed


def _is_scaled(file: Any) -> bool:
    """Whether a slice says how its values become those of the scan."""
    tags = ("RescaleSlope", "RescaleIntercept", "ModalityLUTSequence")
    return any(file.get(name) not in (None, "") for name in tags)


def _slice_of(file: Any, path: Path, voi: bool) -> NDArray[Any]:
    try:
        pixels = as_displayed(file) if voi else values_of(file)
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
