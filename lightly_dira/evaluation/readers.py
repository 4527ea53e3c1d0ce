"""Labelled images and volumes from MedMNIST and from NumPy files."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lightly_dira.core.extras import extra
from lightly_dira.data.volume_files import DAMAGED
from lightly_dira.evaluation.labelled import LabelledImages
from lightly_dira.evaluation.manifest import Manifest


def read_medmnist(
    name: str, *, size: int = 28, folder: str | Path | None = None
) -> LabelledImages:
    """Returns a set of MedMNIST v2 [0], and downloads it if it is not there yet.

    - [0]: MedMNIST v2, 2023, https://doi.org/10.1038/s41597-022-01721-8

    Args:
        name: Name of a set, such as "pneumoniamnist" or, of volumes, "organmnist3d".
        size: 28, 64, 128 or 224 pixels; 28 or 64 voxels.
        folder: Where the files are kept; by default medmnist's own folder.

    Raises:
        ValueError: If there is no such set.
    """
    with extra("medmnist"):
        import medmnist
    if name not in medmnist.INFO:
        raise ValueError(
            f"read_medmnist: {name!r} is not a set of MedMNIST. Choose one of "
            f"{', '.join(medmnist.INFO)}."
        )
    sizes = (28, 64) if name.endswith("3d") else (28, 64, 128, 224)
    if size not in sizes:
        raise ValueError(f"read_medmnist: {name} has the sizes {sizes}, got {size}.")
    info = medmnist.INFO[name]
    place = {} if folder is None else {"root": str(folder)}
    # One split is enough: its file holds all splits.
    data_class = getattr(medmnist, info["python_class"])
    data = data_class(split="train", size=size, download=True, **place)
    suffix = "" if size == 28 else f"_{size}"
    path = Path(data.root) / f"{name}{suffix}.npz"
    images = read_npz(path, spatial_dims=3 if name.endswith("3d") else 2)
    return dataclasses.replace(images, label_names=tuple(info["label"].values()))


def read_npz(
    path: str | Path,
    *,
    label: str = "label",
    mask: str = "masks",
    patient: str = "patient_id",
    split: str = "split",
    spatial_dims: Literal[2, 3] = 2,
    manifest: Manifest | None = None,
) -> LabelledImages:
    """Returns the images of a NumPy file, without running any code in it.

    Two layouts are known: that of MedMNIST (`train_images`, `train_labels`, `val_...`,
    `test_...`), and the array `images` with any of the arrays `label`, `masks`,
    `patient_id`, `image_id`, `split` and, for boxes, `bbox_image_index`, `bbox_xywh`
    and `bbox_label`. Volumes that were padded to one size may have the arrays `offset`
    and `shape`, (N, 3), where each begins and how large it is: the padding is cut off.

    Args:
        path: The file.
        label: Name of the array of labels, (N,) or (N, L). An array of this name plus
            "_names" may hold the names of classes or findings.
        mask: Name of the array of masks.
        patient: Name of the array of patients.
        split: Name of the array of splits: words, or 0, 1 and 2 for "train", "val" and
            "test".
        spatial_dims: 2 for images (H, W) or (H, W, C), 3 for volumes (D, H, W).
        manifest: Checksums that the file must have.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged, has another layout or holds volumes where
            images are expected.
    """
    if manifest is not None:
        manifest.check([path])
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise
    except (AttributeError, TypeError, *DAMAGED) as error:
        raise ValueError(
            f"read_npz: {path} is not a NumPy file of several arrays (.npz) without "
            f"pickled objects, or is damaged ({error}). Write it with `numpy.savez`."
        ) from error
    if "train_images" in arrays:
        splits = [s for s in ("train", "val", "test") if f"{s}_images" in arrays]
        missing = [split for split in splits if f"{split}_labels" not in arrays]
        labels: NDArray[Any] | None = None
        if not missing:
            labels = np.concatenate([arrays[f"{split}_labels"] for split in splits])
            labels = labels[:, 0] if labels.shape[1:] == (1,) else labels
        elif len(missing) < len(splits):
            raise ValueError(
                f"read_npz: {path} has labels, but not of {' and '.join(missing)}."
            )
        joined = np.concatenate([arrays[f"{split}_images"] for split in splits])
        _check_dimensions(joined, spatial_dims, path)
        return LabelledImages(
            joined,
            labels=labels,
            splits=np.repeat(splits, [len(arrays[f"{s}_images"]) for s in splits]),
            spatial_dims=spatial_dims,
        )
    if "images" not in arrays:
        raise ValueError(
            f"read_npz: expected arrays `images` or `train_images` in {path}, got "
            f"{', '.join(arrays)}."
        )
    asked = {"label": label, "masks": mask, "patient_id": patient, "split": split}
    for usual, name in asked.items():
        if name not in arrays and name != usual:
            raise ValueError(
                f"read_npz: no array {name!r} in {path}; it has {', '.join(arrays)}."
            )
    _check_dimensions(arrays["images"], spatial_dims, path)
    boxes, box_labels = (
        [
            arrays[f"bbox_{name}"][arrays["bbox_image_index"] == index]
            for index in range(len(arrays["images"]))
        ]
        if f"bbox_{name}" in arrays
        else None
        for name in ("xywh", "label")
    )
    images: Any = arrays["images"]
    masks: Any = arrays.get(mask)
    if spatial_dims == 3 and {"offset", "shape"} <= arrays.keys():
        inside = [
            tuple(map(slice, start, start + length))
            for start, length in zip(
                arrays["offset"].astype(int), arrays["shape"].astype(int), strict=True
            )
        ]
        images, masks = (
            None if a is None else [v[i] for v, i in zip(a, inside, strict=True)]
            for a in (images, masks)
        )
    return LabelledImages(
        images,
        labels=arrays.get(label),
        masks=masks,
        boxes=boxes,
        box_labels=box_labels,
        patients=arrays.get(patient),
        splits=_named_splits(arrays.get(split), path),
        names=arrays.get("image_id", ()),
        label_names=tuple(map(str, arrays.get(f"{label}_names", ()))),
        spatial_dims=spatial_dims,
    )


def _check_dimensions(images: NDArray[Any], spatial_dims: int, path: Any) -> None:
    """Raises a ValueError if volumes are read as images, or images as volumes."""
    shape = images.shape[1:]
    if spatial_dims == 2 and not (
        len(shape) == 2 or (len(shape) == 3 and shape[2] <= 4)
    ):
        raise ValueError(
            f"read_npz: expected images (H, W) or (H, W, C) in {path}, got arrays of "
            f"shape {shape}. Volumes: pass spatial_dims=3."
        )
    if spatial_dims == 3 and (len(shape) != 3 or shape[2] <= 4):
        raise ValueError(
            f"read_npz: expected volumes (D, H, W) in {path}, got arrays of shape "
            f"{shape}. Images: leave spatial_dims at 2."
        )


def _named_splits(splits: NDArray[Any] | None, path: Any) -> NDArray[Any] | None:
    """Returns splits as words."""
    if splits is None or splits.dtype.kind not in "iu":
        return splits
    if splits.min(initial=0) < 0 or splits.max(initial=0) > 2:
        raise ValueError(
            f"read_npz: splits must be 0, 1, 2 or words, got {np.unique(splits)} in "
            f"{path}."
        )
    names: NDArray[Any] = np.array(["train", "val", "test"])[splits]
    return names
