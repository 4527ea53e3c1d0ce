"""Labelled images or volumes, described by a CSV file."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lightly_dira.core.extras import extra
from lightly_dira.data.folders import files_of
from lightly_dira.data.white import Window
from lightly_dira.evaluation.labelled import LabelledImages
from lightly_dira.evaluation.manifest import Manifest
from lightly_dira.evaluation.splits import draw_splits

with extra("evaluation"):
    import pandas as pd


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
    window: Window | None = None,
    spatial_dims: int = 2,
    manifest: Manifest | None = None,
    seed: int = 0,
) -> LabelledImages:
    """Returns the images of a folder, described by a CSV file with a row for each.

    Cells are read as text, so that patients "001" and "1" differ; spaces around words
    are left out.

    Args:
        table: The CSV file.
        folder: Folder of the files of images and masks.
        image: Column of the images' paths, relative to the folder, of files that
            `read_image` reads; for volumes of files or folders for `read_volume`.
        labels: Column of one label of any kind, or the columns of several findings, 0
            or 1; None for no labels. The classes of one label are numbered in sorted
            order, which is numerical if all of them are numbers.
        mask: Column of the masks' paths; white (the one value but 0) is class 1. Masks
            of volumes hold a class for each voxel.
        patient: Column of the patients.
        split: Column of "train", "val" and "test". Without one, 70, 10 and 20 % of the
            patients (of the images, if patients are unknown) are drawn for them, with
            classes in their proportions.
        uncertain: How to treat findings of -1, with which CheXpert [0] marks uncertain
            reports: "zeros" or "ones" replaces them, "drop" leaves out their rows. Each
            of the three also turns empty cells, which are findings that a report does
            not mention, into 0. By default -1 and empty cells are errors. It is for
            lists of `labels`; one finding is a list of one.
        allow_outside: Whether paths may lead out of the folder.
        window: Values that become black and white, as in `DiRATransform`.
        spatial_dims: 2 for images, 3 for volumes.
        manifest: Checksums that the files must have.
        seed: Seed of the draw.

    - [0]: CheXpert, 2019, https://arxiv.org/abs/1901.07031

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a column or a cell is missing, a finding is not 0 or 1, words for
            classes may mean the same or nothing, a split has another name, a patient or
            a file is in two of them, or a path leads out of the folder.
    """
    rows, folder = read_rows(table), Path(folder)
    if uncertain is not None and not isinstance(labels, list):
        raise ValueError(
            f"read_table: uncertain={uncertain!r} is for columns of findings, in a "
            f"list: labels=[{labels!r}], got labels={labels!r}, classes."
        )
    several = [] if labels is None else [labels] if isinstance(labels, str) else labels
    asked = [image, *several, *(c for c in (mask, patient, split) if c is not None)]
    missing = [column for column in asked if column not in rows]
    if missing:
        raise ValueError(
            f"read_table: {table} has no column {', '.join(missing)}; it has "
            f"{', '.join(rows.columns)}."
        )
    # Spaces around a word are nobody's meaning; files may have them in their names.
    words = [column for column in asked if column not in (image, mask)]
    rows = rows.assign(**{column: rows[column].str.strip() for column in words})
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
        _check_classes(names, f"column {labels} of {table}")
        numbers = dict(zip(names, range(len(names)), strict=True))
        values = rows[labels].map(numbers).to_numpy(dtype=np.int64)
    elif labels is not None:
        values, names = rows[labels].to_numpy(dtype=np.int64), tuple(labels)
    patients = None if patient is None else rows[patient].to_numpy()
    if patient is not None:
        _check_patients(rows[patient].unique(), f"column {patient} of {table}")
    # An image that is listed twice is in one split, too.
    files = rows[image].map(lambda name: os.path.abspath(folder / name)).to_numpy()
    groups = files if patients is None else patients
    if several and (again := pd.Series(files).duplicated(keep=False).to_numpy()).any():
        told = rows.loc[again, several].agg(", ".join, axis=1).to_numpy()
        _check_apart("file", files[again], told, table, _ONE_LABEL)
    if patients is not None:
        _check_apart("file", files, patients, table, _ONE_PATIENT)
    if split is not None and (other := set(rows[split]) - {"train", "val", "test"}):
        raise ValueError(
            f"read_table: splits must be train, val or test, got {sorted(other)} in "
            f"column {split} of {table}. Rename them."
        )
    if split is not None:
        _check_apart("file", files, rows[split].to_numpy(), table, _ONE_SPLIT)
        if patients is not None:
            _check_apart("patient", patients, rows[split].to_numpy(), table, _ONE_SPLIT)
    splits = (
        draw_splits(groups, seed, labels=values)
        if split is None
        else rows[split].to_numpy()
    )
    paths = [
        _paths(folder, rows[column], allow_outside, series=spatial_dims == 3)
        for column in (image, mask)
        if column is not None
    ]
    if manifest is not None:
        manifest.check(
            file for column in paths for path in column for file in files_of(path)
        )
    return LabelledImages(
        paths[0],
        labels=values,
        masks=None if mask is None else paths[1],
        patients=patients,
        splits=splits,
        names=rows[image].tolist(),
        label_names=names,
        window=window,
        spatial_dims=spatial_dims,
    )


def read_rows(table: str | Path, rows: int | None = None) -> pd.DataFrame:
    """Reads a CSV file, or its first rows, as text.

    Raises:
        ValueError: If it is not UTF-8.
    """
    try:
        return pd.read_csv(table, dtype=str, keep_default_na=False, nrows=rows)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"read_table: {table} is not text in UTF-8 ({error.reason}). Save it so; "
            "spreadsheets call this CSV UTF-8."
        ) from error


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
    found = rows[columns]
    if wrong := sorted(set(np.unique(found.to_numpy())) - set(known)):
        raise ValueError(
            f"read_table: findings must be 0 or 1, got {', '.join(map(repr, wrong))}. "
            "Say what CheXpert's -1 (uncertain) and empty cells (not mentioned) mean: "
            'uncertain="zeros", "ones" or "drop".'
        )
    return rows.assign(**{name: found[name].map(known) for name in columns})


# What tables hold where nothing is known.
_UNKNOWN = ("nan", "na", "n/a", "#n/a", "<na>", "nat", "null", "?", "-")


def _check_classes(names: Sequence[str], where: str) -> None:
    """Raises a ValueError if words for classes may mean the same, or none."""
    if missing := [name for name in names if name.lower() in _UNKNOWN]:
        raise ValueError(
            f"read_table: {missing[0]} in {where} is no class. Fill it in, or leave "
            "its rows out."
        )
    if _check_twins(names, where, "classes") == {"-1", "0", "1"}:
        raise ValueError(
            f"read_table: {where} holds -1, 0 and 1. If -1 means uncertain, say how to "
            "treat it, with the column in a list: labels=[...], uncertain=...; else "
            "give the three classes names."
        )


def _check_patients(names: Iterable[str], where: str) -> None:
    """Raises a ValueError if names of patients may mean the same, or nobody."""
    # NA may be somebody's initials.
    if "nan" in {name.lower() for name in _check_twins(names, where, "patients")}:
        raise ValueError(
            f"read_table: nan in {where} is no patient, but all who are not known. "
            "Give each of their images a name of its own, or leave its rows out."
        )


def _check_twins(names: Iterable[str], where: str, kinds: str) -> set[str]:
    """Raises a ValueError if two words may mean the same; returns what they mean."""
    known: dict[str, str] = {}
    for name in names:
        # Also letters with accents, and spaces, that only look alike.
        plain = " ".join(unicodedata.normalize("NFKC", name).casefold().split())
        meant = re.sub(r"\.0*$", "", plain)
        if meant in known:
            raise ValueError(
                f"read_table: {known[meant]} and {name} in {where} would be two "
                f"{kinds}. Write them alike, with spaces and accents."
            )
        known[meant] = name
    return {*known}


def _check_apart(
    what: str,
    names: NDArray[Any],
    groups: NDArray[Any],
    table: object,
    cure: str,
) -> None:
    """Raises a ValueError if one name is in two groups: splits, or patients."""
    several = pd.Series(groups).groupby(names).nunique()
    twice = several.index[several > 1]
    if not len(twice):
        return
    there = " and ".join(sorted({*groups[names == twice[0]]}))
    raise ValueError(
        f"read_table: the {what} {twice[0]} is in {there}, as are {len(twice) - 1} "
        f"others of {table} in several. {cure}"
    )


_ONE_SPLIT = "Move each into one split, or leave `split` out, to have splits drawn."
_ONE_PATIENT = "Each image is of one patient: correct the table."
_ONE_LABEL = (
    "Each image has one label, or one row of findings: correct the table. Where an "
    "image shows several things, give a column of 0 and 1 to each, labels=[...]."
)


def _in_order(names: list[str]) -> list[str]:
    """Sorts names of classes, as numbers if all of them are."""
    try:
        return sorted(names, key=lambda name: (float(name), name))
    except ValueError:
        return sorted(names)


def _paths(
    folder: Path, names: pd.Series[Any], allow_outside: bool, *, series: bool
) -> list[Path]:
    paths = [folder / str(name) for name in names]
    root = os.path.normpath(folder.absolute())
    for path in () if allow_outside else paths:
        if not Path(os.path.normpath(path.absolute())).is_relative_to(root):
            raise ValueError(
                f"read_table: {path} is not below {folder}. Write paths relative to "
                "the folder, or pass allow_outside=True if you trust the table."
            )
    # A series of DICOM files is a folder.
    is_there = Path.exists if series else Path.is_file
    missing = [path for path in paths if not is_there(path)]
    if missing:
        raise FileNotFoundError(
            f"read_table: {len(missing)} of {len(paths)} files are missing, the first "
            f"is {missing[0]}."
        )
    return paths
