"""Builds the study's three files of chest X-rays from what their owners publish.

    python examples/compare/chest.py --nih FOLDER --medmnist FOLDER \
        --shenzhen FOLDER --montgomery FOLDER --out FOLDER

Each folder holds a set as it was downloaded, archives unpacked or not:

    --nih         Data_Entry_2017_v2020.csv (or Data_Entry_2017.csv), BBox_List_2017.csv
                  and images_001.tar.gz to images_012.tar.gz; NIH ChestX-ray14,
                  https://nihcc.app.box.com/v/ChestXray-NIHCC
    --medmnist    pneumoniamnist.npz; https://zenodo.org/records/10519652
    --shenzhen    ChinaSet_AllFiles.zip (https://data.lhncbc.nlm.nih.gov/public/
                  Tuberculosis-Chest-X-ray-Datasets) and the masks of Stirenko et al.,
                  CHNCXR_0001_0_mask.png and so on, in any archive
    --montgomery  NLM-MontgomeryCXRSet.zip; from the same place

`chest_splits.csv` names the images and the splits of the study; images that are missing
are an error. Pixels differ a little from ours, which were scaled down in two steps.
`python examples/compare --data FOLDER` then reads the folder.
"""

from __future__ import annotations

import argparse
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO

import cv2
import numpy as np
import pandas as pd
from PIL import Image
from tqdm import tqdm

SIDE = 128
SPLITS = pd.read_csv(Path(__file__).with_name("chest_splits.csv"))
# MedMNIST v2: images to train on, to validate with and to test on.
PNEUMONIAMNIST = {"train": 4708, "val": 524, "test": 624}


def files_in(folder: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """Yields paths and contents of all PNG files of a folder and of its archives."""
    for path in sorted(folder.rglob("*")):
        if path.suffix == ".png":
            with path.open("rb") as file:
                yield path.as_posix(), file
        elif path.suffix == ".zip":
            with zipfile.ZipFile(path) as archive:
                for name in archive.namelist():
                    if name.endswith(".png"):
                        with archive.open(name) as file:
                            yield name, file
        elif path.name.endswith((".tar.gz", ".tar")):
            with tarfile.open(path, "r|*") as archive:
                for member in archive:
                    if member.name.endswith(".png"):
                        file = archive.extractfile(member)
                        assert file is not None
                        yield member.name, file


def read_images(folder: Path, wanted: list[str]) -> np.ndarray:
    """Returns grey images, (N, 128, 128) uint8, by the ends of their paths."""
    found: dict[str, np.ndarray] = {}
    left = set(wanted)
    with tqdm(total=len(left), desc=folder.name, disable=None) as progress:
        for path, file in files_in(folder):
            parts = PurePosixPath(path).parts
            for name in ("/".join(parts[-2:]), parts[-1]):
                if name in left:
                    pixels = np.asarray(Image.open(file).convert("L"))
                    found[name] = cv2.resize(
                        pixels, (SIDE, SIDE), interpolation=cv2.INTER_AREA
                    )
                    left.remove(name)
                    progress.update()
            if not left:
                break
    if left:
        sys.exit(
            f"{folder}: {len(left)} of {len(wanted)} images are missing, the first is "
            f"{min(left)}. Download all archives that `--help` names."
        )
    return np.stack([found[name] for name in wanted])


def build_nih(folder: Path) -> dict[str, np.ndarray]:
    """Returns 500 images with pneumonia and 500 without a finding, and boxes."""
    own = SPLITS[SPLITS["file"] == "nih_cxr_mini_128"].reset_index(drop=True)
    tables = sorted(folder.rglob("Data_Entry_2017*.csv"), reverse=True)
    boxes = next(folder.rglob("BBox_List_2017.csv"), None)
    if not tables or boxes is None:
        sys.exit(f"{folder}: no Data_Entry_2017_v2020.csv or no BBox_List_2017.csv.")
    entries = pd.read_csv(tables[0]).set_index("Image Index")["Finding Labels"]
    labels = entries.reindex(own["image"]).fillna("").str.contains("Pneumonia")
    if labels.sum() != 500:
        sys.exit(f"{tables[0]}: {labels.sum()} of 500 images with pneumonia.")
    table = pd.read_csv(boxes)
    table = table[table["Image Index"].isin(own["image"])]
    places = dict(zip(own["image"], own.index, strict=True))
    return {
        "images": read_images(folder, own["image"].tolist()),
        "label": labels.to_numpy(np.uint8),
        "image_id": own["image"].to_numpy(str),
        "patient_id": own["image"].str.slice(0, 8).to_numpy(str),
        "split": own["split"].to_numpy(str),
        "bbox_image_index": table["Image Index"].map(places).to_numpy(np.int32),
        "bbox_label": table["Finding Label"].to_numpy(str),
        # x, y, width and height of images of 1024 x 1024 pixels.
        "bbox_xywh": table.iloc[:, 2:6].to_numpy(np.float32) * SIDE / 1024,
    }


def build_lungs(shenzhen: Path, montgomery: Path) -> dict[str, np.ndarray]:
    """Returns films of two hospitals with masks of both lungs."""
    own = SPLITS[SPLITS["file"] == "lung_seg_128"]
    parts = []
    for folder, prefix, masks in (
        (shenzhen, "CHNCXR", ["{}_mask.png"]),
        (montgomery, "MCUCXR", ["leftMask/{}.png", "rightMask/{}.png"]),
    ):
        names = own["image"][own["image"].str.startswith(prefix)].tolist()
        images = read_images(folder, [f"CXR_png/{name}.png" for name in names])
        sides = [
            read_images(folder, [mask.format(name) for name in names]) for mask in masks
        ]
        parts.append((images, np.max(sides, axis=0) >= 128))
    images, masks = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return {
        "images": images,
        "masks": masks.astype(np.uint8),
        "image_id": own["image"].to_numpy(str),
        "source": np.where(
            own["image"].str.startswith("CHN"), "shenzhen", "montgomery"
        ),
        # The last digit of a film's name.
        "tb_label": own["image"].str.slice(-1).astype(np.uint8).to_numpy(),
        "split": own["split"].to_numpy(str),
    }


def build_pneumonia(folder: Path) -> dict[str, np.ndarray]:
    """Returns PneumoniaMNIST as it is."""
    path = next(folder.rglob("pneumoniamnist.npz"), None)
    if path is None:
        sys.exit(f"{folder}: no pneumoniamnist.npz.")
    with np.load(path, allow_pickle=False) as file:
        arrays = dict(file)
    counts = {split: len(arrays.get(f"{split}_images", ())) for split in PNEUMONIAMNIST}
    if counts != PNEUMONIAMNIST:
        sys.exit(f"{path}: expected {PNEUMONIAMNIST} images, got {counts}.")
    return arrays


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("nih", "medmnist", "shenzhen", "montgomery", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True, metavar="FOLDER")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for name, arrays in (
        ("pneumoniamnist_full", build_pneumonia(options.medmnist)),
        ("lung_seg_128", build_lungs(options.shenzhen, options.montgomery)),
        ("nih_cxr_mini_128", build_nih(options.nih)),
    ):
        np.savez_compressed(options.out / f"{name}.npz", **arrays)


if __name__ == "__main__":
    main()
