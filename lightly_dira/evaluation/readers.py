"""Labelled images from the places where they are kept."""

from __future__ import annotations

import dataclasses
import os
import re
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lightly_dira.checkpoint import optional
from lightly_dira.evaluation.data import slice_brain
from lightly_dira.evaluation.labelled import LabelledImages
from lightly_dira.evaluation.manifest import Manifest
from lightly_dira.images import Window


def read_mni152() -> LabelledImages:
    """Returns slices of the MNI152 brain with their tissues, without a download.

    The front 45 % of the brain is for training, the next 15 % for validation and the
    back 40 %, that of `MNI152Slices("test")`, for testing, with gaps of 4 mm between.
    Labels are the directions of the cut, masks 1 in grey and 2 in white matter.

    Examples:
        >>> from lightly_dira.evaluation.readers import read_mni152
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


def read_medmnist(
    name: str, *, size: int = 28, folder: str | Path | None = None
) -> LabelledImages:
    """Returns a set of MedMNIST v2 [0], downloaded where it is not there yet.

    - [0]: MedMNIST v2, 2023, https://doi.org/10.1038/s41597-022-01721-8

    Args:
        name: Such as "pneumoniamnist"; one of two dimensions.
        size: 28, 64, 128 or 224 pixels.
        folder: Where the files are kept; by default medmnist's own folder.

    Raises:
        ValueError: If there is no such set.
    """
    medmnist = optional("medmnist", extra="medmnist")
    known = [key for key in medmnist.INFO if not key.endswith("3d")]
    if name not in known:
        raise ValueError(
            f"read_medmnist: {name!r} is none of the sets of two dimensions, "
            f"{', '.join(known)}."
        )
    info = medmnist.INFO[name]
    place = {} if folder is None else {"root": str(folder)}
    # Making one split downloads the file that holds all.
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
    """Returns the images of a NumPy file, read without running code that is in it.

    Two layouts are known: that of MedMNIST (`train_images`, `train_labels`, `val_...`,
    `test_...`), and one array each for `images`, `label`, `masks`, `patient_id`,
    `image_id`, `split` and boxes (`bbox_image_index`, `bbox_xywh`, `bbox_label`) where
    they exist.

    Args:
        path: The file.
        label: Name of the array of labels, (N,) or (N, L); those of findings may be
            named by an array of the same name and "_names".
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
    except (AttributeError, TypeError, *_DAMAGED) as error:
        raise ValueError(
            f"read_npz: {path} is not a NumPy file of several arrays (.npz) without "
            f"pickled objects, or is damaged ({error}). Write it by `numpy.savez`."
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


def read_table(
    table: str | Path,
    folder: str | Path,
    *,
    image: str = "image",
    labels: str | list[str] | None = "label",
    mask: str | None = None,
    patient: str | None = None,
    split: str | None = None,
    uncertain: Literal["zeros", "ones", "drop"] | None = None,
    allow_outside: bool = False,
    manifest: Manifest | None = None,
    seed: int = 0,
) -> LabelledImages:
    """Returns the images of a folder that a CSV file describes, a row for each.

    Cells are read as text, so that patient "001" is not "1".

    Args:
        table: The CSV file.
        folder: Where the files are, of images and masks.
        image: Column of the images' paths, relative to the folder: PNG, TIFF, JPEG or
            DICOM.
        labels: Column of one label of any kind (classes are numbered in rising order:
            of numbers, if all are), or the columns of several findings, 0 or 1; None
            for no labels.
        mask: Column of the masks' paths; white (anything but 0) is class 1.
        patient: Column of the patients.
        split: Column of "train", "val" and "test". Without one, 70, 10 and 20 % of the
            patients (of the images, where patients are not known) are drawn for them.
        uncertain: What becomes of findings of -1, which CheXpert [0] writes where its
            report is not sure, leaving out what it does not mention: "zeros" or "ones"
            for all of them, or "drop" for leaving out the rows; empty cells become 0.
            By default both are errors.
        allow_outside: Whether paths may lead out of the folder.
        manifest: Checksums that the files must have.
        seed: Seed of the draw.

    - [0]: CheXpert, 2019, https://arxiv.org/abs/1901.07031

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a column or a cell is missing, a finding is not 0 or 1, a split
        is
            another word or a path leaves the folder.
    """
    rows, folder = pd.read_csv(table, dtype=str, keep_default_na=False), Path(folder)
    several = [] if labels is None else [labels] if isinstance(labels, str) else labels
    asked = [image, *several, *(c for c in (mask, patient, split) if c is not None)]
    missing = [column for column in asked if column not in rows]
    if missing:
        raise ValueError(
            f"read_table: {table} has no column {', '.join(missing)}; it has "
            f"{', '.join(rows.columns)}."
        )
    if isinstance(labels, list):
        rows = _with_findings(rows, labels, uncertain)
    for column in asked:
        if (empty := rows[column] == "").any():
            raise ValueError(
                f"read_table: {empty.sum()} rows of {table} have no {column}, the "
                f"first is row {int(np.argmax(empty)) + 1}. Fill them in or leave them "
                "out."
            )
    values: NDArray[Any] | None = None
    names: tuple[str, ...] = ()
    if isinstance(labels, str):
        names = tuple(_in_order(rows[labels].unique().tolist()))
        numbers = dict(zip(names, range(len(names)), strict=True))
        values = rows[labels].map(numbers).to_numpy(dtype=np.int64)
    elif labels is not None:
        values, names = rows[labels].to_numpy(dtype=np.int64), tuple(labels)
    patients = None if patient is None else rows[patient].to_numpy()
    groups = np.arange(len(rows)) if patients is None else patients
    if split is not None and (other := set(rows[split]) - {"train", "val", "test"}):
        raise ValueError(
            f"read_table: splits must be train, val or test, got {sorted(other)} in "
            f"column {split} of {table}. Rename them."
        )
    paths = [
        _paths(folder, rows[column], allow_outside)
        for column in (image, mask)
        if column is not None
    ]
    if manifest is not None:
        manifest.check([path for column in paths for path in column])
    return LabelledImages(
        paths[0],
        labels=values,
        masks=None if mask is None else paths[1],
        patients=patients,
        splits=_draw_splits(groups, seed) if split is None else rows[split].to_numpy(),
        names=rows[image].tolist(),
        label_names=names,
    )


def read_nifti(
    volumes: Sequence[str | Path],
    *,
    masks: Sequence[str | Path] | None = None,
    patients: Sequence[str] | str | None = None,
    axis: Literal[0, 1, 2] = 2,
    window: Window | None = None,
    manifest: Manifest | None = None,
    seed: int = 0,
) -> LabelledImages:
    r"""Returns the slices of NIfTI volumes, upright, in the type of their files.

    Args:
        volumes: The files.
        masks: For each volume the file of its classes, on the same grid.
        patients: Whose volumes they are, so that a patient is in one split only: a name
            for each volume, or a regular expression whose only group finds the name in
            its path, such as ``r"sub-(\d+)/"``. By default each volume is of a
            patient of its own, named like the file without ".nii" or ".nii.gz".
        axis: Which way to slice: 0 for sagittal, 1 for coronal and 2 for axial slices.
        window: Values that become black and white, as in `DiRATransform`.
        manifest: Checksums that the files must have.
        seed: Seed of the draw of 10 % of the patients for validation and 20 % for
            testing.

    Returns:
        Slices named after their volumes: "t1-004" is one of "t1.nii.gz".

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a volume is damaged or not of three dimensions, its mask is on
            another grid or holds more than whole numbers, or names of patients are
            missing or, where each volume is a patient of its own, the same.
    """
    nibabel = optional("nibabel", extra="medical")
    if masks is not None and len(masks) != len(volumes):
        raise ValueError(
            f"read_nifti: {len(volumes)} volumes need as many masks, got {len(masks)}."
        )
    if manifest is not None:
        manifest.check([*volumes, *(masks or ())])

    def load(path: str | Path) -> tuple[NDArray[Any], NDArray[Any]]:
        # The nearest orientation in which axes point right, to the front and up.
        try:
            image = nibabel.as_closest_canonical(nibabel.load(path))
            volume: NDArray[Any] = np.asanyarray(image.dataobj)
        except FileNotFoundError:
            raise
        except (nibabel.filebasedimages.ImageFileError, *_DAMAGED) as error:
            raise ValueError(
                f"read_nifti: {path} is not a NIfTI file, or is damaged ({error})."
            ) from error
        if volume.ndim != 3:
            raise ValueError(
                f"read_nifti: expected a volume of three dimensions, got {path} of "
                f"shape {volume.shape}."
            )
        return np.rot90(np.moveaxis(volume, axis, 0), axes=(1, 2)), image.affine

    images: list[NDArray[Any]] = []
    classes: list[NDArray[Any]] = []
    of_volumes, of_slices, names = _patients_of(volumes, patients), [], []
    for number, (path, patient) in enumerate(zip(volumes, of_volumes, strict=True)):
        volume, affine = load(path)
        if masks is not None:
            mask, grid = load(masks[number])
            same = mask.shape == volume.shape and np.allclose(grid, affine, atol=1e-3)
            if not same:
                raise ValueError(
                    f"read_nifti: {path} and {masks[number]} lie on different grids, "
                    f"as slices {volume.shape} and {mask.shape}. Resample the mask to "
                    "its volume."
                )
            if not np.array_equal(mask, np.round(mask)):
                raise ValueError(
                    f"read_nifti: {masks[number]} holds "
                    f"{mask[mask != np.round(mask)][0]}, and masks are of classes, "
                    "whole numbers. Turn probabilities into classes first."
                )
            classes += list(mask.astype(np.int64))
        images += list(volume)
        of_slices += [patient] * len(volume)
        stem = _stem(path)
        volume_name = stem if stem == patient else f"{patient}-{stem}"
        names += [f"{volume_name}-{index:03}" for index in range(len(volume))]
    return LabelledImages(
        images,
        masks=None if masks is None else classes,
        patients=np.array(of_slices),
        splits=_draw_splits(np.array(of_slices), seed),
        names=names,
        window=window,
    )


def read_chestxray14(
    folder: str | Path, *, manifest: Manifest | None = None, seed: int = 0
) -> LabelledImages:
    """Returns NIH ChestX-ray14 [0] as its hospital hands it out.

    The folder holds `Data_Entry_2017*.csv`, `train_val_list.txt`, `test_list.txt`,
    `BBox_List_2017.csv` (if boxes are wanted) and the images anywhere below. The
    official test list is the test split; a tenth of the other patients is drawn for
    validation.

    - [0]: ChestX-ray8, 2017, https://arxiv.org/abs/1705.02315

    Args:
        folder: The folder.
        manifest: Checksums that the images must have.
        seed: Seed of the draw.

    Returns:
        Labels (N, 14) in the order of the names, and for each image the boxes of any
        finding. Images of neither list, or that are not there, are left out.

    Raises:
        FileNotFoundError: If a file is missing or there is no image.
    """
    folder = Path(folder)
    entries = pd.read_csv(_find(folder, "Data_Entry_2017*.csv"))
    official = {
        name: set(_find(folder, f"{name}_list.txt").read_text().split())
        for name in ("train_val", "test")
    }
    paths = {path.name: path for path in sorted(folder.rglob("*.png"))}
    listed = official["train_val"] | official["test"]
    entries = entries[entries["Image Index"].isin(listed & paths.keys())]
    if entries.empty:
        raise FileNotFoundError(
            f"read_chestxray14: none of the listed images is below {folder}."
        )
    if manifest is not None:
        manifest.check(paths[name] for name in entries["Image Index"])
    findings = entries["Finding Labels"].str.get_dummies("|")
    labels = findings.reindex(columns=list(CHESTXRAY14), fill_value=0).to_numpy()
    patients = entries["Patient ID"].astype(str).to_numpy()
    images = entries["Image Index"]
    splits = _draw_splits(patients, seed, val=0.1, test=0.0)
    splits[images.isin(official["test"]).to_numpy()] = "test"
    boxes = box_labels = None
    if found := sorted(folder.rglob("BBox_List_2017.csv")):
        # The columns are headed "Bbox [x", "y", "w" and "h]".
        table = pd.read_csv(found[0])
        table = table.replace({"Finding Label": {"Infiltrate": "Infiltration"}})
        known = dict(list(table.groupby("Image Index")))
        of = [known.get(name, table[:0]) for name in images]
        boxes = [rows.iloc[:, 2:6].to_numpy(dtype=float) for rows in of]
        box_labels = [rows["Finding Label"].to_numpy(dtype=str) for rows in of]
    return LabelledImages(
        [paths[name] for name in images],
        labels=labels,
        boxes=boxes,
        box_labels=box_labels,
        patients=patients,
        splits=splits,
        names=images.tolist(),
        label_names=CHESTXRAY14,
    )


CHESTXRAY14 = (
    "Atelectasis",
    "Cardiomegaly",
    "Effusion",
    "Infiltration",
    "Mass",
    "Nodule",
    "Pneumonia",
    "Pneumothorax",
    "Consolidation",
    "Edema",
    "Emphysema",
    "Fibrosis",
    "Pleural_Thickening",
    "Hernia",
)


# What NumPy and nibabel raise on files that are damaged or of another kind.
_DAMAGED = (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile, zlib.error)


def _draw_splits(
    groups: NDArray[Any], seed: int, *, val: float = 0.1, test: float = 0.2
) -> NDArray[Any]:
    """Draws a split for each group."""
    names, group_of = np.unique(groups, return_inverse=True)
    order = np.random.default_rng(seed).permutation(len(names))
    drawn = np.full(len(names), "train", dtype=object)
    held_out = round((val + test) * len(names))
    drawn[order[:held_out]] = "val"
    drawn[order[: round(test * len(names))]] = "test"
    return drawn[group_of]


def _with_findings(
    rows: pd.DataFrame, columns: list[str], uncertain: str | None
) -> pd.DataFrame:
    """Returns the rows with findings that are 0 or 1."""
    known: dict[str, Any] = {"0": "0", "1": "1", "0.0": "0", "1.0": "1"}
    if uncertain is not None:
        certain = {"zeros": "0", "ones": "1"}.get(uncertain)
        known |= {"-1": certain, "-1.0": certain, "": "0"}
        if uncertain == "drop":
            rows = rows[~rows[columns].isin(["-1", "-1.0"]).any(axis=1)]
    found = rows[columns].map(str.strip)
    if wrong := sorted(set(np.unique(found.to_numpy())) - set(known)):
        raise ValueError(
            f"read_table: findings must be 0 or 1, got {', '.join(map(repr, wrong))}. "
            "CheXpert's -1 (uncertain) and empty cells (not mentioned) need a word: "
            'uncertain="zeros", "ones" or "drop".'
        )
    return rows.assign(**{name: found[name].map(known) for name in columns})


def _in_order(names: list[str]) -> list[str]:
    """Sorts names of classes, as numbers if all of them are."""
    try:
        return sorted(names, key=lambda name: (float(name), name))
    except ValueError:
        return sorted(names)


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
                f"read_nifti: several volumes are named {twice[0]!r}, and would be one "
                "patient. Say whose they are: patients=[...], or a pattern of the "
                "path, "
                'patients=r"sub-(\\d+)/".'
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


def _paths(folder: Path, names: pd.Series[Any], allow_outside: bool) -> list[Path]:
    paths = [folder / str(name) for name in names]
    root = os.path.normpath(folder.absolute())
    for path in () if allow_outside else paths:
        if not Path(os.path.normpath(path.absolute())).is_relative_to(root):
            raise ValueError(
                f"read_table: {path} is not below {folder}. Write paths relative to "
                "the folder, or allow_outside=True where you trust the table."
            )
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise FileNotFoundError(
            f"read_table: {len(missing)} of {len(paths)} files are missing, the first "
            f"is {missing[0]}."
        )
    return paths


def _find(folder: Path, pattern: str) -> Path:
    found = sorted(folder.rglob(pattern))
    if not found:
        raise FileNotFoundError(f"read_chestxray14: no {pattern} below {folder}.")
    return found[0]
