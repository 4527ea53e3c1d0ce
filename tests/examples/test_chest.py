"""The study's files, built from archives laid out as their owners publish them."""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from lightly_dira.evaluation.readers import read_npz

COMPARE = Path(__file__).parents[2] / "examples/compare"
SPLITS = pd.read_csv(COMPARE / "chest_splits.csv")


def png(shade: int, side: int = 16) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (side, side), shade).save(buffer, "PNG")
    return buffer.getvalue()


def shade_of(name: str) -> int:
    return sum(map(ord, name)) % 256


def build(folders: dict[str, Path], out: Path) -> subprocess.CompletedProcess[str]:
    arguments = [f"--{name}={folder}" for name, folder in folders.items()]
    command = [sys.executable, str(COMPARE / "chest.py"), f"--out={out}", *arguments]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    names = ("nih", "medmnist", "shenzhen", "montgomery")
    folders = {name: tmp_path_factory.mktemp(name) for name in names}
    own = SPLITS[SPLITS["file"] == "nih_cxr_mini_128"]["image"].tolist()
    for number, part in enumerate(np.array_split(own, 2), start=1):
        path = folders["nih"] / f"images_{number:03}.tar.gz"
        with tarfile.open(path, "w:gz") as archive:
            for name in part:
                member = tarfile.TarInfo(f"images/{name}")
                content = png(shade_of(name))
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    findings = ["Infiltration|Pneumonia"] * 500 + ["No Finding"] * 500
    table = pd.DataFrame({"Image Index": own, "Finding Labels": findings})
    table.to_csv(folders["nih"] / "Data_Entry_2017_v2020.csv", index=False)
    rows = ["Image Index,Finding Label,Bbox [x,y,w,h],,,"]
    rows += [f"{own[3]},Pneumonia,512,256,128,64,,,", "other.png,Mass,1,2,3,4,,,"]
    (folders["nih"] / "BBox_List_2017.csv").write_text("\n".join(rows))
    lungs = SPLITS[SPLITS["file"] == "lung_seg_128"]["image"]
    with zipfile.ZipFile(folders["shenzhen"] / "ChinaSet_AllFiles.zip", "w") as archive:
        for name in lungs[lungs.str.startswith("CHN")]:
            path = f"ChinaSet_AllFiles/CXR_png/{name}.png"
            archive.writestr(path, png(shade_of(name)))
    (folders["shenzhen"] / "mask").mkdir()
    for name in lungs[lungs.str.startswith("CHN")]:
        (folders["shenzhen"] / f"mask/{name}_mask.png").write_bytes(png(255))
    path = folders["montgomery"] / "NLM-MontgomeryCXRSet.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in lungs[lungs.str.startswith("MCU")]:
            for kind, shade in (
                ("CXR_png", shade_of(name)),
                ("ManualMask/leftMask", 0),
                ("ManualMask/rightMask", 255),
            ):
                archive.writestr(f"MontgomerySet/{kind}/{name}.png", png(shade))
    arrays = {}
    for split, count in (("train", 4708), ("val", 524), ("test", 624)):
        arrays[f"{split}_images"] = np.zeros((count, 28, 28), np.uint8)
        arrays[f"{split}_labels"] = np.zeros((count, 1), np.uint8)
    np.savez_compressed(folders["medmnist"] / "pneumoniamnist.npz", **arrays)
    return folders


def test_files_of_the_study(folders: dict[str, Path], tmp_path: Path) -> None:
    done = build(folders, tmp_path)
    assert done.returncode == 0, done.stderr
    findings = read_npz(tmp_path / "nih_cxr_mini_128.npz")
    assert len(findings) == 1000
    assert findings.labels.tolist() == [1] * 500 + [0] * 500
    assert findings.pixels(7).shape == (128, 128)
    assert (findings.pixels(7) == shade_of(findings.names[7])).all()
    assert [len(own) for own in findings.boxes[:5]] == [0, 0, 0, 1, 0]
    assert findings.boxes[3].tolist() == [[64, 32, 16, 8]]
    lungs = read_npz(tmp_path / "lung_seg_128.npz", label="tb_label")
    counts = pd.Series(lungs.splits).value_counts()
    assert counts.to_dict() == {"train": 493, "test": 140, "val": 71}
    assert np.bincount(lungs.labels).tolist() == [359, 345]
    assert lungs.mask(0).all()
    assert lungs.mask(703).all()
    assert (lungs.pixels(703) == shade_of(lungs.names[703])).all()
    assert len(read_npz(tmp_path / "pneumoniamnist_full.npz")) == 5856


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nih", "no Data_Entry_2017_v2020.csv"),
        ("medmnist", "no pneumoniamnist.npz"),
        ("montgomery", "138 of 138 images are missing, the first is CXR_png/MCUCXR_0"),
    ],
)
def test_what_is_missing_is_said(folders, name: str, message: str, tmp_path) -> None:
    (tmp_path / "empty").mkdir()
    done = build(folders | {name: tmp_path / "empty"}, tmp_path / "out")
    assert done.returncode != 0
    assert message in done.stderr
    assert "Traceback" not in done.stderr
