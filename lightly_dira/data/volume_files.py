"""Volumes in files: NIfTI, DICOM series, NumPy."""

from __future__ import annotations

import itertools
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightly_dira.core.extras import extra
from lightly_dira.data.dicom import is_dicom
from lightly_dira.data.dicom_series import place_series, read_series
from lightly_dira.data.resizing import resample_volume
from lightly_dira.data.white import Stored

# What NumPy and nibabel raise on files that are damaged or of another kind.
DAMAGED = (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile, zlib.error)
_NUMPY = (".npy", ".npz")
# Millimetres in the units of NIfTI files; unknown ones are taken for millimetres.
_MILLIMETRES = {"micron": 1e-3, "meter": 1e3}


def read_volume(
    file: str | Path,
    *,
    spacing: tuple[float, float, float] | None = None,
    voi: bool = False,
) -> NDArray[Any]:
    """Reads a volume as (D, H, W), with its own values.

    Args:
        file: A NIfTI file, a folder with the DICOM files of one series, or a NumPy
            file: `.npy`, or `.npz` with one array.
        spacing: Millimetres between voxels along D, H and W, to which the volume is
            resampled (linear); not for NumPy files, which do not state theirs.
        voi: Whether to apply the window that a DICOM series states for displays, as in
            `read_image`.

    Returns:
        (D, H, W), float32 if it was scaled or resampled, else of the file's own type.
        NIfTI and DICOM come in one orientation: D from the feet to the head, H from
        the front to the back and W from the patient's right to the left (as on
        radiological displays), or as close to it as whole axes can come. DICOM values
        have their units: Hounsfield units in CT.

    Raises:
        FileNotFoundError: If there is no such file or folder.
        ImportError: If nibabel or pydicom is not installed
            (`lightly-dira[medical]`).
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
        volume, own = _read_series(path, voi)
    elif voi:
        raise ValueError(f"read_volume: voi=True is for DICOM series, got {path}.")
    elif path.suffix.lower() in _NUMPY:
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
    resampled, white = resample_volume(volume, factors), getattr(volume, "white", None)
    return resampled if white is None else Stored.of(resampled, white)


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


def load_canonical(path: str | Path, *, reader: str) -> tuple[Any, NDArray[Any]]:
    """Reads a NIfTI file, turned so that its axes point right, to the front and up.

    Args:
        path: The file.
        reader: Who reads, for the error.

    Returns:
        The image of nibabel in the closest such orientation, and its values.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged.
    """
    with extra("medical"):
        import nibabel
    cure = (
        "Read are NIfTI files, folders with the DICOM files of one series, .npy and "
        ".npz. Convert others first, for example with SimpleITK"
    )
    if not Path(path).is_file():
        raise FileNotFoundError(f"{reader}: there is no file {path}.")
    if is_dicom(Path(path)):
        raise ValueError(f"{reader}: {path} is a single DICOM file. {cure}.")
    try:
        loaded = nibabel.load(path)
        if not hasattr(loaded, "affine"):
            raise ValueError(f"it is {type(loaded).__name__}, not values on a grid")
        image = nibabel.as_closest_canonical(loaded)  # type: ignore[no-untyped-call]
        return image, np.asanyarray(image.dataobj)
    except Exception as error:  # of many kinds, by format
        raise ValueError(
            f"{reader}: {path} is not a NIfTI file, or is damaged ({error}). {cure}."
        ) from error


def lie_on_one_grid(*paths: str | Path) -> bool:
    """Whether voxels of NIfTI files and DICOM series lie at the same places.

    Of NumPy files, which do not tell, it is True. Values are not compared.
    """
    if any(Path(path).suffix.lower() in _NUMPY for path in paths):
        return True
    with extra("medical"):
        import nibabel
    corners, series = [], any(Path(path).is_dir() for path in paths)
    for path in paths:
        if Path(path).is_dir():
            shape, affine = place_series(Path(path))
        else:
            loaded: Any = nibabel.load(path)
            shape, affine = loaded.shape, loaded.affine
        image = _canonical(np.broadcast_to(np.uint8(0), shape), affine)
        ends = [(0, side - 1) for side in image.shape[:3]]
        corners.append([image.affine @ [*c, 1] for c in itertools.product(*ends)])
    # In parts of a voxel; places in headers of DICOM are rounded.
    near = (0.25 if series else 0.05) * min(np.linalg.norm(affine[:3, :3], axis=0))
    return all(np.allclose(corners[0], each, rtol=0, atol=near) for each in corners)


def _canonical(volume: NDArray[Any], affine: NDArray[Any]) -> Any:
    """Turns a volume so that its axes point right, to the front and up."""
    with extra("medical"):
        import nibabel
        from nibabel.spatialimages import SpatialImage
    image = SpatialImage(volume, affine)
    return nibabel.as_closest_canonical(image)  # type: ignore[no-untyped-call]


def _read_series(folder: Path, voi: bool) -> tuple[NDArray[Any], tuple[float, ...]]:
    volume, affine, white = read_series(folder, voi=voi)
    image = _canonical(volume, affine)
    turned = from_canonical(np.asarray(image.dataobj))
    spacing = np.linalg.norm(image.affine[:3, :3], axis=0)[::-1]
    known = turned if white is None else Stored.of(turned, white)
    return known, tuple(map(float, spacing))


def _read_nifti(path: Path) -> tuple[NDArray[Any], tuple[float, ...]]:
    image, volume = load_canonical(path, reader="read_volume")
    if volume.dtype.kind == "f":
        volume = volume.astype(np.float32)
    volume = _three_dimensional(volume, path)
    if volume.dtype.kind not in "uifb":
        raise ValueError(
            f"read_volume: {path} holds values of type {volume.dtype}, expected "
            "numbers. Of complex ones, save the magnitude."
        )
    # By the affine, as MONAI, torchio and ITK do, also where `pixdim` differs.
    spacing = np.linalg.norm(image.affine[:3, :3], axis=0)
    if hasattr(image.header, "get_xyzt_units"):
        spacing = spacing * _MILLIMETRES.get(image.header.get_xyzt_units()[0], 1.0)
    return from_canonical(volume), tuple(map(float, spacing[::-1]))


def from_canonical(volume: NDArray[Any]) -> NDArray[Any]:
    """Turns a volume from (right, front, head) to (head, back, left)."""
    return np.ascontiguousarray(volume.transpose(2, 1, 0)[:, ::-1, ::-1])
