"""The rows and the settings of a comparison, kept on the disk."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import sys
import zlib
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from baselines import BASELINE_PROTOCOLS, BASELINES
from settings import Run, Settings

from lightly_dira.data.folders import files_of
from lightly_dira.evaluation.labelled import LabelledImages
from lightly_dira.evaluation.protocol import Row, Task

# Settings of which more may join what a folder of results holds.
JOINING = ("methods", "stages", "seeds", "protocols")


class Results:
    """A table of results on disk, to which whole runs are added."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.table = pd.DataFrame()
        if path.exists():
            # Python parses the numbers, so that any pandas reads what was written.
            exact = {"value": lambda text: float(text or "nan")}
            try:
                self.table = pd.read_csv(path, converters=exact)
            except (pd.errors.EmptyDataError, pd.errors.ParserError) as error:
                sys.exit(
                    f"{path} is damaged ({error}). Restore it from a copy, or delete "
                    "it: pre-trained encoders are then evaluated again."
                )

    def lacking(self, run: Run, tasks: list[Task]) -> list[Task]:
        """Returns the tasks with those protocols that have no rows yet."""
        keys = ["method", "stage", "seed", "task", "protocol"]
        done = set(self.table.reindex(columns=keys).itertuples(index=False, name=None))
        only = BASELINE_PROTOCOLS.get(run[1])
        return restrict(
            tasks,
            lambda task, protocol: (
                only in (None, protocol) and (*run, task.name, protocol) not in done
            ),
        )

    def add(self, method: str, stage: str, seed: int, rows: list[Row]) -> None:
        rows = [{"method": method, "stage": stage, **row} for row in rows]
        self.table = pd.concat([self.table, pd.DataFrame(rows)], ignore_index=True)
        write_whole(self.path, self.table.to_csv(index=False))


def list_runs(settings: Settings) -> list[Run]:
    """Lists cheap runs first, then seed by seed, so that early results are pairs."""
    runs = [("baseline", stage, seed) for stage in BASELINES for seed in settings.seeds]
    runs += [("random", "random", seed) for seed in settings.seeds]
    if settings.start:
        runs += [("start", "start", seed) for seed in settings.seeds]
    return runs + [
        (method, stage, seed)
        for seed in settings.seeds
        for method in settings.methods
        for stage in settings.stages
    ]


def restrict(tasks: list[Task], wanted: Callable[[Task, str], bool]) -> list[Task]:
    """Keeps the wanted protocols of each task, and drops tasks without any."""
    kept = [[p for p in task.protocols if wanted(task, p)] for task in tasks]
    return [
        dataclasses.replace(task, protocols=protocols)
        for task, protocols in zip(tasks, kept, strict=True)
        if protocols
    ]


def keep_settings(
    folder: Path,
    settings: Settings,
    split: str,
    pool: LabelledImages,
    facts: list[Any],
    *,
    changed: bool,
) -> None:
    """Checks the settings against those of the folder, and writes them for new rows.

    `facts` are what is known of the files of tasks; see `known_of`.
    """
    data = {"images": len(pool), "first_image": zlib.crc32(pool.pixels(0).tobytes())}
    if _of_files(pool.images):
        # Of files, labels and masks may change while images stay.
        data["files"] = zlib.crc32(repr(facts).encode())
    # Files of one name may differ.
    for path in (Path(settings.start), Path(settings.words) / "word-000.npz"):
        if path.is_file():
            data[path.name] = zlib.crc32(path.read_bytes())
    asked = {"split": split, "data": data} | as_json(settings)
    path = folder / "settings.json"
    if path.exists():
        # Settings that the file lacks did not exist yet: they have their defaults.
        before = {"data": data} | as_json(Settings())
        try:
            before |= json.loads(path.read_text())
        except ValueError as error:
            sys.exit(f"{path} is damaged ({error}). Restore a copy, or delete it.")
        for name in JOINING:
            asked[name] = list(dict.fromkeys([*before[name], *asked[name]]))
            before[name] = asked[name]
        if other := [name for name in asked if asked[name] != before[name]]:
            sys.exit(
                f"{folder} holds results of another {', '.join(other)}: "
                f"{ {name: before[name] for name in other} }. Choose another --out."
            )
    if not changed:
        return
    write_whole(path, json.dumps(asked, indent=2) + "\n")
    packages = ("lightly-dira", "lightly", "torch", "torchvision", "albumentations")
    packages += ("scikit-learn", "scipy", "segmentation-models-pytorch", "pandas")
    packages += ("timm",)
    versions = [f"{package} {version(package)}" for package in packages]
    machine = f"Python {platform.python_version()}, {platform.machine()}, "
    machine += f"{torch.get_num_threads()} threads"
    if torch.cuda.is_available():
        machine += f", {torch.cuda.get_device_name()}"
    write_whole(folder / "environment.txt", "\n".join([machine, *versions]) + "\n")


def known_of(data: LabelledImages) -> list[Any]:
    """Returns what tells two tables, or two states of their files, apart."""
    labels = None if data.labels is None else data.labels.tolist()
    splits = None if data.splits is None else data.splits.tolist()
    # Masks are small, and one that was drawn again may differ in its last rows only.
    files = [
        [_checksums(path, most) for path in each] if _of_files(each) else None
        for each, most in ((data.images, 1 << 16), (data.masks, -1))
    ]
    return [list(data.names), labels, splits, files]


def _checksums(path: Path, most: int) -> list[int]:
    """Returns sizes and checksums of the first bytes of a file, or of a series."""
    found = []
    for file in files_of(path):
        with file.open("rb") as opened:
            found += [file.stat().st_size, zlib.crc32(opened.read(most))]
    return found


def _of_files(items: Any) -> bool:
    return items is not None and isinstance(items[0], Path)


def as_json(settings: Settings) -> dict[str, Any]:
    """Returns settings as they are in JSON, with lists instead of tuples.

    Of paths only the last part is kept: a folder of results may move.
    """
    kept: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(settings)))
    for name in ("start", "words"):
        kept[name] = Path(kept[name]).name
    return kept


def write_whole(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    beside = path.with_suffix(".part")
    beside.write_text(text)
    os.replace(beside, path)
