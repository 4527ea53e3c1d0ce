"""Image files, read as they are: grey, colour, 16 bits, DICOM."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lightly_dira.core.user_warnings import warn
from lightly_dira.data.dicom import read_dicom, starts_as_dicom
from lightly_dira.data.pixels import without_alpha
from lightly_dira.data.white import Stored


def read_image(file: str | Path | bytes, *, voi: bool = False) -> NDArray[Any]:
    """Reads an image file as it is: grey stays one channel and 16 bits stay 16 bits.

    It is a `loader` for `torchvision.datasets.ImageFolder`. `LightlyDataset` has no
    such argument; give the `ImageFolder` to `LightlyDataset.from_torch_dataset`.

    Args:
        file: A PNG, TIFF, JPEG or any other file that OpenCV reads, a DICOM file of
            one frame (`lightly-dira[medical]`), a NumPy file (`.npy`), or the bytes of
            such a file, for example from a shard.
        voi: Whether to apply the window that a DICOM file states for displays (VOI
            LUT, its first one): values are then float32 in [0, 1].

    Returns:
        (H, W) for grey and (H, W, 3) for colour, RGB, of the file's own type; alpha is
        dropped, palettes are resolved, photographs are upright (EXIF). DICOM values are
        those of the file. With units, such as those of CT, they are float32 (Hounsfield
        units: `DiRATransform(..., window=(-1000, 400))`); without, the array knows what
        is white, 4095 for 12 bits. MONOCHROME1 is inverted (signed values become -1 -
        value).

    Warns:
        UserWarning: If the lower half of an image is constant and the upper half is
            not, as in some damaged files. Decoders do not notice all damage; a
            manifest of checksums does (`evaluation.manifest`).

    Raises:
        FileNotFoundError: If there is no such file.
        ModuleNotFoundError: If it is a DICOM file and pydicom is not installed.
        ValueError: If it cannot be read as an image, holds several pages or frames or
            bands that are not colours, or states no window and `voi` is asked for.

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
    if starts_as_dicom(start):
        return read_dicom(data.tobytes(), name, voi=voi)
    if voi:
        raise ValueError(f"read_image: voi=True is for DICOM files, got {name}.")
    if start.startswith(_NUMPY):
        return _read_array(data.tobytes(), name)
    tags = _tags_of_tiff(data) if start[:4] in _TIFF else {}
    pages = _pages_of(data, start, tags)
    if pages > 1:
        raise ValueError(
            f"read_image: {name} holds {pages} pages or frames, expected one image. "
            "Separate them first, or save a stack as a volume."
        )
    try:
        image = cv2.imdecode(data, cv2.IMREAD_UNCHANGED) if data.size else None
    except cv2.error as error:  # of images that it takes for too large, for example
        raise ValueError(f"read_image: {name} cannot be read: {error.err}.") from error
    bands, extra = tags.get(_SAMPLES, 1), tags.get(_EXTRA)
    dropped = image is not None and bands > 1 and image.ndim == 2
    photometric = tags.get(_PHOTOMETRIC)
    if dropped or (bands > 3 and extra not in _ALPHA and photometric != _CMYK):
        raise ValueError(
            f"read_image: {name} holds {bands} bands that are not colours and alpha. "
            "Read it with tifffile, and save the bands that you want as `.npy`."
        )
    if image is None:
        raise ValueError(
            f"read_image: {name} is not an image that OpenCV can read, or is damaged."
        )
    if bands > 1 and tags.get(_PLANES) == _APART and image.dtype != np.uint8:
        # OpenCV takes the first plane for all of them.
        raise ValueError(
            f"read_image: {name} keeps its {bands} bands of {image.dtype} one after "
            "the other. Read it with tifffile, and save it as `.npy`, (H, W, 3)."
        )
    if photometric == _CMYK or (extra in _ALPHA and image.dtype == np.uint8):
        # OpenCV multiplies colours by alpha.
        with Image.open(io.BytesIO(data.tobytes())) as opened:
            return np.asarray(without_alpha(opened))
    if photometric == _WHITE_IS_ZERO and image.dtype == np.uint16:
        image = 65535 - image  # as OpenCV does with 8 bits
    elif photometric == _WHITE_IS_ZERO and image.dtype != np.uint8:
        raise ValueError(
            f"read_image: {name} says that white is 0, of {image.dtype} that may have "
            "no highest value. Invert it, and save it as `.npy`."
        )
    if tags.get(_BITS) == 12:
        image = Stored.of(image // 16, 4095)  # OpenCV multiplies them
    if (header := _PORTABLE.match(start)) and int(header[3]) not in (255, 65535):
        image = Stored.of(image, int(header[3]))
    if not tags:
        image = _upright(image, data)
    _warn_if_cut_off(image, name)
    if image.ndim == 3 and image.shape[2] == 4:
        _check_drawn(image, name)
    if image.ndim == 3 and image.shape[2] in (3, 4):
        # PNG files say if they are grey beside their alpha.
        if start[:4] == b"\x89PNG" and start[25] == 4:
            return np.ascontiguousarray(image[..., 0])
        return np.ascontiguousarray(image[..., 2::-1])  # RGB, without alpha
    return image


# How JPEG, PNG and WebP files mark that a camera has noted something.
_NOTED, _ORIENTATION = (b"Exif\0", b"eXIf", b"EXIF"), 274


def _upright(image: NDArray[Any], data: NDArray[Any]) -> NDArray[Any]:
    """Turns a photograph as its camera says, as viewers and tools for masks do."""
    whole = data.tobytes()
    if not any(mark in whole for mark in _NOTED):
        return image
    with Image.open(io.BytesIO(whole)) as opened:
        turned = opened.getexif().get(_ORIENTATION, 1)
    if turned in (5, 6, 7, 8):
        image = image.swapaxes(0, 1)
    if turned in (3, 4, 7, 8):
        image = image[::-1]
    return image[:, ::-1] if turned in (2, 3, 6, 7) else image


# What `.npy` files start with.
_NUMPY = b"\x93NUMPY"


def _read_array(data: bytes, name: str) -> NDArray[Any]:
    try:
        array: NDArray[Any] = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"read_image: {name} cannot be read: {error}.") from error
    return array


# What TIFF files start with, of the classic kind and of the large one.
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# Tags of TIFF files, and values of theirs.
_SAMPLES, _EXTRA, _PHOTOMETRIC, _BITS, _PLANES, _DEPTH = 277, 338, 262, 258, 284, 32997
_ALPHA, _WHITE_IS_ZERO, _CMYK, _APART = (1, 2), 0, 5, 2
# Portable maps of bytes, such as PGM: sides, and what is white, among comments.
_PORTABLE = re.compile(rb"P[56]" + 3 * rb"(?:\s|#[^\n]*\n)+(\d+)" + rb"\s")
# How ImageJ says that pixels of several images follow the tags of one.
_STACK = re.compile(rb"ImageJ=[^\0]{0,400}?images=(\d+)")
# Types of values, by their numbers in TIFF files.
_TYPES = {1: "u1", 3: "u2", 4: "u4", 16: "u8"}


def _tags_of_tiff(data: NDArray[Any]) -> dict[int, int]:
    """Returns the tags of the first page, and as 0 where the next one starts.

    Of a tag with several values it is the first.
    """
    order = "<" if data[0] == ord("I") else ">"

    def number(place: int, kind: str) -> int:
        size = np.dtype(kind).itemsize
        return int(np.frombuffer(data[place : place + size].tobytes(), order + kind)[0])

    try:
        large = number(2, "u2") == 43
        width, kind = (8, "u8") if large else (4, "u4")
        place = number(width, kind)
        count = number(place, "u8" if large else "u2")
        first, step = place + (8 if large else 2), 4 + 2 * width
        end = first + step * count
        tags = {0: number(end, kind)}
        for entry in range(first, end, step):
            if (of := _TYPES.get(number(entry + 2, "u2"))) is None:
                continue
            value = entry + 4 + width
            if number(entry + 4, kind) * np.dtype(of).itemsize > width:
                value = number(value, kind)
            tags[number(entry, "u2")] = number(value, of)
        return tags
    except (IndexError, ValueError):
        return {}


def _pages_of(data: NDArray[Any], start: bytes, tags: dict[int, int]) -> int:
    """Returns how many images a file holds, or 2 if there are several."""
    if tags:
        stack = _STACK.search(data[:4096].tobytes())
        images = int(stack[1]) if stack else 1
        return max(1 + bool(tags[0]), tags.get(_DEPTH, 1), images)
    animated = start[:3] == b"GIF" or start[8:12] == b"WEBP" or b"acTL" in start
    if not animated:
        return 1
    try:
        with Image.open(io.BytesIO(data.tobytes())) as file:
            return int(getattr(file, "n_frames", 1))
    except OSError:
        return 1  # OpenCV says what is wrong


def _check_drawn(image: NDArray[Any], name: str) -> None:
    """Raises a ValueError if only the alpha of an image shows anything."""
    colours, alpha = image[..., :3].reshape(-1, 3), image[..., 3]
    if (colours == colours[0]).all() and alpha.min() != alpha.max():
        raise ValueError(
            f"read_image: {name} is of one colour, and what is drawn is in its alpha, "
            "which is dropped. Save the alpha as the image: "
            "`PIL.Image.open(file).getchannel('A')`."
        )


def _warn_if_cut_off(image: NDArray[Any], name: str) -> None:
    middle = len(image) // 2
    upper, lower = image[:middle], image[middle:]
    if not middle or lower.min() != lower.max():
        return
    if len(np.unique(upper)) > 2:  # otherwise it is a mask, or empty
        warn(f"read_image: the lower half of {name} is constant: it may be damaged.")
