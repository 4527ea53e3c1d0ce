"""Image files, read as they are: grey, colour, 16 bits, DICOM."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from lightly_dira.core.user_warnings import warn


def read_image(file: str | Path | bytes) -> NDArray[Any]:
    """Reads an image file as it is: grey stays one channel and 16 bits stay 16 bits.

    It is a `loader` for `torchvision.datasets.ImageFolder`. `LightlyDataset` has no
    such argument; give the `ImageFolder` to `LightlyDataset.from_torch_dataset`.

    Args:
        file: A PNG, TIFF, JPEG or any other file that OpenCV reads, a DICOM file of
            one frame (`lightly-dira[medical]`), or the bytes of such a file, for
            example from a shard.

    Returns:
        (H, W) for grey and (H, W, C) for colour, RGB or RGBA, of the file's own type.
        DICOM values with units, such as those of CT, are returned as float32
        (Hounsfield units: `DiRATransform(..., window=(-1000, 400))`). Others are
        returned in 8 or 16 bits with the highest value as white, and MONOCHROME1 is
        inverted (signed values are kept, or become -1 - value if inverted).

    Warns:
        UserWarning: If the lower half of an image is constant and the upper half is
            not, as in some damaged files. Decoders do not notice all damage; a
            manifest of checksums does (`evaluation.manifest`).

    Raises:
        FileNotFoundError: If there is no such file.
        ModuleNotFoundError: If it is a DICOM file and pydicom is not installed.
        ValueError: If it cannot be read as an image.

    Examples:
        >>> from torchvision.datasets import ImageFolder
        >>> from lightly_dira import DiRATransform
        >>> from lightly_dira.transforms import read_image
        >>> def make_dataset(folder):
        ...     return ImageFolder(folder, DiRATransform(), loader=read_image)
    """
    if isinstance(file, bytes):
        data, name = np.frombuffer(file, dtype=np.uint8), f"a file of {len(file)} bytes"
    else:
        data, name = np.fromfile(file, dtype=np.uint8), str(file)
    if data[128:132].tobytes() == b"DICM":
        return _read_dicom(data.tobytes(), name)
    image = cv2.imdecode(data, cv2.IMREAD_UNCHANGED) if data.size else None
    if image is None:
        raise ValueError(
            f"read_image: {name} is not an image that OpenCV can read, or is damaged."
        )
    _warn_if_cut_off(image, name)
    if image.ndim == 3 and image.shape[2] in (3, 4):
        order = cv2.COLOR_BGR2RGB if image.shape[2] == 3 else cv2.COLOR_BGRA2RGBA
        image = cv2.cvtColor(image, order)
    return image


def _read_dicom(data: bytes, name: str) -> NDArray[Any]:
    try:
        import pydicom
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"read_image: {name} is a DICOM file; pip install lightly-dira[medical]"
        ) from error
    file = pydicom.dcmread(io.BytesIO(data))
    if "PixelData" not in file or file.get("NumberOfFrames", 1) != 1:
        raise ValueError(
            f"read_image: expected a DICOM file with one image, got {name} with "
            f"{file.get('NumberOfFrames', 0)}. Separate its frames with pydicom."
        )
    pixels, with_units = dicom_pixels(file)
    if with_units:
        return pixels
    if pixels.dtype.kind == "u" and pixels.ndim == 2:
        top = np.iinfo(pixels.dtype).max
        pixels = pixels << (pixels.dtype.itemsize * 8 - file.BitsStored)
        if file.PhotometricInterpretation == "MONOCHROME1":
            pixels = top - pixels
    elif file.PhotometricInterpretation == "MONOCHROME1":
        pixels = ~pixels
    return pixels


def dicom_pixels(file: Any) -> tuple[NDArray[Any], bool]:
    """Returns the pixels of a DICOM file, and whether they have units.

    Those that have, such as the Hounsfield units of CT, are float32.
    """
    from pydicom.pixels.processing import apply_modality_lut

    pixels: NDArray[Any] = file.pixel_array
    rescaled = (file.get("RescaleSlope", 1), file.get("RescaleIntercept", 0)) != (1, 0)
    if rescaled or "ModalityLUTSequence" in file:
        return np.asarray(apply_modality_lut(pixels, file), dtype=np.float32), True
    return pixels, False


def _warn_if_cut_off(image: NDArray[Any], name: str) -> None:
    middle = len(image) // 2
    upper, lower = image[:middle], image[middle:]
    if middle and lower.min() == lower.max() and upper.min() != upper.max():
        warn(f"read_image: the lower half of {name} is constant: it may be damaged.")
