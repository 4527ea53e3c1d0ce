"""Checksums of a data set, which reveal files whose content has changed."""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from lightly_dira.data.image_files import read_image


class Manifest:
    """SHA-256 sums of files, in the form that ``sha256sum`` writes and checks.

    Decoders do not notice all damage: a damaged TIFF, BMP, WebP or JPEG file of the
    right length may give a wrong image. Write a manifest while the data are known to be
    intact. Pass it to a reader (`manifest=`), or pass its `read_image` to a data set.

    Attributes:
        folder: The folder that names are relative to.
        sums: The checksum of each name.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from lightly_dira.evaluation.manifest import Manifest
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "a.txt").write_text("whole")
        >>> Manifest.of(folder).write(folder / "SHA256SUMS")
        >>> manifest = Manifest.read(folder / "SHA256SUMS")
        >>> manifest.check([folder / "a.txt"])
    """

    def __init__(self, folder: str | Path, sums: dict[str, str]) -> None:
        """Keeps the sums of a folder's files."""
        self.folder, self.sums = Path(folder), dict(sums)

    @classmethod
    def of(cls, folder: str | Path, pattern: str = "*") -> Manifest:
        """Computes the sums of the files below a folder whose names match a pattern."""
        paths = sorted(path for path in Path(folder).rglob(pattern) if path.is_file())
        sums = {path.relative_to(folder).as_posix(): _sum_of(path) for path in paths}
        return cls(folder, sums)

    @classmethod
    def read(cls, path: str | Path, folder: str | Path | None = None) -> Manifest:
        """Reads a manifest of the folder that it lies in, or of another folder.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is not a manifest.
        """
        sums = {}
        for number, line in enumerate(Path(path).read_text().splitlines(), start=1):
            digest, _, name = line.partition(" ")
            if len(digest) != 64 or name[:1] not in (" ", "*"):
                raise ValueError(
                    f"Manifest: line {number} of {path} is not a SHA-256 sum and a "
                    "name. Write it with `Manifest.of(folder).write(path)` or "
                    "`sha256sum`."
                )
            # As `find | sha256sum` writes names, and other tools digits.
            sums[posixpath.normpath(name[1:])] = digest.lower()
        return cls(Path(path).parent if folder is None else folder, sums)

    def write(self, path: str | Path) -> None:
        """Writes the manifest; the file itself is left out of it."""
        own = Path(path).absolute()
        lines = [
            f"{digest}  {name}\n"
            for name, digest in self.sums.items()
            if (self.folder / name).absolute() != own
        ]
        Path(path).write_text("".join(lines))

    def check(self, paths: Iterable[str | Path]) -> None:
        """Compares files with their sums.

        Raises:
            FileNotFoundError: If a file is missing.
            ValueError: If a file's checksum differs or is not in the manifest.
        """
        for path in paths:
            self._check(Path(path), _sum_of(Path(path)))

    def read_image(self, path: str | Path) -> NDArray[Any]:
        """Reads an image file as `transforms.read_image` does, if its checksum matches.

        Use it as the loader of `torchvision.datasets.ImageFolder`.

        Raises:
            ValueError: If the checksum differs or is not in the manifest, or if the
                file cannot be read.
        """
        data = Path(path).read_bytes()
        self._check(Path(path), hashlib.sha256(data).hexdigest())
        return read_image(data)

    def _check(self, path: Path, found: str) -> None:
        known = None
        # Folders may be given by links.
        for whole in (Path.absolute, Path.resolve):
            own = whole(path)
            if own.is_relative_to(whole(self.folder)):
                name = own.relative_to(whole(self.folder)).as_posix()
                known = known or self.sums.get(name)
        if known != found:
            what = "is not in the manifest" if known is None else "has another checksum"
            raise ValueError(
                f"Manifest: {path} {what}. Copy it again from an intact source, or "
                "write the manifest again if the change was intended."
            )


def _sum_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
