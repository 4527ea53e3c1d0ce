"""The examples run, as a user would run them, on a folder of images."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import webdataset
from PIL import Image

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(40):
        pixels = random.integers(0, 256, (40, 40), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def run(script: str, *arguments: object, cwd: Path) -> str:
    command = [sys.executable, str(EXAMPLES / script), *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "method",
    [
        "moco",
        "barlowtwins",
        "simsiam",
        "device_kornia",
        "device_torchvision",
        "mae",
        "simmim",
    ],
)
def test_loops(method: str, folder: Path, tmp_path: Path) -> None:
    options = ("--data", folder, "--epochs", 1, "--input-size", 32)
    output = run(f"pytorch/{method}.py", *options, cwd=tmp_path)
    assert "epoch: 00, loss: " in output


def test_accelerator_benchmark_checks_itself(tmp_path: Path) -> None:
    out = tmp_path / "rows.json"
    only = ("--only", "waits", "steps", "loader", "nccl")
    run("../tests/benchmarks/accelerator.py", *only, "--json", out, cwd=tmp_path)
    rows = json.loads(out.read_text())
    assert {row["part"] for row in rows} == {"device", *only[1:]}
    assert not any("failed" in row for row in rows)


@pytest.mark.parametrize("method", ["moco", "simsiam", "genesis"])
def test_volumes(method: str, tmp_path: Path) -> None:
    volumes = tmp_path / "volumes"
    volumes.mkdir()
    random = np.random.default_rng(0)
    for number in range(5):
        scan = random.integers(-1000, 400, (20, 36, 40), dtype=np.int16)
        np.save(volumes / f"{number}.npy", scan)
    options = ("--epochs", 1, "--batch-size", 4, "--input-size", 16, 32, 32)
    options += ("--data", volumes, "--window", -1000, 400)
    output = run(f"volumes/{method}.py", *options, cwd=tmp_path)
    assert "epoch: 00, loss: " in output


@pytest.mark.rare
def test_visual_words(tmp_path: Path) -> None:
    """Goes on where it was stopped with the same words, on which TransVW trains."""
    scans = tmp_path / "scans"
    scans.mkdir()
    random = np.random.default_rng(0)
    for number in range(5):
        scan = random.integers(-1000, 400, (40, 36, 40), dtype=np.int16)
        scan[:20] = -1000
        np.save(scans / f"{number}.npy", scan)
    options = ["--data", scans, "--window", -1000, 400, "--words", 3, "--patients", 3]
    options += ["--input-size", 16, 16, 16, "--scan-size", 16, 32, 32, "--epochs", 2]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    output = run("volumes/visual_words.py", *options, "--out", whole, cwd=tmp_path)
    assert "3 words of 3 patients" in output
    words = [np.load(whole / f"word-{number:03}.npz") for number in range(3)]
    for number, word in enumerate(words):
        assert word["cubes"].shape == (9, 16, 16, 16)
        assert (word["cubes"].min(), word["cubes"].max()) <= (0.0, 1.0)
        assert len(set(word["patients"])) == 3
        # One half is air, of which a cube may hold three quarters.
        assert word["place"][0] > 0.4
        for other in words[:number]:
            apart = (word["place"] - other["place"]) * (40, 36, 40)
            assert np.linalg.norm(apart) >= 5
    # The cube itself stands at the place in the patient.
    first = words[0]
    scan = (np.load(scans / first["patients"][0]) + 1000.0) / 1400
    centre = first["place"] * scan.shape
    where = tuple(slice(round(c - 8), round(c - 8) + 16) for c in centre)
    np.testing.assert_allclose(first["cubes"][0], scan[where], atol=1e-3)

    stopped.mkdir()
    for name in ("options.json", "autoencoder.pt", "word-000.npz"):
        shutil.copy(whole / name, stopped / name)
    run("volumes/visual_words.py", *options, "--out", stopped, cwd=tmp_path)
    for number, word in enumerate(words):
        again = np.load(stopped / f"word-{number:03}.npz")
        assert all(np.array_equal(again[name], word[name]) for name in word.files)
    options[options.index(3)] = 4
    script = [sys.executable, str(EXAMPLES / "volumes/visual_words.py")]
    other = subprocess.run(
        [*script, *map(str, options), "--out", str(stopped)],
        capture_output=True,
        text=True,
    )
    assert other.returncode == 1
    assert "holds words of other words" in other.stderr

    options = ("--words", whole, "--epochs", 1, "--batch-size", 8)
    assert "epoch: 00" in run("volumes/transvw.py", *options, cwd=tmp_path)


METHODS = ["moco", "barlowtwins", "simsiam", "simclr", "vicreg", "byol", "dino"]


def assert_trained(folder: Path) -> None:
    (path,) = folder.glob("**/epoch=*.ckpt")
    state = torch.load(path, weights_only=True)["state_dict"]
    assert any(name.startswith("dira.discriminator.") for name in state)
    assert all(v.isfinite().all() for v in state.values() if torch.is_tensor(v))


@pytest.mark.parametrize(
    "method",
    [
        # What the others do differs by their loss and heads only.
        pytest.param(m, marks=[] if m in ("moco", "dino") else [pytest.mark.rare])
        for m in METHODS
    ],
)
def test_lightning(method: str, folder: Path, tmp_path: Path) -> None:
    options = ("--data", folder, "--epochs", 1, "--input-size", 64)
    run(f"pytorch_lightning/{method}.py", *options, cwd=tmp_path)
    assert_trained(tmp_path)


def test_lightning_in_two_processes(folder: Path, tmp_path: Path) -> None:
    for path in list(folder.iterdir()):
        shutil.copy(path, folder / f"again-{path.name}")
    options = ("--data", folder, "--epochs", 1, "--input-size", 64)
    options += ("--devices", 2, "--strategy", "ddp")
    run("pytorch_lightning/moco.py", *options, cwd=tmp_path)
    assert_trained(tmp_path)


def test_validation(folder: Path, tmp_path: Path) -> None:
    options = ("--data", folder, "--epochs", 2, "--input-size", 32)
    output = run("pytorch_lightning/moco_validation.py", *options, cwd=tmp_path)
    assert re.search(r"best: .*epoch=\d.*, validation loss \d", output)
    (metrics,) = tmp_path.glob("**/metrics.csv")
    names = metrics.read_text().splitlines()[0].split(",")
    terms = ("loss", "discriminative", "restorative", "adversarial")
    assert {f"val/{term}" for term in terms} <= set(names)
    assert len(list(tmp_path.glob("**/restorations/*.png"))) == 2


def test_online_classifier(tmp_path: Path) -> None:
    options = ("--epochs", 2, "--input-size", 32)
    run("pytorch_lightning/moco_validation.py", *options, cwd=tmp_path)
    (metrics,) = tmp_path.glob("**/metrics.csv")
    table = pd.read_csv(metrics)
    assert table["val_online_cls_top1"].dropna().between(0, 1).sum() == 2
    losses = table["train_online_cls_loss"].dropna()
    assert losses.tail(5).mean() < losses.head(5).mean()


def test_shards(folder: Path, tmp_path: Path) -> None:
    pattern = str(tmp_path / "%06d.tar")
    with webdataset.ShardWriter(pattern, maxcount=10, verbose=0) as writer:
        for path in sorted(folder.iterdir()):
            writer.write({"__key__": path.stem, "png": path.read_bytes()})
    options = ("--images", 40, "--epochs", 2, "--input-size", 32, "--batch-size", 8)
    options += ("--devices", 2, "--workers", 1)
    shards = tmp_path / "{000000..000003}.tar"
    run("webdataset_shards.py", shards, *options, cwd=tmp_path)
    (path,) = tmp_path.glob("**/epoch=*.ckpt")
    assert path.name == "epoch=1-step=4.ckpt"
    assert_trained(tmp_path)


def test_three_lines_are_all() -> None:
    volumes = {*EXAMPLES.glob("volumes/*.py")} - {EXAMPLES / "volumes/visual_words.py"}
    for path in [*EXAMPLES.glob("pytorch/*.py"), *volumes]:
        code = path.read_text().split("from lightly_dira")[-1]
        code = "\n".join(part for part in code.splitlines() if " import " not in part)
        lines = [line for line in code.splitlines() if "dira" in line.lower()]
        assert len(lines) == 3, path
        for line, number in zip(lines, ("first", "second", "third"), strict=True):
            assert line.endswith(f"# DiRA: the {number} line")


def test_quickstart(folder: Path, tmp_path: Path) -> None:
    options = ("--epochs", 2, "--input-size", 32, "--batch-size", 8)
    output = run("quickstart.py", "--data", folder, *options, cwd=tmp_path)
    lines = output.splitlines()
    assert lines[0] == "32 items to train on, 8 held out"
    assert [line.split()[:2] for line in lines[2:4]] == [["0", "dir"], ["1", "dir"]]
    assert "restored" in output
    for name in ("quickstart.png", "quickstart_features.png"):
        with Image.open(tmp_path / name) as picture:
            assert min(picture.size) > 500
    weights = torch.load(tmp_path / "quickstart.pt", weights_only=True)
    assert weights.keys() == {"backbone", "head"}


def test_quickstart_of_volumes(tmp_path: Path) -> None:
    volumes = tmp_path / "volumes"
    volumes.mkdir()
    for number in range(10):
        volume = np.random.default_rng(number).integers(0, 256, (20, 24, 28))
        np.save(volumes / f"{number}.npy", volume.astype(np.uint8))
    options = ("--epochs", 2, "--input-size", 16, "--batch-size", 4)
    output = run(
        "quickstart.py", "--volumes", "--data", volumes, *options, cwd=tmp_path
    )
    assert output.splitlines()[0] == "8 items to train on, 2 held out"
    assert "restored" in output
    weights = torch.load(tmp_path / "quickstart_volumes.pt", weights_only=True)
    assert weights["backbone"]["conv1.weight"].ndim == 5
