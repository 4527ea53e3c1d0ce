"""Images and volumes of a folder, or of a list of paths."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from lightly_dira.core.user_warnings import warn
from lightly_dira.data.dicom import is_dicom
from lightly_dira.data.folders import MASKS, files_of, naming, visible
from lightly_dira.data.image_files import read_image
from lightly_dira.data.volume_files import read_volume

_PHOTOS = (".png", ".jpg", ".jpeg", ".jp2", ".gif", ".bmp", ".webp", ".pgm", ".ppm")
_IMAGES = (*_PHOTOS, ".jfif", ".jpe", ".pbm", ".pnm", ".tif", ".tiff", ".npy", ".dcm")
_VOLUMES = (".nii", ".nii.gz", ".npy", ".npz")
# Of other libraries; they are left out, with a warning.
_SLIDES = (".svs", ".ndpi", ".czi")
_OTHERS = (".nrrd", ".nhdr", ".mha", ".mhd", ".mgz", ".mgh", ".hdr", *_SLIDES)


class _Files(Dataset[tuple[Any, int, str]]):
    """Paths, and how an item is made of one."""

    _read: Callable[[Path], Any]

    def __init__(
        self,
        paths: list[Path],
        names: list[str],
        transform: Callable[[Any], Any] | None,
    ) -> None:
        self.paths, self.names, self.transform = paths, names, transform

    def __len__(self) -> int:
        """Counts the items."""
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Any, int, str]:
        """Returns the (transformed) item, its number and its name."""
        number = range(len(self))[index]
        item = self._read(self.paths[number])
        if self.transform is not None:
            with naming(self.names[number]):
                item = self.transform(item)
        return item, number, self.names[number]


class ImageFiles(_Files):
    """Images of a folder and its subfolders, or of a list of paths.

    PNG, JPEG, TIFF, BMP, WebP, DICOM with or without a suffix (`lightly-dira[medical]`)
    and `.npy`. Items are `(image, number, name)`, like those of Lightly's
    `LightlyDataset`. The image is a PIL image if it has 8 bits, else an array with the
    file's own values, see `lightly_dira.transforms.read_image`; the name is the path
    from the folder.

    Attributes:
        paths: The files, sorted by their names.
        names: Their names.
        transform: Applied to each image.

    Examples:
        >>> import cv2, numpy as np, tempfile
        >>> from lightly_dira import DiRATransform
        >>> from lightly_dira.data import ImageFiles
        >>> folder = tempfile.mkdtemp()
        >>> image = np.linspace(0, 4095, 64 * 64).reshape(64, 64).astype(np.uint16)
        >>> _ = cv2.imwrite(f"{folder}/scan.png", image)
        >>> dataset = ImageFiles(folder, DiRATransform(input_size=32, window=(0, 4095)))
        >>> views, number, name = dataset[0]
        >>> views[0].shape, number, name
        (torch.Size([3, 32, 32]), 0, 'scan.png')
    """

    def __init__(
        self,
        folder_or_paths: str | Path | Iterable[str | Path],
        transform: Callable[[Any], Any] | None = None,
        *,
        voi: bool = False,
        manifest: Any = None,
    ) -> None:
        """Lists the images.

        Args:
            folder_or_paths: A folder, which is searched with all its subfolders, or
                paths of files.
            transform: Applied to each image, for example a `DiRATransform`.
            voi: Whether to apply the windows that DICOM files state for displays.
            manifest: A `lightly_dira.evaluation.manifest.Manifest` that every file is
                compared with when it is read.

        Raises:
            FileNotFoundError: If there is no such folder.
            ValueError: If there are no images.
        """
        paths, names = _listed("ImageFiles", folder_or_paths, _images_in)
        super().__init__(paths, names, transform)
        self.voi, self.manifest = voi, manifest

    def _read(self, path: Path) -> Any:
        if self.manifest is not None:
            self.manifest.check([path])
        pixels = read_image(path, voi=self.voi and is_dicom(path))
        return Image.fromarray(pixels) if is_plain(pixels) else pixels


class VolumeFiles(_Files):
    """Volumes of a folder and its subfolders, or of a list of paths.

    NIfTI (`.nii`, `.nii.gz`), `.npy` and `.npz` files, and folders with the DICOM files
    of one series (`lightly-dira[medical]`), in one orientation: see
    `lightly_dira.transforms.read_volume`. Items are `(volume, number, name)`; the
    volume is an array (D, H, W) with the file's own values.

    Attributes:
        paths: The files and folders, sorted by their names.
        names: Their names.
        transform: Applied to each volume.

    Examples:
        >>> import numpy as np, tempfile
        >>> from lightly_dira import DiRATransform
        >>> from lightly_dira.data import VolumeFiles
        >>> folder = tempfile.mkdtemp()
        >>> np.save(f"{folder}/scan.npy", np.zeros((40, 80, 80), np.uint8))
        >>> views, _, name = VolumeFiles(folder, DiRATransform(spatial_dims=3))[0]
        >>> name, views[0].shape
        ('scan.npy', torch.Size([1, 32, 64, 64]))
    """

    def __init__(
        self,
        folder_or_paths: str | Path | Iterable[str | Path],
        transform: Callable[[Any], Any] | None = None,
        *,
        spacing: tuple[float, float, float] | None = None,
        voi: bool = False,
        manifest: Any = None,
    ) -> None:
        """Lists the volumes.

        Args:
            folder_or_paths: A folder, which is searched with all its subfolders, or
                paths of files and of folders of DICOM series.
            transform: Applied to each volume.
            spacing: Millimetres between voxels, as in `read_volume`.
            voi: Whether to apply the window that a DICOM series states for displays.
            manifest: As in `ImageFiles`.

        Raises:
            FileNotFoundError: If there is no such folder.
            ValueError: If there are no volumes.
        """
        paths, names = _listed("VolumeFiles", folder_or_paths, _volumes_in)
        super().__init__(paths, names, transform)
        self.spacing, self.voi, self.manifest = spacing, voi, manifest

    def _read(self, path: Path) -> Any:
        if self.manifest is not None:
            self.manifest.check(files_of(path))
        voi = self.voi and path.is_dir()
        return read_volume(path, spacing=self.spacing, voi=voi)


def _listed(
    who: str,
    folder_or_paths: str | Path | Iterable[str | Path],
    search: Callable[[Path], Iterator[Path]],
) -> tuple[list[Path], list[str]]:
    """Returns paths and names."""
    if not isinstance(folder_or_paths, (str, Path)):
        paths = [Path(path) for path in folder_or_paths]
        if not paths:
            raise ValueError(f"{who}: expected at least one path, got an empty list.")
        return paths, [str(path) for path in paths]
    folder = Path(folder_or_paths)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{who}: expected a folder or a list of paths; {folder} is not a folder."
        )
    paths = sorted(search(folder))
    if not paths:
        there = sorted({p.suffix or p.name for p in folder.rglob("*") if p.is_file()})
        known = _IMAGES if search is _images_in else _VOLUMES
        raise ValueError(
            f"{who}: found none of {', '.join(known)} and no DICOM "
            f"{'files' if search is _images_in else 'series'} below {folder}"
            f"{', only ' + ', '.join(there[:9]) if there else ', which is empty'}."
        )
    others = Counter(path.suffix.lower() for path in folder.rglob("*"))
    if left := {suffix: others[suffix] for suffix in _OTHERS if others[suffix]}:
        found = ", ".join(f"{number} of {suffix}" for suffix, number in left.items())
        warn(
            f"{who}: {len(paths)} files below {folder} are taken, and left out are "
            f"{found}, which are not read. Convert them, for example with SimpleITK."
        )
    names = [path.relative_to(folder).as_posix() for path in paths]
    if lost := [
        name for name, path in zip(names, paths, strict=True) if not path.exists()
    ]:
        raise FileNotFoundError(
            f"{who}: {len(lost)} of {len(paths)} files below {folder} are links that "
            f"lead to nothing, the first is {lost[0]}. Fetch what they stand for "
            "(`datalad get`, `git annex get`), or delete them."
        )
    masks = [name for name in names if MASKS.search(name.lower())]
    if 0 < len(masks) < len(names):
        warn(
            f"{who}: {len(masks)} of {len(names)} files below {folder} are masks by "
            f"their names, the first is {masks[0]}, and are taken as scans. If they "
            "are none, give a folder or a list of the others."
        )
    return paths, names


def _images_in(folder: Path) -> Iterator[Path]:
    for path in visible(folder):
        if path.is_dir():
            yield from _images_in(path)
        elif path.suffix.lower() in _IMAGES or (path.is_file() and is_dicom(path)):
            yield path


def _volumes_in(folder: Path) -> Iterator[Path]:
    inside = list(visible(folder))
    slices = [path for path in inside if path.is_file() and is_dicom(path)]
    if len(slices) > 1:
        yield folder
    elif slices:
        warn(
            f"VolumeFiles: {slices[0]} is alone in its folder, so that it is no series "
            "of slices, and is left out. Convert volumes of one file to NIfTI."
        )
    for path in inside:
        if path.is_dir():
            yield from _volumes_in(path)
        elif path.name.lower().endswith(_VOLUMES):
            yield path


def is_plain(pixels: Any) -> bool:
    """Whether an image is of 8 bits, grey or RGB, so that PIL loses nothing."""
    eight = pixels.dtype == np.uint8 and getattr(pixels, "white", None) is None
    return eight and (pixels.ndim == 2 or pixels.shape[2:] == (3,))
