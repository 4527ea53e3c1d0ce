"""NIH ChestX-ray14, from the files that the NIH distributes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lightly_dira.core.extras import extra
from lightly_dira.evaluation.labelled import LabelledImages
from lightly_dira.evaluation.manifest import Manifest
from lightly_dira.evaluation.splits import draw_splits

with extra("evaluation"):
    import pandas as pd


def read_chestxray14(
    folder: str | Path, *, manifest: Manifest | None = None, seed: int = 0
) -> LabelledImages:
    """Returns NIH ChestX-ray14 [0] from the files that the NIH distributes.

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
        Images with labels (N, 14) in the order of `label_names`, and with the boxes of
        all findings. Images that are missing or in neither list are left out.

    Raises:
        FileNotFoundError: If a table, a list or all images are missing.
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
    splits = np.full(len(images), "test", dtype=object)
    rest = ~images.isin(official["test"]).to_numpy()
    splits[rest] = draw_splits(
        patients[rest], seed, labels=labels[rest], val=0.1, test=0.0
    )
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


def _find(folder: Path, pattern: str) -> Path:
    found = sorted(folder.rglob(pattern))
    if not found:
        raise FileNotFoundError(f"read_chestxray14: no {pattern} below {folder}.")
    return found[0]
