"""`python -m lightly_dira FOLDER`: what it says of files, and the picture it writes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import cv2
import nibabel
import numpy as np
import pytest
from torchvision.io import decode_image

from lightly_dira.__main__ import Facts, describe, main


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve images of 12 bits in two sizes, and two that are no images."""
    inside = tmp_path / "scans"
    inside.mkdir()
    for number in range(12):
        side = 60 if number % 4 else 80
        ramp = np.linspace(0, 4000, side * side).reshape(side, side)
        cv2.imwrite(str(inside / f"{number:02}.png"), ramp.astype(np.uint16))
    for name in ("00b.png", "zz.png"):
        (inside / name).write_bytes(b"no image")
    return inside


def test_as_a_command(folder: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "lightly_dira", "scans", "--window", "0", "4095"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0] == "14 files in scans; 12 of 14 that were opened can be used"
    assert lines[1].startswith("  00b.png: read_image: ")
    assert lines[3] == "12 of 16 bits, unsigned, values from 0 to 4000"
    assert lines[4] == "sizes: 60 x 60 (9), 80 x 80 (3)"
    assert decode_image(tmp_path / "preview.png").shape == (3, 3 * 226 + 2, 8 * 226 + 2)


def test_the_window_shows(folder: Path, tmp_path: Path) -> None:
    means = []
    for words in (["0", "4095"], ["percentiles"], ["0", "65535"]):
        out = tmp_path / "out.png"
        main([f"{folder}", "--input-size", "32", "--out", f"{out}", "--window", *words])
        targets = decode_image(out)[:, 2:34].float()
        means.append(targets.mean() / 255)
    assert means[0] > 10 * means[2]
    assert means[1] > 10 * means[2]


def test_few_bits_are_said(folder: Path, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="becomes almost black"):
        main([f"{folder}", "--out", f"{tmp_path / 'out.png'}"])


def test_volumes(tmp_path: Path, capsys) -> None:
    volume = np.random.default_rng(0).normal(40, 300, (80, 90, 40)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), tmp_path / "ct.nii.gz")
    with pytest.raises(SystemExit, match=r"NIfTI files need --volumes\."):
        main([f"{tmp_path}"])
    out = ["--out", f"{tmp_path.parent / 'volumes.png'}"]
    with pytest.raises(SystemExit, match="None of them can be used"):
        main([f"{tmp_path}", "--volumes", *out])
    assert "Say which values are black and white" in capsys.readouterr().out
    main([f"{tmp_path}", "--volumes", "--window", "-1000", "1000", *out])
    assert "1 of 32 bits, float" in capsys.readouterr().out
    assert decode_image(out[1]).shape[0] == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere is not a folder"),
        (
            ["{folder}", "--window", "5"],
            "expected two numbers, or the word percentiles",
        ),
        (["{folder}", "--window", "9", "5"], "with low < high"),
        (["{folder}"], None),
    ],
)
def test_errors(folder: Path, tmp_path: Path, arguments, message) -> None:
    asked = [word.format(folder=folder) for word in arguments]
    if message is None:
        for path in folder.iterdir():
            path.write_bytes(b"no image")
        message = "None of them can be used"
    with pytest.raises(SystemExit, match=message):
        main([*asked, "--out", f"{tmp_path / 'out.png'}"])


def test_the_picture_never_lies_among_the_images(folder: Path, capsys) -> None:
    """Found: preview.png replaced an image, or became one."""
    with pytest.raises(SystemExit):
        main([f"{folder}", "--out", f"{folder / '00.png'}"])
    assert "would lie among the images" in capsys.readouterr().err


def test_an_image_that_is_too_small_is_named(folder: Path, tmp_path, capsys) -> None:
    cv2.imwrite(str(folder / "00a.png"), np.zeros((4, 4), np.uint8))
    main([f"{folder}", "--window", "0", "4095", "--out", f"{tmp_path / 'out.png'}"])
    assert "00a.png: DiRATransform: expected at least" in capsys.readouterr().out


def test_sizes_are_counted() -> None:
    facts = [Facts("8 bits, unsigned", f"{n} x 9", 0, n) for n in (1, 2, 2, 3, 4, 5)]
    assert describe(facts) == [
        "6 of 8 bits, unsigned, values from 0 to 5",
        "sizes: 2 x 9 (2), 1 x 9 (1), 3 x 9 (1), and 2 other sizes",
    ]
