"""A comparison on images of one's own: what is read, what follows, what is an error."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import cv2
import nibabel
import numpy as np
import pandas as pd
import pytest
from dicom_files import save_slice

EXAMPLES = Path(__file__).parents[2] / "examples"


def scan(label: int, number: int) -> np.ndarray:
    """Returns 12 bits in 16: a bright disc for one class, a square for another."""
    random = np.random.default_rng(10 * number + label)
    y, x = np.mgrid[-1:1:64j, -1:1:64j]
    shape = (x**2 + y**2 < 0.4) if label else (abs(x) + abs(y) < 0.5)
    return (1000 * random.random((64, 64)) + 3000 * shape).astype(np.uint16)


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    folder = tmp_path / "scans"
    for label, name in enumerate(("healthy", "ill")):
        (folder / name / "more").mkdir(parents=True)
        for number in range(30):
            inside = folder / name / ("more" if number % 2 else ".")
            pixels = scan(label, number)
            if number % 3:
                cv2.imwrite(str(inside / f"{number}.png"), pixels)
            else:
                np.save(inside / f"{number}.npy", pixels)
    return folder


@pytest.fixture
def load(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES / "compare")
    from settings import Settings
    from tasks import load_tasks

    def load(path: Path, **changed):
        settings = Settings(**{"window": ("0", "4095"), **changed})
        return load_tasks(str(path), settings)

    return load


class TestFolders:
    def test_of_classes(self, classes, load) -> None:
        pool, tasks = load(classes)
        data = tasks[0].data
        assert len(data) == 60
        assert data.label_names == ("healthy", "ill")
        assert data.labels.tolist() == 30 * [0] + 30 * [1]
        assert data.names[0].startswith("healthy/")
        assert data.window == (0, 4095)
        assert data.pixels(0).dtype == np.uint16
        assert [task.protocols for task in tasks] == [
            ("linear", "knn"),
            ("fine-tuned",),
        ]
        assert len(pool) == len(data.split("train")) == 42
        assert {*data.split("val").labels} == {*data.split("test").labels} == {0, 1}

    def test_of_images_and_masks(self, tmp_path, load) -> None:
        for name in ("Images", "Masks"):
            (tmp_path / name).mkdir()
        for number in range(20):
            pixels = scan(1, number)
            cv2.imwrite(str(tmp_path / "Images" / f"{number}.png"), pixels)
            white = 255 * (pixels > 2000).astype(np.uint8)
            cv2.imwrite(str(tmp_path / "Masks" / f"{number}.bmp"), white)
        _, tasks = load(tmp_path)
        assert [task.protocols for task in tasks] == [
            ("dense",),
            ("frozen U-Net", "U-Net"),
        ]
        data = tasks[0].data
        for index in range(20):
            assert (data.mask(index) == (data.pixels(index) > 2000)).all()
        (tmp_path / "Masks" / "7.bmp").unlink()
        with pytest.raises(SystemExit, match=r"1 of 20 images have no mask.*7\.png"):
            load(tmp_path)

    def test_names_with_dots(self, tmp_path, load) -> None:
        """Found: all of 1.2.840.N.png got one mask."""
        for name in ("images", "masks"):
            (tmp_path / name).mkdir()
        for number in range(20):
            white = np.full((20, 20), 255 * (number % 2), np.uint8)
            for name in ("images", "masks"):
                cv2.imwrite(str(tmp_path / name / f"1.2.840.{number}.png"), white)
        data = load(tmp_path)[1][0].data
        for index in range(20):
            assert (data.mask(index) == (data.pixels(index) > 0)).all()
        # DICOM files are called by numbers alone.
        for number in range(20):
            image = np.full((20, 20), 4000 * (number % 2), np.uint16)
            (tmp_path / f"images/1.2.840.{number}.png").unlink()
            save_slice(tmp_path / f"images/1.2.840.{number}", image, BitsStored=12)
        data = load(tmp_path)[1][0].data
        for index in range(20):
            assert (data.mask(index) == (data.pixels(index) > 0)).all()
        cv2.imwrite(str(tmp_path / "masks/1.2.840.3.bmp"), white)
        with pytest.raises(SystemExit, match=r"several masks named 1\.2\.840\.3"):
            load(tmp_path)

    def test_folders_that_are_no_classes(self, classes, tmp_path, load) -> None:
        (classes / ".ipynb_checkpoints").mkdir()
        assert load(classes)[1][0].data.label_names == ("healthy", "ill")
        (tmp_path / "sets").mkdir()
        classes.rename(tmp_path / "sets/train")
        (tmp_path / "sets/test").mkdir()
        with pytest.raises(SystemExit, match="are splits, not classes"):
            load(tmp_path / "sets")

    def test_of_volumes(self, tmp_path, load) -> None:
        for name in ("images", "masks"):
            (tmp_path / name).mkdir()
        for number in range(12):
            volume = np.random.default_rng(number).normal(50, 20, (12, 14, 16))
            for name, array in (("images", volume), ("masks", volume > 60)):
                image = nibabel.Nifti1Image(array.astype(np.float32), np.eye(4))
                nibabel.save(image, tmp_path / name / f"{number}.nii.gz")
        _, tasks = load(tmp_path, cube=(12, 12, 12), window=("percentiles",))
        data = tasks[0].data
        assert tasks[0].protocols == ("dense",)
        assert data.window == "percentiles"
        assert data.pixels(3).shape == data.mask(3).shape == (16, 14, 12)


class TestTables:
    def write(self, folder: Path, **columns) -> Path:
        paths = sorted(path.relative_to(folder) for path in folder.rglob("*.*"))
        table = pd.DataFrame({"Path": paths, **columns})
        table.to_csv(folder / "scans.csv", index=False)
        return folder / "scans.csv"

    def test_labels_patients_and_splits(self, classes, load) -> None:
        splits = np.resize(["train", "train", "val", "test"], 60)
        labels, patients = np.arange(60) // 4 % 2, np.arange(60)
        path = self.write(classes, label=labels, patient_id=patients, split=splits)
        _, tasks = load(path)
        data = tasks[0].data
        assert data.splits.tolist() == splits.tolist()
        assert data.labels.tolist() == labels.tolist()
        assert data.patients.tolist() == patients.astype(str).tolist()

    def test_masks_beside_labels(self, classes, load) -> None:
        mask = cv2.imencode(".png", np.eye(64, dtype=np.uint8))[1].tobytes()
        (classes.parent / "mask").write_bytes(mask)
        path = self.write(classes, label=np.arange(60) % 2, mask=60 * ["../mask"])
        _, tasks = load(path)
        asked = [protocol for task in tasks for protocol in task.protocols]
        assert asked[:4] == ["linear", "knn", "fine-tuned", "dense"]

    def test_other_labels_are_other_data(self, classes, load) -> None:
        """Found: corrected labels were not evaluated again."""
        from results import known_of

        labels = np.arange(60) % 2
        one = known_of(load(self.write(classes, label=labels))[1][0].data)
        (classes / "scans.csv").unlink()
        labels[[0, 1]] = labels[[1, 0]]
        assert known_of(load(self.write(classes, label=labels))[1][0].data) != one

    @pytest.mark.parametrize(
        ("columns", "message"),
        [
            ({}, "neither labels nor masks; expected a folder"),
            ({"label": [*(59 * ["a"]), "b"]}, "no image of b"),
            ({"label": np.arange(60) % 2, "split": 60 * ["train"]}, "none is in"),
        ],
    )
    def test_errors(self, classes, load, columns, message) -> None:
        with pytest.raises(SystemExit, match=message):
            load(self.write(classes, **columns))

    def test_no_column_of_images(self, tmp_path, load) -> None:
        pd.DataFrame({"name": ["a.png"]}).to_csv(tmp_path / "a.csv", index=False)
        with pytest.raises(SystemExit, match="no column image, path, file"):
            load(tmp_path / "a.csv")


@pytest.mark.parametrize("inside", [[], ["a.png"], ["one/a.png"]])
def test_other_folders_are_errors(tmp_path, load, inside: list[str]) -> None:
    for name in inside:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / name), scan(0, 0))
    with pytest.raises(SystemExit, match="expected a folder of folders"):
        load(tmp_path)


@pytest.mark.parametrize(
    "names", [("images", "labels"), ("imgs", "masks"), ("image", "mask")]
)
def test_images_and_masks_are_no_classes(tmp_path, load, names) -> None:
    """Found: images were told from masks, without a word."""
    for name in names:
        (tmp_path / name).mkdir()
        for number in range(20):
            cv2.imwrite(str(tmp_path / name / f"{number}.png"), scan(0, number))
    with pytest.raises(SystemExit, match="are images and masks, not classes"):
        load(tmp_path)


def test_window(load, capsys) -> None:
    from command import parse

    assert parse(["--window", "percentiles"], "").settings.window == ("percentiles",)
    with pytest.raises(SystemExit):
        parse(["--window", "0", "white"], "")
    assert "two numbers or the word percentiles, got 0 white" in capsys.readouterr().err


@pytest.mark.rare
def test_five_minutes_from_a_folder_to_a_table(classes, tmp_path) -> None:
    started = time.monotonic()
    options = "--window 0 4095 --batch-size 16 --threads 1 --seeds 0".split()
    done = subprocess.run(
        [sys.executable, EXAMPLES / "compare", "--data", classes, *options]
        + ["--out", tmp_path / "results"],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - started < 300
    assert "| scans | linear | AUC |" in done.stdout
    summary = pd.read_csv(tmp_path / "results/summary.csv")
    assert {"di", "dir", "dira", "random"} <= {*summary["stage"]}
    assert summary["mean"].between(0, 1).all()
    assert (tmp_path / "results/restored.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["benign/b (1).png", "benign/b (1)_mask.png", "ill/i.png"], r"b \(1\)_mask"),
        (["a/images/1.png", "a/masks/1.png", "b/images/1.png"], r"masks/1\.png"),
        (["scans/1.png", "labelsTr/1.png"], "are images and masks"),
        (["CXR_png/1.png", "ManualMask/1.png"], "are images and masks"),
        (["train_set/1.png", "test_set/1.png"], "are splits, not classes"),
    ],
)
def test_layouts_of_public_sets(tmp_path, load, files, message) -> None:
    """Found: masks were taken for images, and folders of splits for classes."""
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(tmp_path / name), scan(0, 0))
    with pytest.raises(SystemExit, match=message):
        load(tmp_path)


def test_what_is_read_is_said(classes, load, capsys, monkeypatch) -> None:
    monkeypatch.chdir(classes)
    _, tasks = load(Path("."))
    assert "classes healthy (30), ill (30)" in capsys.readouterr().out
    # Found: the task had no name, and its rows were lost.
    assert tasks[0].name == "scans"


def test_columns_under_other_names(tmp_path, classes, load, capsys) -> None:
    """Found: "Patient ID" was ignored without a word, so that images were split."""
    paths = sorted(path.relative_to(classes) for path in classes.rglob("*.*"))
    table = pd.DataFrame({"File Name": paths, "Class": np.arange(60) // 2 % 2})
    table = table.assign(**{"Patient ID": np.arange(60) // 2, "age": 50})
    table.to_csv(classes / "scans.csv", index=False)
    data = load(classes / "scans.csv")[1][0].data
    assert data.patients.tolist() == [str(number) for number in np.arange(60) // 2]
    assert "not used: age" in capsys.readouterr().out


def test_one_class(tmp_path, classes, load) -> None:
    """Found: all of it was trained and evaluated before an error of pandas."""
    path = TestTables().write(classes, label=60 * ["a"])
    with pytest.raises(SystemExit, match="all images are of one class, a"):
        load(path)


def test_files_that_change_are_other_data(classes, load) -> None:
    """Found: tables of the old images were shown again."""
    from results import known_of

    one = known_of(load(classes)[1][0].data)
    cv2.imwrite(str(classes / "ill/4.png"), 4095 - scan(1, 4))
    assert known_of(load(classes)[1][0].data) != one


def test_masks_that_are_drawn_again_are_other_data(tmp_path, load) -> None:
    """Found: one that changed behind its first 64 KiB kept its results."""
    from results import known_of

    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
        for number in range(20):
            image = np.zeros((300, 300), np.uint8)
            image[:100] = 255
            cv2.imwrite(str(tmp_path / name / f"{number}.bmp"), image)
    one = known_of(load(tmp_path)[1][0].data)
    # By another way to the same files it is the same data.
    assert known_of(load(tmp_path / "images/..")[1][0].data) == one
    image[:120] = 255  # BMP files start with the last row
    cv2.imwrite(str(tmp_path / "masks/19.bmp"), image)
    assert known_of(load(tmp_path)[1][0].data) != one


def test_masks_are_looked_at_before_hours_of_training(tmp_path, load) -> None:
    """Found: one of another size, or of several values, ended a run after training."""
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
        for number in range(20):
            white = np.full((20, 20), 255 * (number % 2), np.uint8)
            cv2.imwrite(str(tmp_path / name / f"{number}.png"), white)
    load(tmp_path)
    for wrong in (np.zeros((10, 10), np.uint8), np.arange(400, dtype=np.uint8)):
        cv2.imwrite(str(tmp_path / "masks/7.png"), wrong.reshape(-1, 10))
        with pytest.raises(SystemExit, match=r"7\.png and its mask cannot be used"):
            load(tmp_path)


class TestPatientsAndColumns:
    def test_many_folders_inside_are_patients(self, tmp_path, load, capsys) -> None:
        """Found: 17 of 20 patients were in training and in test."""
        for label, name in enumerate(("healthy", "ill")):
            for patient in range(15):
                inside = tmp_path / name / f"{name}{patient}"
                inside.mkdir(parents=True)
                for number in range(3):
                    pixels = scan(label, 3 * patient + number)
                    cv2.imwrite(str(inside / f"{number}.png"), pixels)
        data = load(tmp_path)[1][0].data
        assert (
            "the 30 folders inside, such as healthy0, are taken"
            in capsys.readouterr().out
        )
        splits = pd.Series(data.splits).groupby(data.patients).nunique()
        assert (splits == 1).all()
        assert len(splits) == 30

    def test_folders_of_studies(self, tmp_path, load, capsys) -> None:
        """Found: two studies of a patient were in training and in test."""
        for label, name in enumerate(("healthy", "ill")):
            for number in range(36):
                inside = tmp_path / name / f"{name}{number // 3}" / f"study{number % 3}"
                inside.mkdir(parents=True)
                cv2.imwrite(str(inside / "1.png"), scan(label, number))
        data = load(tmp_path)[1][0].data
        assert "the 24 folders inside, such as healthy0," in capsys.readouterr().out
        assert {*data.patients} == {
            f"{n}{i}" for n in ("healthy", "ill") for i in range(12)
        }

    def test_columns_that_look_alike(self, classes, load, tmp_path) -> None:
        """Found: `label_2` was trained on in place of `label`."""
        rows = pd.DataFrame(
            {
                "image": [f"{p}" for p in sorted(classes.rglob("*.*"))],
                "label": 30 * ["a"] + 30 * ["b"],
            }
        )
        path = tmp_path / "table.csv"
        rows.assign(label_2=rows["label"].map({"a": "x", "b": "y"})).to_csv(path)
        assert load(path)[1][0].data.label_names == ("a", "b")
        rows.assign(**{"label (%)": 0.5}).to_csv(path)
        with pytest.raises(SystemExit, match=r"which column is meant, 'label' or"):
            load(path)
