"""What lies in folders of scans, and what is no scan."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lightly_dira.data import ImageFiles, VolumeFiles
from lightly_dira.data.folders import MASKS, naming, visible


@pytest.mark.parametrize(
    "name", ["@eaDir", "$RECYCLE.BIN", "System Volume Information"]
)
def test_what_systems_add(name: str, tmp_path: Path) -> None:
    """Found: thumbnails of a network drive were a class of their own."""
    for folder in (tmp_path, tmp_path / name):
        folder.mkdir(exist_ok=True)
        np.save(folder / "a.npy", np.zeros((32, 32), np.uint8))
    assert [path.name for path in visible(tmp_path)] == ["a.npy"]
    assert ImageFiles(tmp_path).names == ["a.npy"]


@pytest.mark.parametrize("target", ["nothing", "link"])
@pytest.mark.parametrize("suffix", ["", ".npy"])
def test_links_to_nothing(target: str, suffix: str, tmp_path: Path) -> None:
    """Found: an error of the system; archives of DataLad are full of them."""
    np.save(tmp_path / "a.npy", np.zeros((32, 32), np.uint8))
    (tmp_path / f"link{suffix}").symlink_to(tmp_path / f"{target}{suffix}")
    if suffix:
        with pytest.raises(FileNotFoundError, match=r"1 of 2 files .*`datalad get"):
            ImageFiles(tmp_path)
    else:
        assert ImageFiles(tmp_path).names == ["a.npy"]


@pytest.mark.parametrize("kind", [ImageFiles, VolumeFiles])
def test_masks_among_scans_are_said(kind, tmp_path: Path) -> None:
    """Found: `labelsTr` was pre-trained on, in silence."""
    for name in ("imagesTr", "labelsTr"):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "a.npy", np.zeros((32, 32, 3), np.uint8))
    with pytest.warns(UserWarning, match=r"1 of 2 files .* masks .* labelsTr/a\.npy"):
        kind(tmp_path)
    assert kind(tmp_path / "labelsTr").names == ["a.npy"]


@pytest.mark.parametrize(
    ("name", "is_mask"),
    [
        ("labelstr/1.nii", True),
        ("bone_seg.nii.gz", True),
        ("1_mask.png", True),
        ("segment/1.png", False),
        ("unlabelled/1.png", False),
        ("straight.png", False),
    ],
)
def test_names_of_masks(name: str, is_mask: bool) -> None:
    assert bool(MASKS.search(name)) == is_mask


@pytest.mark.parametrize(
    ("error", "kind", "told"),
    [
        (UnicodeDecodeError("utf-8", b"x", 0, 1, "odd"), ValueError, "a: 'utf-8'"),
        (TypeError("b"), TypeError, "a: b"),
        (KeyError("b"), RuntimeError, r"a: KeyError\('b'\)"),
    ],
)
def test_errors_are_named(error, kind, told: str) -> None:
    with pytest.raises(kind, match=told), naming("a"):
        raise error
