"""Volumes and slices of them: NIfTI files and the MNI152 brain."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lightly_dira.data.volume_files import (
    from_canonical,
    lie_on_one_grid,
    load_canonical,
)
from lightly_dira.data.white import Window
from lightly_dira.evaluation.classes import whole
from lightly_dira.evaluation.data import slice_brain
from lightly_dira.evaluation.labelled import LabelledImages
from lightly_dira.evaluation.manifest import Manifest
from lightly_dira.evaluation.splits import draw_splits


def read_mni152() -> LabelledImages:
    """Returns slices of the MNI152 brain with their tissues, without a download.

    The front 45 % of the brain is for training, the next 15 % for validation and the
    back 40 %, as in `MNI152Slices("test")`, for testing. Gaps of 4 mm separate them.
    Labels are the directions of the cut. Masks are 1 in grey and 2 in white matter.

    Examples:
        >>> from lightly_dira.evaluation.read_volumes import read_mni152
        >>> data = read_mni152()
        >>> [len(data.split(name)) for name in ("train", "val", "test")]
        [274, 222, 310]
    """
    slabs = {"train": (0.55, 1.0), "val": (0.4, 0.55), "test": (0.0, 0.4)}
    parts = [slice_brain(*slab) for slab in slabs.values()]
    sides = [part.images.shape[1] for part in parts]

    def padded(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        before = (max(sides) - images.shape[1]) // 2
        after = max(sides) - images.shape[1] - before
        return np.pad(images, ((0, 0), (before, after), (before, after)))

    return LabelledImages(
        np.concatenate([padded(part.images) for part in parts]),
        labels=np.concatenate([part.directions for part in parts]),
        masks=np.concatenate([padded(part.tissues) for part in parts]),
        splits=np.repeat(list(slabs), [len(part.images) for part in parts]),
        names=[name for part in parts for name in part.names],
        label_names=("sagittal", "coronal", "axial"),
    )


def read_nifti(
    volumes: Sequence[str | Path],
    *,
    masks: Sequence[str | Path] | None = None,
    patients: Sequence[str] | str | None = None,
    axis: Literal[0, 1, 2] | None = 2,
    window: Window | None = None,
    manifest: Manifest | None = None,
    seed: int = 0,
) -> LabelledImages:
    r"""Returns NIfTI volumes, or their slices, in the data type of their files.

    Args:
        volumes: The files.
        masks: For each volume, the file of its classes on the same grid.
        patients: The patient of each volume, so that no patient is in two splits: a
            name for each volume, or a regular expression whose only group matches the
            name in its path, such as ``r"sub-(\d+)/"``. By default each volume is a
            patient of its own, named like the file without ".nii" or ".nii.gz".
        axis: Which way to slice: 0 for sagittal, 1 for coronal and 2 for axial slices,
            which stand upright. None for whole volumes, oriented as by `read_volume`.
        window: Values that become black and white, as in `DiRATransform`.
        manifest: Checksums that the files must have.
        seed: Seed of the draw of 10 % of the patients for validation and 20 % for
            testing.

    Returns:
        Slices named after their volumes: "t1-004" is one of "t1.nii.gz"; or volumes.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a volume is damaged or does not have three dimensions, if a mask
            is on another grid or holds fractions, or if a patient's name is missing. By
            default also if two volumes have the same name.
    """
    volumes, masks = [*volumes], None if masks is None else [*masks]
    if masks is not None and len(masks) != len(volumes):
        raise ValueError(
            f"read_nifti: {len(volumes)} volumes need as many masks, got {len(masks)}."
        )
    if manifest is not None:
        manifest.check([*volumes, *(masks or ())])

    def load(path: str | Path) -> NDArray[Any]:
        _, volume = load_canonical(path, reader="read_nifti")
        if volume.ndim != 3:
            raise ValueError(
                f"read_nifti: expected a volume of three dimensions, got {path} of "
                f"shape {volume.shape}."
            )
        if axis is None:
            return from_canonical(volume)
        return np.rot90(np.moveaxis(volume, axis, 0), axes=(1, 2))

    images: list[NDArray[Any]] = []
    classes: list[NDArray[Any]] = []
    of_volumes, of_slices, names = _patients_of(volumes, patients), [], []
    for number, (path, patient) in enumerate(zip(volumes, of_volumes, strict=True)):
        volume = load(path)
        if masks is not None:
            mask = load(masks[number])
            same = mask.shape == volume.shape
            if not (same and lie_on_one_grid(path, masks[number])):
                raise ValueError(
                    f"read_nifti: {path} and {masks[number]} lie on different grids, "
                    f"as slices {volume.shape} and {mask.shape}. Resample the mask to "
                    "its volume."
                )
            mask = whole(mask)
            if not np.array_equal(mask, np.round(mask)):
                raise ValueError(
                    f"read_nifti: {masks[number]} holds "
                    f"{mask[mask != np.round(mask)][0]}, but the classes of a mask are "
                    "whole numbers. Turn probabilities into classes first."
                )
            mask = mask.astype(np.int64)
            classes += [mask] if axis is None else [*mask]
        own = [volume] if axis is None else [*volume]
        images += own
        of_slices += [patient] * len(own)
        stem = _stem(path)
        name = stem if stem == patient else f"{patient}-{stem}"
        names += [
            name if axis is None else f"{name}-{index:03}" for index in range(len(own))
        ]
    return LabelledImages(
        images,
        masks=None if masks is None else classes,
        patients=np.array(of_slices),
        splits=draw_splits(np.array(of_slices), seed),
        names=names,
        window=window,
        spatial_dims=3 if axis is None else 2,
    )


def _stem(path: str | Path) -> str:
    return re.sub(r"\.nii(\.gz)?$", "", Path(path).name)


def _patients_of(
    volumes: Sequence[str | Path], patients: Sequence[str] | str | None
) -> list[str]:
    """Names the patient of each volume."""
    if patients is None:
        names = [_stem(path) for path in volumes]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(
                f"read_nifti: several volumes are named {twice[0]!r} and would be one "
                "patient. Name the patients, patients=[...], or give a pattern of "
                'the path, patients=r"sub-(\\d+)/".'
            )
        return names
    if not isinstance(patients, str):
        if len(patients) != len(volumes):
            raise ValueError(
                f"read_nifti: {len(volumes)} volumes need as many patients, got "
                f"{len(patients)}."
            )
        return list(map(str, patients))
    found = [re.search(patients, Path(path).as_posix()) for path in volumes]
    for path, match in zip(volumes, found, strict=True):
        if match is None or match.re.groups != 1:
            raise ValueError(
                f"read_nifti: the pattern {patients!r} finds no patient in {path}; it "
                "needs one group, around the name."
            )
    return [match[1] for match in found if match is not None]
