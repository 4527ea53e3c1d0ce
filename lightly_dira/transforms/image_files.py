"""Image files, read as they are: grey, colour, 16 bits, DICOM."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

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
        (H, W) for grey and (H, W, 3) for colour, RGB, of the file's own type; alpha is
        dropped, palettes are resolved. DICOM values with units, such as those of CT,
        are returned as float32 (Hounsfield units: `DiRATransform(..., window=(-1000,
        400))`). Others are returned in 8 or 16 bits with the highest value as white.
        MONOCHROME1 is inverted (signed values become -1 - value).

    Warns:
        UserWarning: If the lower half of an image is constant and the upper half is
            not, as in some damaged files. Decoders do not notice all damage; a
            manifest of checksums does (`evaluation.manifest`).

    Raises:
        FileNotFoundError: If there is no such file.
        ModuleNotFoundError: If it is a DICOM file and pydicom is not installed.
        ValueError: If it cannot be read as an image, or holds several pages or frames.

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
    start = data[:1024].tobytes()
    if _starts_as_dicom(start):
        return _read_dicom(data.tobytes(), name)
    tags = _tags_of_tiff(data) if start[:4] in (b"II*\0", b"MM\0*") else {}
    pages = _pages_of(data, start, tags)
    if pages > 1:
        raise ValueError(
            f"read_image: {name} holds {pages} pages or frames, expected one image. "
            "Separate them first, or save a stack as a volume."
        )
    image = cv2.imdecode(data, cv2.IMREAD_UNCHANGED) if data.size else None
    samples = tags.get(_SAMPLES, 1)
    if image is None or (samples == 2 and image.ndim == 2):
        raise ValueError(
            f"read_image: {name} is not an image that OpenCV can read, or is damaged."
        )
    if tags.get(_PHOTOMETRIC) == _CMYK:
        with Image.open(io.BytesIO(data.tobytes())) as opened:
            return np.asarray(opened.convert("RGB"))
    _warn_if_cut_off(image, name)
    if image.ndim == 3 and image.shape[2] in (3, 4):
        # PNG files say if they are grey beside their alpha.
        if start[:4] == b"\x89PNG" and start[25] == 4:
            return np.ascontiguousarray(image[..., 0])
        order = cv2.COLOR_BGR2RGB if image.shape[2] == 3 else cv2.COLOR_BGRA2RGB
        image = cv2.cvtColor(image, order)
    return image


def is_dicom(file: Path) -> bool:
    """Whether a file is of DICOM, as its first bytes tell, also without a preamble."""
    with file.open("rb") as opened:
        return _starts_as_dicom(opened.read(132))


def _starts_as_dicom(start: bytes) -> bool:
    # Without a preamble it starts with an element of group 2 or 8.
    group, element = start[:2], start[2:4]
    known = (b"\x00\x00", b"\x01\x00", b"\x05\x00", b"\x08\x00", b"\x16\x00")
    return start[128:132] == b"DICM" or (
        group in (b"\x02\x00", b"\x08\x00") and element in known
    )


# Tags of TIFF files, and a value of the second.
_SAMPLES, _PHOTOMETRIC, _CMYK = 277, 262, 5


def _tags_of_tiff(data: NDArray[Any]) -> dict[int, int]:
    """Returns short values of the first page, and as 0 where the next one starts."""
    order = "<" if data[0] == ord("I") else ">"

    def number(place: int, kind: str) -> int:
        size = np.dtype(kind).itemsize
        return int(np.frombuffer(data[place : place + size].tobytes(), order + kind)[0])

    try:
        place = number(4, "u4")
        count = number(place, "u2")
        entries = range(place + 2, place + 2 + 12 * count, 12)
        tags = {number(entry, "u2"): number(entry + 8, "u2") for entry in entries}
        return tags | {0: number(place + 2 + 12 * count, "u4")}
    except (IndexError, ValueError):
        return {}


def _pages_of(data: NDArray[Any], start: bytes, tags: dict[int, int]) -> int:
    """Returns how many images a file holds, or 2 if there are several."""
    if tags:
        return 1 + bool(tags[0])
    animated = start[:3] == b"GIF" or start[8:12] == b"WEBP" or b"acTL" in start
    if not animated:
        return 1
    try:
        with Image.open(io.BytesIO(data.tobytes())) as file:
            return int(getattr(file, "n_frames", 1))
    except OSError:
        return 1  # OpenCV says what is wrong


def _read_dicom(data: bytes, name: str) -> NDArray[Any]:
    try:
        import pydicom
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"read_image: {name} is a DICOM file; pip install lightly-dira[medical]"
        ) from error
    try:
        file = pydicom.dcmread(io.BytesIO(data), force=True)
        frames = int(file.get("NumberOfFrames") or 1)
        if "PixelData" not in file or frames != 1:
            held = frames if "PixelData" in file else 0
            raise ValueError(
                f"expected a DICOM file with one image, got {name} with {held}: "
                "separate its frames with pydicom"
            )
        pixels, with_units = dicom_pixels(file)
    except Exception as error:
        raise ValueError(f"read_image: {name} cannot be read: {error}.") from error
    if with_units or pixels.dtype.kind != "u" or pixels.ndim != 2:
        return pixels
    missing = pixels.dtype.itemsize * 8 - file.BitsStored
    shifted: NDArray[Any] = pixels << missing
    if file.PhotometricInterpretation == "MONOCHROME1":
        shifted |= (1 << missing) - 1  # the inverse of all bits
    return shifted


def dicom_pixels(file: Any) -> tuple[NDArray[Any], bool]:
    """Returns the pixels of a DICOM file, and whether they have units.

    Those that have, such as the Hounsfield units of CT, are float32. White is high:
    MONOCHROME1 is inverted, among the values that its bits can hold. Its padding, which
    is not a part of the image, becomes black.
    """
    from pydicom.pixels.processing import apply_color_lut, apply_modality_lut

    pixels: NDArray[Any] = file.pixel_array
    photometric = file.get("PhotometricInterpretation", "")
    if photometric == "PALETTE COLOR":
        return np.asarray(apply_color_lut(pixels, file)), False
    if "ModalityLUTSequence" in file:
        values = np.asarray(apply_modality_lut(pixels, file), dtype=np.float32)
        if photometric == "MONOCHROME1":
            values = values.max() + values.min() - values
        return values, True
    if photometric == "MONOCHROME1":
        padding = file.get("PixelPaddingValue")
        outside = None if padding is None else pixels == padding
        unsigned = pixels.dtype.kind == "u"
        top = pixels.dtype.type((1 << file.BitsStored) - 1) if unsigned else None
        pixels = ~pixels if top is None else top - pixels
        if outside is not None:
            pixels[outside] = 0 if unsigned else pixels.min()
    slope, intercept = _rescaling_of(file)
    if (slope, intercept) == (1.0, 0.0):
        return pixels, False
    return pixels.astype(np.float32) * slope + np.float32(intercept), True


def _rescaling_of(file: Any) -> tuple[float, float]:
    """Returns slope and intercept, which enhanced files keep in functional groups."""
    places = [file]
    for name in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        for group in file.get(name) or ():
            places += group.get("PixelValueTransformationSequence") or ()
    found = []
    for tag, default in (("RescaleSlope", 1.0), ("RescaleIntercept", 0.0)):
        values = (place.get(tag) for place in places)
        known = [value for value in values if value not in (None, "")]
        found.append(float(known[-1]) if known else default)
    return found[0], found[1]


def _warn_if_cut_off(image: NDArray[Any], name: str) -> None:
    middle = len(image) // 2
    upper, lower = image[:middle], image[middle:]
    if middle and lower.min() == lower.max() and upper.min() != upper.max():
        warn(f"read_image: the lower half of {name} is constant: it may be damaged.")
