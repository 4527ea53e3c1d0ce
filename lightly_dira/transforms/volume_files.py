"""Volumes in files: NIfTI, DICOM series, NumPy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import zoom

from lightly_dira.extras import optional
from lightly_dira.transforms.damaged_files import DAMAGED
from lightly_dira.transforms.image_files import dicom_pixels, is_dicom

# What the place of a slice in its volume is known by.
_PLACES = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")
# Slices may lie this far from where even spacing puts them, in parts of the spacing.
_UNEVEN = 0.1


def read_volume(
    file: str | Path, *, spacing: tuple[float, float, float] | None = None
) -> NDArray[Any]:
    """Reads a volume as (D, H, W), with its own values.

    Args:
        file: A NIfTI file, a folder with the DICOM files of one series, or a NumPy
            file: `.npy`, or `.npz` with one array.
        spacing: Millimetres between voxels along D, H and W, to which the volume is
            resampled (linear); not for NumPy files, which do not state theirs.

    Returns:
        (D, H, W), float32 if it was scaled or resampled, else of the file's own type.
        NIfTI and DICOM come in one orientation: D from the feet to the head, H from
        the front to the back and W from the patient's right to the left (as on
        radiological displays), or as close to it as whole axes can come. DICOM values
        have their units: Hounsfield units in CT.

    Raises:
        FileNotFoundError: If there is no such file or folder.
        ImportError: If nibabel or pydicom is not installed
            (`lightly-dira[volumes]`).
        ValueError: If the file is damaged or not one volume of three dimensions, or a
            series has missing or doubled slices.

    Examples:
        >>> import numpy as np, tempfile
        >>> from lightly_dira.transforms import read_volume
        >>> folder = tempfile.mkdtemp()
        >>> np.save(f"{folder}/volume.npy", np.zeros((20, 40, 40), np.int16))
        >>> read_volume(f"{folder}/volume.npy").shape
        (20, 40, 40)
    """
    path = Path(file)
    if not path.exists():
        raise FileNotFoundError(f"read_volume: there is no {path}.")
    if path.is_dir():
        volume, own = _read_series(path)
    elif path.suffix in (".npy", ".npz"):
        if spacing is not None:
            raise ValueError(
                f"read_volume: {path} does not state its spacing. Leave `spacing` out, "
                "and resample before you save it."
            )
        return _read_numpy(path)
    else:
        volume, own = _read_nifti(path)
    if spacing is None:
        return volume
    if min(spacing) <= 0:
        raise ValueError(f"read_volume: spacing must be above 0, got {spacing}.")
    factors = [side / wanted for side, wanted in zip(own, spacing, strict=True)]
    resampled: NDArray[Any] = zoom(
        volume.astype(np.float32), factors, order=1, grid_mode=True, mode="nearest"
    )
    return resampled


def _read_numpy(path: Path) -> NDArray[Any]:
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            volume = loaded
        else:
            with loaded as arrays:
                if len(arrays.files) != 1:
                    raise ValueError(
                        f"it holds {len(arrays.files)} arrays, expected one: "
                        f"{', '.join(arrays.files)}"
                    )
                volume = arrays[arrays.files[0]]
    except DAMAGED as error:
        raise ValueError(f"read_volume: {path} cannot be read: {error}.") from error
    return _three_dimensional(volume, path)


def _three_dimensional(volume: NDArray[Any], path: Path) -> NDArray[Any]:
    if volume.ndim == 4 and volume.shape[3] == 1:
        volume = volume[..., 0]
    if volume.ndim != 3:
        raise ValueError(
            f"read_volume: expected a volume of three dimensions, got {path} of shape "
            f"{volume.shape}. Save one volume, or one point in time, in each file."
        )
    return volume


def load_canonical(
    path: str | Path, *, reader: str, extra: str
) -> tuple[Any, NDArray[Any]]:
    """Reads a NIfTI file, turned so that its axes point right, to the front and up.

    Args:
        path: The file.
        reader: Who reads, for the error.
        extra: What to install if nibabel is missing.

    Returns:
        The image of nibabel in the closest such orientation, and its values.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged.
    """
    nibabel = optional("nibabel", extra=extra)
    try:
        image = nibabel.as_closest_canonical(nibabel.load(path))
        return image, np.asanyarray(image.dataobj)
    except FileNotFoundError:
        raise
    except (nibabel.filebasedimages.ImageFileError, *DAMAGED) as error:
        raise ValueError(
            f"{reader}: {path} is not a NIfTI file, or is damaged ({error})."
        ) from error


def _read_nifti(path: Path) -> tuple[NDArray[Any], tuple[float, ...]]:
    image, volume = load_canonical(path, reader="read_volume", extra="volumes")
    if volume.dtype.kind == "f":
        volume = volume.astype(np.float32)
    volume = _three_dimensional(volume, path)
    if volume.dtype.kind == "c":
        raise ValueError(
            f"read_volume: {path} holds complex numbers. Save their magnitude."
        )
    # By the affine, as MONAI, torchio and ITK do, also where `pixdim` differs.
    spacing = np.linalg.norm(image.affine[:3, :3], axis=0)
    return from_canonical(volume), tuple(map(float, spacing[::-1]))


def from_canonical(volume: NDArray[Any]) -> NDArray[Any]:
    """Turns a volume from (right, front, head) to (head, back, left)."""
    return np.ascontiguousarray(volume.transpose(2, 1, 0)[:, ::-1, ::-1])


def _read_series(folder: Path) -> tuple[NDArray[Any], tuple[float, ...]]:
    pydicom = optional("pydicom", extra="volumes")
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
    volume = np.stack([_pixels_of(file, path) for _, path, file in placed])
    rows, columns = (float(side) for side in first.PixelSpacing)
    return _oriented(volume, (normal, down, across), (between, rows, columns))


def _pixels_of(file: Any, path: Path) -> NDArray[Any]:
    try:
        pixels, _ = dicom_pixels(file)
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
