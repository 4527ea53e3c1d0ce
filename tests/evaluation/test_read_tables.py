"""Odd tables: a right result, or an error with the cure."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from bounded import BOUNDED
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

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
