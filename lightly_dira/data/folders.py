"""What lies in folders of scans, and what is no scan."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

# What systems add to folders and archives, and the index of DICOM media.
_NO_SCANS = (
    "__MACOSX",
    "DICOMDIR",
    "@eaDir",
    "System Volume Information",
    "$RECYCLE.BIN",
    "Thumbs.db",
)
# Words in names of files and folders, in small letters, that are masks.
MASKS = re.compile(
    r"mask|annotation"
    r"|(?<![a-z])(?:labels?(?:tr|ts)?|seg|segmentations?|gt)(?![a-z])"
)


def visible(folder: Path) -> list[Path]:
    """Returns what lies in a folder, but for hidden files and what systems add.

    Links that lead back to a folder around it are left out as well.
    """
    around = folder.resolve()
    return [
        path
        for path in folder.iterdir()
        if not (path.name.startswith(".") or path.name in _NO_SCANS)
        and not _leads_back(path, around)
    ]


def _leads_back(path: Path, around: Path) -> bool:
    """Whether it is a link to a folder, or to one around it."""
    # A link to nothing, or to itself, cannot be resolved.
    return path.is_symlink() and path.exists() and around.is_relative_to(path.resolve())


def files_of(volume: Path) -> list[Path]:
    """Returns the file of a volume, or those of a series."""
    if not volume.is_dir():
        return [volume]
    return sorted(path for path in visible(volume) if path.is_file())


@contextlib.contextmanager
def naming(name: object) -> Iterator[None]:
    """Says by name of what an error arises, as of one of a thousand files."""
    try:
        yield
    except Exception as error:
        kinds = (TypeError, ValueError)
        kind = next((k for k in kinds if isinstance(error, k)), RuntimeError)
        told = str(error) if kind is not RuntimeError else repr(error)
        raise kind(f"{name}: {told}") from error
