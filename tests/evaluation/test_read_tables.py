"""Odd tables: a right result, or an error with the cure."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from bounded import BOUNDED
from dicom_files import save_series
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lightly_dira.data import VolumeFiles
from lightly_dira.evaluation.labelled import Samples
from lightly_dira.evaluation.manifest import Manifest
from lightly_dira.evaluation.read_tables import read_table


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(4):
        Image.new("L", (20, 20), number).save(tmp_path / f"{number}.png")
    return tmp_path


class TestTables:
    def read(self, folder: Path, columns: dict[str, list], **options):
        columns = {"image": [f"{i}.png" for i in range(4)], **columns}
        pd.DataFrame(columns).to_csv(folder / "table.csv", index=False)
        return read_table(folder / "table.csv", folder, **options)

    def test_empty_labels(self, folder: Path) -> None:
        """Found: they became the class 'nan'."""
        with pytest.raises(ValueError, match=r"1 rows of .* have no label, .* row 2"):
            self.read(folder, {"label": ["a", None, "b", "b"]})

    @pytest.mark.parametrize("value", [0.7, -1, 2, None, "yes"])
    def test_findings(self, folder: Path, value) -> None:
        """Found: 0.7, -1 and 2 became 0, -1 and 2."""
        findings = {"edema": [0, 1, value, 1], "mass": [1.0, 0.0, 1.0, 0.0]}
        options = dict(labels=["edema", "mass"])
        with pytest.raises(ValueError, match=r"findings must be 0 or 1.*uncertain="):
            self.read(folder, findings, **options)

    def test_uncertain_findings(self, folder: Path) -> None:
        findings = {"edema": [0, 1, -1, None], "mass": [1, 0, 1, 0]}
        options = dict(labels=["edema", "mass"])
        expected = {"zeros": [0, 1, 0, 0], "ones": [0, 1, 1, 0], "drop": [0, 1, 0]}
        for uncertain, column in expected.items():
            data = self.read(folder, findings, uncertain=uncertain, **options)
            assert data.labels[:, 0].tolist() == column
            assert len(data.images) == len(data.labels) == len(data.splits)
        findings["edema"][0] = 0.7
        with pytest.raises(ValueError, match=r"got '0.7'"):
            self.read(folder, findings, uncertain="ones", **options)

    @pytest.mark.parametrize("word", ["Train", None, "valid"])
    def test_splits(self, folder: Path, word) -> None:
        """Found: any word was a split."""
        splits = {"split": ["train", "val", word, "test"]}
        with pytest.raises(ValueError, match=r"train, val or test|have no split"):
            self.read(folder, splits, labels=None, split="split")

    def test_missing_patients(self, folder: Path) -> None:
        """Found: a crash in a sort."""
        with pytest.raises(ValueError, match="have no patient"):
            self.read(
                folder, {"patient": [1, None, 2, 3]}, labels=None, patient="patient"
            )

    @pytest.mark.parametrize(
        ("labels", "wrong"),
        [
            (["yes", "no", "Yes", "no"], "Yes and yes .* Write them alike"),
            (["0", "1", "0.0", "1"], r"0 and 0\.0 .* Write them alike"),
            (["a", "NaN", "b", "b"], "NaN in column label .* is no class"),
            (["a", "#N/A", "b", "b"], "#N/A in column label .* is no class"),
            (["a", "?", "b", "b"], r"\? in column label .* is no class"),
            (["caf\u00e9", "cafe\u0301", "b", "b"], "with spaces and accents"),
            (["in  air", "in air", "b\u00a0c", "b"], "with spaces and accents"),
            (["0", "1", "-1", "1"], "holds -1, 0 and 1. If -1 means uncertain"),
        ],
    )
    def test_words_that_may_mean_the_same(self, folder, labels, wrong) -> None:
        """Found: each became a class of its own, in silence."""
        with pytest.raises(ValueError, match=wrong):
            self.read(folder, {"label": labels})

    def test_uncertain_classes(self, folder: Path) -> None:
        """Found: `uncertain` was ignored, and -1 became a class."""
        labels = {"label": ["0", "1", "-1", "1"]}
        with pytest.raises(ValueError, match=r"labels=\['label'\]"):
            self.read(folder, labels, uncertain="zeros")
        data = self.read(folder, labels, labels=["label"], uncertain="zeros")
        assert data.labels.tolist() == [[0], [1], [0], [1]]

    def test_splits_that_share(self, folder: Path) -> None:
        """Found: patients and files in training and test splits, in silence."""
        options = dict(labels=None, split="split")
        columns = {"split": ["train", "val", "test", "train"]}
        patients = {**columns, "patient": ["p", "q", "p", "p"]}
        with pytest.raises(ValueError, match="patient p is in test and train"):
            self.read(folder, patients, patient="patient", **options)
        files = {**columns, "image": ["0.png", "1.png", "./0.png", "2.png"]}
        with pytest.raises(ValueError, match=r"file .*0\.png is in test and train"):
            self.read(folder, files, **options)
        assert self.read(folder, columns, **options).splits.tolist() == columns["split"]

    def test_files_of_several_labels(self, folder: Path) -> None:
        """Found: one image was trained on as both."""
        columns = {"image": ["0.png", "./0.png", "1.png", "2.png"]}
        with pytest.raises(ValueError, match=r"file .*0\.png is in a and b"):
            self.read(folder, {**columns, "label": list("abab")})
        assert self.read(folder, {**columns, "label": list("aabb")}).labels.sum() == 2
        findings = {**columns, "edema": [0, 1, 0, 1], "mass": [1, 1, 0, 0]}
        with pytest.raises(ValueError, match=r"0\.png is in 0, 1 and 1, 1"):
            self.read(folder, findings, labels=["edema", "mass"])

    def test_patients_who_are_not_known(self, folder: Path) -> None:
        """Found: all of them were one patient."""
        columns = {"patient": ["p", "nan", "q", "nan"]}
        with pytest.raises(ValueError, match=r"nan in column patient .*not known"):
            self.read(folder, columns, labels=None, patient="patient")

    def test_names_stay_as_they_are(self, folder: Path) -> None:
        """Found: "001" was read as 1."""
        columns = {
            "patient": ["001", "1", "NA", "01"],
            "label": ["10", "9", "2", "010"],
        }
        data = self.read(folder, columns, patient="patient")
        assert data.patients.tolist() == ["001", "1", "NA", "01"]
        assert data.label_names == ("2", "9", "010", "10")
        assert data.labels.tolist() == [3, 1, 0, 2]

    @pytest.mark.parametrize("name", ["../0.png", "a/../../0.png", "absolute"])
    def test_names_that_leave_the_folder(self, folder: Path, name: str) -> None:
        inside = folder / "inside"
        (inside / "a").mkdir(parents=True)
        name = str(folder / "0.png") if name == "absolute" else name
        pd.DataFrame({"image": [name]}).to_csv(folder / "t.csv", index=False)
        with pytest.raises(ValueError, match="allow_outside=True"):
            read_table(folder / "t.csv", inside, labels=None)
        data = read_table(folder / "t.csv", inside, labels=None, allow_outside=True)
        assert data.pixels(0).shape == (20, 20)

    def test_manifest(self, folder: Path) -> None:
        manifest = Manifest.of(folder, "*.png")
        self.read(folder, {}, labels=None, manifest=manifest)
        Image.new("L", (20, 20), 77).save(folder / "2.png")
        with pytest.raises(ValueError, match=r"2\.png has another checksum"):
            self.read(folder, {}, labels=None, manifest=manifest)

    @settings(**BOUNDED)
    @given(
        cells=st.lists(
            st.tuples(
                st.sampled_from(["0.png", "1.png", "2.png", "", "../x.png", "9.png"]),
                st.sampled_from(["0", "1", "-1", "", "0.5", "nan", "a,b", '"']),
                st.sampled_from(["train", "val", "test", "Train", ""]),
                st.sampled_from(["001", "1", "", "NA", "é"]),
            ),
            min_size=1,
            max_size=5,
        )
    )
    def test_any_table(self, cells, folder: Path) -> None:
        table = folder / "fuzz.csv"
        columns = ["image", "finding", "split", "patient"]
        pd.DataFrame(cells, columns=columns).to_csv(table, index=False)
        options = dict(labels=["finding"], split="split", patient="patient")
        try:
            data = read_table(table, folder, **options)
        except (ValueError, FileNotFoundError) as error:
            assert str(error).startswith("read_table: ")
            bad = [
                image in ("", "../x.png", "9.png")
                or finding not in ("0", "1")
                or split not in ("train", "val", "test")
                or not patient
                for image, finding, split, patient in cells
            ]
            assert any(bad)
        else:
            found = zip(
                data.names, data.labels[:, 0], data.splits, data.patients, strict=True
            )
            assert [(a, str(b), c, d) for a, b, c, d in found] == cells


class TestReaders:
    def make_folder(self, folder, count: int = 40) -> pd.DataFrame:
        random = np.random.default_rng(0)
        rows = []
        for number in range(count):
            pixels = random.integers(0, 65535, (32, 32), dtype=np.uint16)
            Image.fromarray(pixels).save(folder / f"{number}.png")
            mask = np.zeros((32, 32), np.uint8)
            mask[: number % 32] = 255
            Image.fromarray(mask).save(folder / f"{number}-mask.png")
            rows.append(
                {
                    "image": f"{number}.png",
                    "label": "ill" if number % 3 else "healthy",
                    "mask": f"{number}-mask.png",
                    "patient": number // 4,
                }
            )
        table = pd.DataFrame(rows)
        table.to_csv(folder / "labels.csv", index=False)
        return table

    def test_spaces_around_words(self, tmp_path) -> None:
        """Found: "p0" and "p0 " were two patients, in two splits."""
        table = self.make_folder(tmp_path)
        table["patient"] = [f"p{p}{' ' * (i % 2)}" for i, p in enumerate(table.patient)]
        table["label"] = [f"{' ' * (i % 3)}{x}" for i, x in enumerate(table.label)]
        table.to_csv(tmp_path / "labels.csv", index=False)
        data = read_table(tmp_path / "labels.csv", tmp_path, patient="patient")
        assert data.label_names == ("healthy", "ill")
        rows = pd.DataFrame({"patient": data.patients, "split": data.splits})
        assert rows.groupby("patient")["split"].nunique().max() == 1
        assert rows["patient"].nunique() == 10

    def test_manifest_of_series(self, tmp_path) -> None:
        """Found: a series is a folder, which has no checksum."""
        pixels = np.zeros((3, 16, 16), np.int16)
        save_series(tmp_path / "ct", pixels)
        manifest = Manifest.of(tmp_path)
        pd.DataFrame({"image": ["ct"], "label": [0]}).to_csv(tmp_path / "a.csv")
        (tmp_path / "ct/more").mkdir()
        options = dict(spatial_dims=3, manifest=manifest)
        assert len(read_table(tmp_path / "a.csv", tmp_path, **options)) == 1
        assert VolumeFiles(tmp_path, manifest=manifest)[0][0].shape == (3, 16, 16)
        next((tmp_path / "ct").glob("*.dcm")).write_bytes(b"other")
        with pytest.raises(ValueError, match="has another checksum"):
            read_table(tmp_path / "a.csv", tmp_path, **options)

    def test_table(self, tmp_path) -> None:
        table = self.make_folder(tmp_path)
        data = read_table(
            tmp_path / "labels.csv", tmp_path, mask="mask", patient="patient"
        )
        assert data.label_names == ("healthy", "ill")
        assert data.labels.tolist() == (table.label == "ill").astype(int).tolist()
        assert data.pixels(5).dtype == np.uint16
        assert data.mask(5).sum() == 5 * 32
        by_split = {
            name: set(data.split(name).patients) for name in ("train", "val", "test")
        }
        assert {name: len(patients) for name, patients in by_split.items()} == {
            "train": 7,
            "val": 1,
            "test": 2,
        }
        assert len(set.union(*by_split.values())) == 10, "no patient is in two splits"
        image, mask = Samples(data, 16, "mask")[3]
        assert image.shape == (3, 16, 16)
        assert set(mask.unique().tolist()) <= {0, 1}

    def test_table_of_findings(self, tmp_path) -> None:
        table = self.make_folder(tmp_path, 4)
        table["nodule"], table["mass"] = [0, 1, 0, 1], [1, 1, 0, 0]
        table["fold"] = ["train", "train", "val", "test"]
        table.to_csv(tmp_path / "labels.csv")
        data = read_table(
            tmp_path / "labels.csv",
            tmp_path,
            labels=["nodule", "mass"],
            split="fold",
        )
        assert data.labels.tolist() == [[0, 1], [1, 1], [0, 0], [1, 0]]
        assert data.splits.tolist() == table.fold.tolist()

    def test_table_errors(self, tmp_path) -> None:
        self.make_folder(tmp_path, 4)
        with pytest.raises(ValueError, match="has no column cancer; it has image, l"):
            read_table(tmp_path / "labels.csv", tmp_path, labels="cancer")
        (tmp_path / "2.png").unlink()
        with pytest.raises(FileNotFoundError, match=r"1 of 4 files.*2\.png"):
            read_table(tmp_path / "labels.csv", tmp_path)


class TestOddLayouts:
    """Found: each was an error that did not say what to do, or a leak."""

    def test_a_space_before_a_number(self, tmp_path) -> None:
        (tmp_path / "a.csv").write_text("image,x\na.png, 1\nb.png, -1\nc.png,0 \n")
        for name in "abc":
            Image.new("L", (32, 32)).save(tmp_path / f"{name}.png")
        data = read_table(tmp_path / "a.csv", tmp_path, labels=["x"], uncertain="ones")
        assert data.labels.ravel().tolist() == [1, 1, 0]
        data = read_table(tmp_path / "a.csv", tmp_path, labels=["x"], uncertain="drop")
        assert data.labels.ravel().tolist() == [1, 0]

    def test_an_image_that_is_listed_twice(self, tmp_path) -> None:
        """Found: it was trained on and tested on."""
        rows = ["image,label"]
        for number in range(20):
            Image.new("L", (32, 32)).save(tmp_path / f"{number}.png")
            rows += [f"{number}.png,{number % 2}", f"./{number}.png,{number % 2}"]
        (tmp_path / "a.csv").write_text("\n".join(rows))
        for seed in range(5):
            data = read_table(tmp_path / "a.csv", tmp_path, seed=seed)
            splits = data.splits.reshape(20, 2)
            assert (splits[:, 0] == splits[:, 1]).all()


class TestPatientsAndEncodings:
    read = TestTables.read

    def test_one_image_of_two_patients(self, folder: Path) -> None:
        """Found: it came into several of the splits that were drawn."""
        images = ["0.png", "0.png", "1.png", "2.png"]
        columns = {"image": images, "label": [0, 0, 1, 1], "who": [*"abcd"]}
        said = r"file .*0\.png is in a and b.*one patient"
        with pytest.raises(ValueError, match=said):
            self.read(folder, columns, patient="who")

    @pytest.mark.parametrize("twin", ["P0", "0.0"])
    def test_patients_that_may_be_the_same(self, folder: Path, twin: str) -> None:
        who = [twin, "p0", "0", "4"]
        with pytest.raises(ValueError, match=r"would be two patients\. Write them"):
            self.read(folder, {"label": [0, 0, 1, 1], "who": who}, patient="who")

    def test_other_encodings(self, folder: Path) -> None:
        """Found: 'utf-8' codec can't decode byte."""
        path = folder / "table.csv"
        path.write_text("image,label\n0.png,gesch\u00e4digt\n", encoding="latin-1")
        with pytest.raises(ValueError, match=r"is not text in UTF-8 .*Save it so"):
            read_table(path, folder)
