"""NIH ChestX-ray14, of a folder like the one that is distributed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from lightly_dira.evaluation.chestxray14 import CHESTXRAY14, read_chestxray14
from lightly_dira.evaluation.manifest import Manifest


class TestReaders:
    def test_chestxray14(self, tmp_path) -> None:
        names = [f"{number:08d}_000.png" for number in range(30)]
        findings = ["No Finding", "Mass|Nodule", "Hernia"]
        pd.DataFrame(
            {
                "Image Index": names,
                "Finding Labels": [findings[i % 3] for i in range(30)],
                "Patient ID": [i // 2 for i in range(30)],
            }
        ).to_csv(tmp_path / "Data_Entry_2017_v2020.csv", index=False)
        (tmp_path / "train_val_list.txt").write_text("\n".join(names[:20]))
        (tmp_path / "test_list.txt").write_text("\n".join(names[20:]))
        (tmp_path / "BBox_List_2017.csv").write_text(
            "Image Index,Finding Label,Bbox [x,y,w,h],,,\n"
            f"{names[21]},Mass,10.5,20,30,40,,,\n"
        )
        folder = tmp_path / "images_001" / "images"
        folder.mkdir(parents=True)
        for name in names[:-1]:
            Image.new("L", (64, 64), 128).save(folder / name)
        data = read_chestxray14(tmp_path)
        assert len(data) == 29, "one is not there"
        assert data.label_names == CHESTXRAY14
        assert data.labels[0].sum() == 0
        named = [CHESTXRAY14[i] for i in np.flatnonzero(data.labels[1])]
        assert named == ["Mass", "Nodule"]
        assert [len(data.split(name)) for name in ("train", "val", "test")] == [
            18,
            2,
            9,
        ]
        own = {name: set(data.split(name).patients) for name in ("train", "val")}
        assert not own["train"] & own["val"]
        assert data.boxes[21].tolist() == [[10.5, 20, 30, 40]]
        assert data.box_labels[21].tolist() == ["Mass"]
        assert sum(map(len, data.boxes)) == 1
        assert data.pixels(0).shape == (64, 64)

    def test_chestxray14_without_images(self, tmp_path) -> None:
        with pytest.raises(FileNotFoundError, match=r"no Data_Entry_2017\*\.csv below"):
            read_chestxray14(tmp_path)


class TestFolder:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        names = [f"{number:08d}_000.png" for number in range(12)]
        columns = {"Image Index": names, "Finding Labels": "No Finding"}
        table = pd.DataFrame({**columns, "Patient ID": range(12)})
        table.to_csv(tmp_path / "Data_Entry_2017.csv", index=False)
        (tmp_path / "train_val_list.txt").write_text("\n".join(names[:8]))
        (tmp_path / "test_list.txt").write_text("\n".join(names[8:]))
        (tmp_path / "BBox_List_2017.csv").write_text(
            "Image Index,Finding Label,Bbox [x,y,w,h],,,\n"
            f"{names[9]},Infiltrate,1,2,3,4,,,\n"
        )
        for name in names:
            Image.new("L", (32, 32), 128).save(tmp_path / name)
        return tmp_path

    def test_boxes_have_the_names_of_labels(self, folder: Path) -> None:
        """The NIH writes of infiltrates in one table, of infiltrations in another."""
        data = read_chestxray14(folder)
        (number,) = (i for i, boxes in enumerate(data.box_labels) if len(boxes))
        assert data.names[number] == "00000009_000.png"
        assert data.box_labels[number].tolist() == ["Infiltration"]
        assert "Infiltration" in data.label_names

    def test_manifest(self, folder: Path) -> None:
        manifest = Manifest.of(folder, "*.png")
        assert len(read_chestxray14(folder, manifest=manifest)) == 12
        Image.new("L", (32, 32), 7).save(folder / "00000003_000.png")
        with pytest.raises(ValueError, match=r"00000003_000\.png has another checksum"):
            read_chestxray14(folder, manifest=manifest)

    def test_no_images(self, folder: Path) -> None:
        for path in folder.glob("*.png"):
            path.rename(path.with_stem("unlisted-" + path.stem))
        with pytest.raises(FileNotFoundError, match="none of the listed images"):
            read_chestxray14(folder)
