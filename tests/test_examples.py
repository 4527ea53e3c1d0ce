"""The examples run, as a user would run them, on a folder of images."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

EXAMPLES = Path(__file__).parent.parent / "examples"


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


@pytest.mark.parametrize("method", ["moco", "barlowtwins", "simsiam"])
def test_loops(method: str, folder: Path, tmp_path: Path) -> None:
    options = ("--data", folder, "--epochs", 1, "--input-size", 32)
    output = run(f"pytorch/{method}.py", *options, cwd=tmp_path)
    assert "epoch: 00, loss: " in output


@pytest.mark.parametrize(
    "method", ["moco", "barlowtwins", "simsiam", "simclr", "vicreg", "byol", "dino"]
)
def test_lightning(method: str, folder: Path, tmp_path: Path) -> None:
    options = ("--data", folder, "--epochs", 1, "--input-size", 64)
    run(f"pytorch_lightning/{method}.py", *options, cwd=tmp_path)
    (path,) = tmp_path.glob("**/*.ckpt")
    state = torch.load(path, weights_only=True)["state_dict"]
    assert any(name.startswith("dira.discriminator.") for name in state)
    assert all(v.isfinite().all() for v in state.values() if torch.is_tensor(v))


def test_three_lines_are_all() -> None:
    for path in (EXAMPLES / "pytorch").glob("*.py"):
        code = path.read_text().split("from lightly_dira.evaluation")[1]
        lines = [line for line in code.splitlines() if "dira" in line.lower()]
        assert len(lines) == 3, path
        for line, number in zip(lines, ("first", "second", "third"), strict=True):
            assert line.endswith(f"# DiRA: the {number} line")


def test_quickstart(folder: Path, tmp_path: Path) -> None:
    options = ("--epochs", 2, "--input-size", 32, "--batch-size", 8)
    output = run("quickstart.py", "--data", folder, *options, cwd=tmp_path)
    lines = output.splitlines()
    assert lines[0] == "32 images to train on, 8 held out"
    assert [line.split()[:2] for line in lines[2:4]] == [["0", "dir"], ["1", "dira"]]
    assert "restored" in output
    with Image.open(tmp_path / "quickstart.png") as picture:
        assert min(picture.size) > 500
    weights = torch.load(tmp_path / "quickstart.pt", weights_only=True)
    assert weights.keys() == {"backbone", "head"}
