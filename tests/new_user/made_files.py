"""Files as a new user has them, made without any optional package."""

from __future__ import annotations

import struct
from pathlib import Path

import cv2
import numpy as np


def make_files(folder: Path) -> None:
    """Makes 40 PNG files of 12 bits, 10 DICOM files without suffix, 4 NIfTI volumes."""
    for name in ("xrays", "dicom", "volumes"):
        (folder / name).mkdir(parents=True)
    for number in range(40):
        cv2.imwrite(str(folder / f"xrays/{number:02}.png"), scan(number))
    for number in range(10):
        (folder / f"dicom/IM{number:06}").write_bytes(dicom(scan(number)))
    for number in range(4):
        values = np.stack([scan(10 * number + plane % 10) for plane in range(80)])
        path = folder / f"volumes/patient{number}.nii"
        path.write_bytes(nifti(values.astype(np.int16) - 1000))


def scan(number: int, side: int = 96) -> np.ndarray:
    """Returns 12 bits in 16: a disc if the number is odd, else a square."""
    random = np.random.default_rng(number)
    y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j] + random.normal(0, 0.2)
    inside = x**2 + y**2 < 0.3 if number % 2 else np.maximum(abs(x), abs(y)) < 0.45
    return (600 * random.random((side, side)) + 3000 * inside).astype(np.uint16)


def dicom(pixels: np.ndarray) -> bytes:
    """Returns a file of one grey image of 12 bits, explicit and little-endian."""

    def element(group: int, number: int, kind: bytes, value: bytes) -> bytes:
        padding = b"\0" if kind in (b"UI", b"OB", b"OW") else b" "
        value += padding * (len(value) % 2)
        wide = kind in (b"OB", b"OW")
        size = b"\0\0" + struct.pack("<I", len(value))
        size = size if wide else struct.pack("<H", len(value))
        return struct.pack("<HH", group, number) + kind + size + value

    def short(value: int) -> bytes:
        return struct.pack("<H", value)

    kind, own = b"1.2.840.10008.5.1.4.1.1.1.1", b"1.2.826.0.1.3680043.8.498.1"
    meta = element(2, 1, b"OB", b"\0\1")
    meta += element(2, 2, b"UI", kind) + element(2, 3, b"UI", own)
    meta += element(2, 0x10, b"UI", b"1.2.840.10008.1.2.1")
    length = element(2, 0, b"UL", struct.pack("<I", len(meta)))
    rows, columns = pixels.shape
    data = element(8, 0x16, b"UI", kind) + element(8, 0x18, b"UI", own)
    data += element(8, 0x60, b"CS", b"DX")
    for number, tag, value in (
        (0x02, b"US", short(1)),
        (0x04, b"CS", b"MONOCHROME2"),
        (0x10, b"US", short(rows)),
        (0x11, b"US", short(columns)),
        (0x100, b"US", short(16)),
        (0x101, b"US", short(12)),
        (0x102, b"US", short(11)),
        (0x103, b"US", short(0)),
    ):
        data += element(0x28, number, tag, value)
    data += element(0x7FE0, 0x10, b"OW", pixels.astype("<u2").tobytes())
    return bytes(128) + b"DICM" + length + meta + data


def nifti(volume: np.ndarray) -> bytes:
    """Returns a NIfTI-1 file of (D, H, W) voxels of 1 mm."""
    header = bytearray(352)
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<8h", header, 40, 3, *volume.shape[::-1], 1, 1, 1, 1)
    struct.pack_into("<hh", header, 70, 4, 16)  # int16
    struct.pack_into("<8f", header, 76, 1, 1, 1, 1, 1, 1, 1, 1)
    struct.pack_into("<fff", header, 108, 352, 1, 0)
    struct.pack_into("<hh", header, 252, 0, 1)
    for row in range(3):
        place = [0.0, 0.0, 0.0, 0.0]
        place[row] = 1.0
        struct.pack_into("<4f", header, 280 + 16 * row, *place)
    header[344:348] = b"n+1\0"
    return bytes(header) + volume.astype("<i2").tobytes()
