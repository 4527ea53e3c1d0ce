"""Images and volumes of one's own: folders of classes, of masks, or a CSV file."""

from __future__ import annotations

import re
import sys
from collections import Counter
from pathlib import Path
from typing import get_args

import numpy as np
from settings import Settings

from lightly_dira.data import ImageFiles, VolumeFiles
from lightly_dira.data.folders import MASKS, visible
from lightly_dira.data.white import parse_window
from lightly_dira.evaluation.labelled import LabelledImages, Samples
from lightly_dira.evaluation.protocol import Protocol, Task
from lightly_dira.evaluation.read_tables import read_rows, read_table
from lightly_dira.evaluation.splits import draw_splits

EXPECTED = (
    "expected a folder of folders, one for each class; a folder with the folders "
    "images and masks, whose files have the same names; or a CSV file with a column "
    "image of paths and columns label or mask, and patient and split if they are known"
)
# Words in names of folders that are splits.
SPLITS = re.compile(
    r"(?<![a-z])(?:train|training|val|valid|validation|test|testing)(?![a-z])"
)
# So many folders inside a folder are no parts or machines, but patients.
MANY = 10
# Columns of a CSV file, by names that people give them: letters and digits only.
COLUMNS = {
    "image": ("image", "path", "file", "filename", "imagepath"),
    "labels": ("label", "class"),
    "mask": ("mask", "maskpath"),
    "patient": ("patient", "patientid", "subject", "subjectid", "caseid"),
    "split": ("split",),
}


def load_own(path: Path, settings: Settings) -> tuple[LabelledImages, list[Task]]:
    """Returns images to pre-train on and the tasks that labels and masks allow.

    Args:
        path: A folder or a CSV file, see `EXPECTED`. Images are all that `ImageFiles`
            reads and volumes, if `settings.cube` is given, all that `VolumeFiles` does.
        settings: Sizes, window, parts of the labels, and steps of fine-tuning.

    Splits that are not known are drawn: 70, 10 and 20 % for training, validation and
    testing, by patient if patients are known.
    """
    try:
        data = _read_csv(path, settings) if path.is_file() else _read(path, settings)
    except (FileNotFoundError, ValueError) as error:
        sys.exit(f"--data {path}: {error}")
    fractions, steps = settings.fractions, settings.finetuning_steps
    few = tuple(fraction for fraction in fractions if fraction < 1)[:2]
    size, name = settings.cube or settings.size, path.resolve().stem
    tasks = []
    by_label, by_mask = get_args(Protocol)[:3], get_args(Protocol)[3:]
    for known, cheap, tuned in (
        (data.labels, by_label[:2], by_label[2:]),
        (data.masks, by_mask[:1], by_mask[1:]),
    ):
        if known is not None:
            pixels = 300 if settings.cube else 64
            tasks += [
                Task(name, data, size, cheap, fractions, pixels=pixels),
                Task(name, data, size, tuned, few or fractions, steps=steps),
            ]
    if not tasks:
        sys.exit(f"--data {path}: it has neither labels nor masks; {EXPECTED}.")
    _check_splits(path, data)
    if data.masks is not None:
        _check_masks(path, Samples(data, size, "mask"))
    return data.split("train"), tasks


def _read_csv(path: Path, settings: Settings) -> LabelledImages:
    plain: dict[str, str] = {}
    for name in (header := [*read_rows(path, 0).columns]):
        word = re.sub("[^a-z0-9]", "", name.lower())
        if word in plain and any(word in known for known in COLUMNS.values()):
            raise ValueError(
                f"which column is meant, {plain[word]!r} or {name!r}? Rename the other."
            )
        plain[word] = name
    columns = {
        what: next((plain[name] for name in names if name in plain), None)
        for what, names in COLUMNS.items()
    }
    if columns["image"] is None:
        raise ValueError(f"no column {', '.join(COLUMNS['image'])}; {EXPECTED}.")
    used = [name for name in columns.values() if name is not None]
    others = [name for name in header if name not in used]
    print(f"{path}: columns {', '.join(used)}; not used: {', '.join(others) or 'none'}")
    dims = 3 if settings.cube else 2
    window = parse_window(settings.window)
    # The table is the user's own.
    options = {"window": window, "spatial_dims": dims, "allow_outside": True}
    return read_table(path, path.parent, **columns, **options)


def _read(folder: Path, settings: Settings) -> LabelledImages:
    dims, files = (3, VolumeFiles) if settings.cube else (2, ImageFiles)
    known = dict(spatial_dims=dims, window=parse_window(settings.window))
    inside = sorted(path for path in visible(folder) if path.is_dir())
    by_name = {path.name.lower(): path for path in inside}
    if {"images", "masks"} <= by_name.keys():
        images, masks = files(by_name["images"]), files(by_name["masks"])
        of = dict(zip(map(_stem, masks.names), masks.paths, strict=True))
        for what, each in (("masks", masks), ("images", images)):
            stems = Counter(map(_stem, each.names))
            if twice := [stem for stem, number in stems.items() if number > 1]:
                raise ValueError(
                    f"{by_name[what]} holds several {what} named {twice[0]}: which "
                    "image has which mask? Leave the others out, rename them, or write "
                    "a CSV file."
                )
        lacking = [name for name in images.names if _stem(name) not in of]
        if lacking:
            raise ValueError(
                f"{len(lacking)} of {len(images)} images have no mask of the same name "
                f"in {by_name['masks']}, the first is {lacking[0]}."
            )
        return LabelledImages(
            images.paths,
            masks=[of[_stem(name)] for name in images.names],
            splits=draw_splits(groups := _groups(images.names), 0),
            patients=groups,
            names=images.names,
            **known,
        )
    if len(inside) < 2:
        raise ValueError(f"{EXPECTED}.")
    if any(map(MASKS.search, by_name)):
        raise ValueError(
            f"{', '.join(by_name)} are images and masks, not classes: call the folders "
            f"so; {EXPECTED}."
        )
    if any(map(SPLITS.search, by_name)):
        raise ValueError(
            f"{', '.join(by_name)} are splits, not classes: say what is in which split "
            f"by a CSV file; {EXPECTED}."
        )
    classes = [files(path) for path in inside]
    for path, each in zip(inside, classes, strict=True):
        if masks := [name for name in each.names if MASKS.search(name.lower())]:
            raise ValueError(
                f"{path} holds {masks[0]}, which is a mask by its name, among images "
                f"of a class. Move masks elsewhere, or write a CSV file; {EXPECTED}."
            )
    sizes = [len(each) for each in classes]
    found = map("{0.name} ({1})".format, inside, sizes)
    print(f"{folder}: classes {', '.join(found)}")
    labels = np.repeat(np.arange(len(classes)), sizes)
    groups = _groups([name for each in classes for name in each.names])
    return LabelledImages(
        [path for each in classes for path in each.paths],
        labels=labels,
        splits=draw_splits(groups, 0, labels=labels),
        patients=groups,
        names=[
            f"{path.name}/{name}"
            for path, each in zip(inside, classes, strict=True)
            for name in each.names
        ],
        label_names=tuple(path.name for path in inside),
        **known,
    )


def _groups(names: list[str]) -> np.ndarray:
    """Returns what must not be in two splits: folders inside, or else single files.

    Where there are many of them, a folder is that of a patient.
    """
    folders = [Path(name).parent.parts for name in names]
    files = [f"{number:09}" for number in range(len(names))]
    # The outermost that are many: a patient has folders for each study and series.
    for depth in range(1, max(map(len, folders)) + 1):
        several = {folder[:depth] for folder in folders if folder}
        if len(several) >= MANY:
            print(
                f"the {len(several)} folders inside, such as "
                f"{'/'.join(min(several))}, are taken for patients"
            )
            known = zip(files, folders, strict=True)
            return np.array(["/".join(f[:depth]) or number for number, f in known])
    print("patients are not known, and may be in several splits; a CSV file says")
    return np.array(files)


def _stem(name: str) -> str:
    """Returns a name without its suffix; 1.2.840.7.png has one, and 1.2.840.7 none."""
    path = Path(name.lower().removesuffix(".gz"))
    return str(path if path.suffix[1:].isdigit() else path.with_suffix(""))


def _check_masks(path: Path, samples: Samples) -> None:
    """Reads every image and mask once: later would be after hours of training."""
    for number in range(len(samples)):
        try:
            samples[number]
        except (RuntimeError, TypeError, ValueError) as error:
            name = samples.data.names[number]
            why = str(error).removeprefix(f"{name}: ")
            sys.exit(f"--data {path}: {name} and its mask cannot be used: {why}")


def _check_splits(path: Path, data: LabelledImages) -> None:
    splits = {} if data.splits is None else dict.fromkeys(data.splits.tolist())
    if lacking := {"train", "val", "test"} - splits.keys():
        sys.exit(
            f"--data {path}: {len(data)} images are too few for all of train, val and "
            f"test: none is in {', '.join(sorted(lacking))}."
        )
    if data.labels is None:
        return
    if len(data.label_names) < 2:
        sys.exit(
            f"--data {path}: all images are of one class, {data.label_names[0]}; "
            "expected at least two, or masks."
        )
    for name in ("train", "val", "test"):
        there = set(data.split(name).labels.tolist())
        if lacking := set(range(len(data.label_names))) - there:
            words = ", ".join(data.label_names[label] for label in sorted(lacking))
            sys.exit(
                f"--data {path}: {name} has no image of {words}. Give more images of "
                "each class, at least about ten, or leave the class out."
            )
