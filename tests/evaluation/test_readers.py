from __future__ import annotations

import dataclasses
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from lightly_dira.evaluation.chestxray14 import CHESTXRAY14, read_chestxray14
from lightly_dira.evaluation.labelled import Samples
from lightly_dira.evaluation.manifest import Manifest
from lightly_dira.evaluation.read_tables import read_table
from lightly_dira.evaluation.read_volumes import read_mni152, read_nifti
from lightly_dira.evaluation.readers import read_medmnist, read_npz


class TestReaders:
    def test_npz_of_medmnist(self, tmp_path) -> None:
        arrays = {}
        for number, split in enumerate(("train", "val", "test"), start=1):
            arrays[f"{split}_images"] = np.full((number, 28, 28), number, np.uint8)
            arrays[f"{split}_labels"] = np.full((number, 1), number % 2)
        np.savez(tmp_path / "pneumoniamnist.npz", **arrays)
        data = read_npz(tmp_path / "pneumoniamnist.npz")
        assert data.splits.tolist() == ["train", "val", "val", "test", "test", "test"]
        assert data.labels.tolist() == [1, 0, 0, 1, 1, 1]
        assert data.split("test").pixels(0).max() == 3

    def test_medmnist_finds_what_was_downloaded(self, tmp_path, monkeypatch) -> None:
        import medmnist

        arrays = {}
        for split in ("train", "val", "test"):
            arrays[f"{split}_images"] = np.zeros((2, 28, 28), np.uint8)
            arrays[f"{split}_labels"] = np.array([[0], [1]])
        np.savez(tmp_path / "pneumoniamnist.npz", **arrays)
        # The sum of the real file, which cannot be downloaded here.
        monkeypatch.setattr(
            medmnist.dataset.MedMNIST, "download", lambda self: None, raising=True
        )
        data = read_medmnist("pneumoniamnist", folder=tmp_path)
        assert len(data) == 6
        assert data.label_names == ("normal", "pneumonia")
        with pytest.raises(ValueError, match="'nothing' is not a set"):
            read_medmnist("nothing")

    def test_npz_of_arrays(self, tmp_path) -> None:
        path = tmp_path / "scans.npz"
        np.savez(
            path,
            images=np.zeros((3, 32, 32), np.uint8),
            tb_label=[0, 1, 1],
            patient_id=["a", "b", "b"],
            split=["train", "test", "test"],
            bbox_image_index=[1, 1],
            bbox_xywh=[[1, 2, 3, 4], [5, 6, 7, 8]],
            bbox_label=["Mass", "Nodule"],
        )
        data = read_npz(path, label="tb_label")
        assert data.labels.tolist() == [0, 1, 1]
        assert [len(boxes) for boxes in data.boxes] == [0, 2, 0]
        assert data.box_labels[1].tolist() == ["Mass", "Nodule"]
        with pytest.raises(ValueError, match="no array 'other'"):
            read_npz(path, label="other")
        np.savez(path, nothing=np.zeros(3))
        with pytest.raises(ValueError, match="expected arrays `images`"):
            read_npz(path)

    def test_npz_runs_no_code(self, tmp_path) -> None:
        np.savez(tmp_path / "bad.npz", images=np.array([{}], dtype=object))
        with pytest.raises(ValueError, match="allow_pickle"):
            read_npz(tmp_path / "bad.npz")

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

    def test_nifti(self, tmp_path) -> None:
        """Slices are upright whatever the axes of the file, and of its type."""
        volume = np.arange(16 * 18 * 20, dtype=np.int16).reshape(16, 18, 20) - 1000
        turned = nibabel.Nifti1Image(volume, np.diag([-1, 1, 1, 1]))  # to the left
        nibabel.save(turned, tmp_path / "a.nii.gz")
        nibabel.save(
            nibabel.Nifti1Image(volume[::-1].copy(), np.eye(4)), tmp_path / "b.nii"
        )
        mask = (volume > 0).astype(np.uint8)
        nibabel.save(nibabel.Nifti1Image(mask, np.eye(4)), tmp_path / "mask.nii.gz")
        data = read_nifti([tmp_path / "a.nii.gz", tmp_path / "b.nii"], axis=1)
        assert len(data) == 36
        assert data.pixels(0).dtype == np.int16
        assert data.pixels(0).shape == (20, 16)
        for index in range(18):
            assert np.array_equal(data.pixels(index), data.pixels(18 + index))
        # The head is above the feet, and the right hand on the right.
        highest = volume[:, 4, -1]
        assert np.array_equal(data.pixels(4)[0], highest[::-1])
        assert data.names[21] == "b-003"
        assert set(data.patients) == {"a", "b"}

        paths = [tmp_path / "b.nii"]
        masked = read_nifti(paths, masks=[tmp_path / "mask.nii.gz"], window=(-1000, 0))
        assert masked.mask(19).sum() == mask[:, :, 19].sum()
        image, _ = Samples(masked, 16, "mask")[0]
        assert 0 <= image.min() < image.max() <= 1
        with pytest.raises(ValueError, match=r"DiRATransform\(..., window=") as error:
            Samples(dataclasses.replace(masked, window=None), 16, "mask")[0]
        assert "int16" in str(error.value)

    def test_nifti_errors(self, tmp_path) -> None:
        for name, shape in (("a", (16, 16, 4)), ("b", (16, 16, 5)), ("c", (16, 16))):
            image = nibabel.Nifti1Image(np.zeros(shape, np.uint8), np.eye(4))
            nibabel.save(image, tmp_path / f"{name}.nii")
        a, b, c = (tmp_path / f"{name}.nii" for name in "abc")
        with pytest.raises(ValueError, match="different grids"):
            read_nifti([a], masks=[b])
        with pytest.raises(ValueError, match="three dimensions"):
            read_nifti([c])

    def test_mni152_has_room_between_splits(self) -> None:
        data = read_mni152()
        rows = {
            name: {
                row.tobytes()
                for image in data.split(name).images
                for row in image
                if np.count_nonzero(row) > 20
            }
            for name in ("train", "val", "test")
        }
        assert not rows["train"] & rows["val"]
        assert not rows["train"] & rows["test"]
        assert not rows["val"] & rows["test"]


class TestOddLayouts:
    """Found: each was an error that did not say what to do, or a leak."""

    images = np.zeros((6, 32, 32), np.uint8)

    @pytest.mark.parametrize("shape", [(6,), (6, 1), (6, 3), None])
    def test_labels_of_medmnist(self, shape, tmp_path) -> None:
        arrays = {f"{split}_images": self.images for split in ("train", "test")}
        if shape is not None:
            labels = np.arange(np.prod(shape)).reshape(shape) % 2
            arrays |= {f"{split}_labels": labels for split in ("train", "test")}
        np.savez(tmp_path / "a.npz", **arrays)
        data = read_npz(tmp_path / "a.npz")
        assert len(data.split("test")) == 6
        if shape is None:
            assert data.labels is None
        else:
            assert data.labels.shape == ((12, 3) if shape[1:] == (3,) else (12,))

    def test_labels_of_one_split_alone(self, tmp_path) -> None:
        arrays = {f"{split}_images": self.images for split in ("train", "test")}
        np.savez(tmp_path / "a.npz", **arrays, train_labels=np.zeros(6))
        with pytest.raises(ValueError, match="has labels, but not of test"):
            read_npz(tmp_path / "a.npz")

    @pytest.mark.parametrize("key", ["images", "train_images"])
    def test_an_axis_of_one(self, key: str, tmp_path) -> None:
        masks = {"masks": self.images[..., None]} if key == "images" else {}
        np.savez(tmp_path / "a.npz", **{key: self.images[..., None]}, **masks)
        data = read_npz(tmp_path / "a.npz")
        assert data[0][0].size == (32, 32)
        if masks:
            assert Samples(data, 16, "mask")[0][1].shape == (16, 16)

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


class TestArrays:
    @pytest.mark.parametrize("kind", ["npy", "text", "cut", "pickled"])
    def test_other_files(self, kind: str, tmp_path: Path) -> None:
        path = tmp_path / "file.npz"
        if kind == "npy":
            with path.open("wb") as file:
                np.save(file, np.zeros(3))
        elif kind == "text":
            path.write_text("images")
        else:
            values = np.array([{}]) if kind == "pickled" else np.zeros((9, 32, 32))
            np.savez_compressed(path, images=values)
        if kind == "cut":
            path.write_bytes(path.read_bytes()[:-60])
        with pytest.raises(ValueError, match=r"read_npz: .*savez"):
            read_npz(path)

    def test_manifest(self, tmp_path: Path) -> None:
        path = tmp_path / "file.npz"
        np.savez(path, images=np.zeros((2, 32, 32), np.uint8))
        manifest = Manifest.of(tmp_path)
        assert len(read_npz(path, manifest=manifest)) == 2
        np.savez(path, images=np.ones((2, 32, 32), np.uint8))
        with pytest.raises(ValueError, match="another checksum"):
            read_npz(path, manifest=manifest)
