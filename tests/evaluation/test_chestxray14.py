"""NIH ChestX-ray14, of a folder like the one that is distributed."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from lightly_dira.evaluation.chestxray14 import CHESTXRAY14, read_chestxray14


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
