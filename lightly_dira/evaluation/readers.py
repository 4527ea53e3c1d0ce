"""Labelled images from MedMNIST and from NumPy files."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from lightly_dira.evaluation.labelled import LabelledImages
from lightly_dira.evaluation.manifest import Manifest
from lightly_dira.extras import optional
from lightly_dira.transforms.damaged_files import DAMAGED


def read_medmnist(
    name: str, *, size: int = 28, folder: str | Path | None = None
) -> LabelledImages:
    """Returns a set of MedMNIST v2 [0], and downloads it if it is not there yet.

    - [0]: MedMNIST v2, 2023, https://doi.org/10.1038/s41597-022-01721-8

    Args:
        name: Name of a set of two dimensions, such as "pneumoniamnist".
        size: 28, 64, 128 or 224 pixels.
        folder: Where the files are kept; by default medmnist's own folder.

    Raises:
        ValueError: If there is no such set.
    """
    medmnist = optional("medmnist", extra="medmnist")
    known = [key for key in medmnist.INFO if not key.endswith("3d")]
    if name not in known:
        raise ValueError(
            f"read_medmnist: {name!r} is not a set of two dimensions. Choose one of "
            f"{', '.join(known)}."
        )
    info = medmnist.INFO[name]
    place = {} if folder is None else {"root": str(folder)}
    # One split is enough: its file holds all splits.
    data_class = getattr(medmnist, info["python_class"])
    data = data_class(split="train", size=size, download=True, **place)
    suffix = "" if size == 28 else f"_{size}"
    images = read_npz(Path(data.root) / f"{name}{suffix}.npz")
    return dataclasses.replace(images, label_names=tuple(info["label"].values()))


def read_npz(
    path: str | Path,
    *,
    label: str = "label",
    split: str = "split",
    manifest: Manifest | None = None,
) -> LabelledImages:
    """Returns the images of a NumPy file, without running any code in it.

    Two layouts are known: that of MedMNIST (`train_images`, `train_labels`, `val_...`,
    `test_...`), and the array `images` with any of the arrays `label`, `masks`,
    `patient_id`, `image_id`, `split` and, for boxes, `bbox_image_index`, `bbox_xywh`
    and `bbox_label`.

    Args:
        path: The file.
        label: Name of the array of labels, (N,) or (N, L). An array of this name plus
            "_names" may hold the names of classes or findings.
        split: Name of the array of splits.
        manifest: Checksums that the file must have.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged or has another layout.
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
        labels = np.concatenate([arrays[f"{split}_labels"] for split in splits])
        return LabelledImages(
            np.concatenate([arrays[f"{split}_images"] for split in splits]),
            labels=labels[:, 0] if labels.shape[1] == 1 else labels,
            splits=np.repeat(splits, [len(arrays[f"{s}_images"]) for s in splits]),
        )
    if "images" not in arrays:
        raise ValueError(
            f"read_npz: expected arrays `images` or `train_images` in {path}, got "
            f"{', '.join(arrays)}."
        )
    for kind, name in (("label", label), ("split", split)):
        if name not in arrays and name != kind:
            raise ValueError(
                f"read_npz: no array {name!r} in {path}; it has {', '.join(arrays)}."
            )
    boxes, box_labels = (
        [
            arrays[f"bbox_{name}"][arrays["bbox_image_index"] == index]
            for index in range(len(arrays["images"]))
        ]
        if f"bbox_{name}" in arrays
        else None
        for name in ("xywh", "label")
    )
    return LabelledImages(
        arrays["images"],
        labels=arrays.get(label),
        masks=arrays.get("masks"),
        boxes=boxes,
        box_labels=box_labels,
        patients=arrays.get("patient_id"),
        splits=arrays.get(split),
        names=[str(n) for n in arrays["image_id"]] if "image_id" in arrays else None,
        label_names=tuple(map(str, arrays.get(f"{label}_names", ()))),
    )
