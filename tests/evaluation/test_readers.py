"""Data sets as arrays in files of NumPy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lightly_dira.evaluation.labelled import Samples
from lightly_dira.evaluation.manifest import Manifest
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

    def test_npz_with_padding(self, tmp_path) -> None:
        random = np.random.default_rng(0)
        images = random.integers(1, 255, (3, 12, 12, 12), dtype=np.uint8)
        masks = images % 3
        shape = np.array([[12, 12, 12], [8, 9, 10], [5, 12, 6]], np.uint8)
        offset = np.array([[0, 0, 0], [2, 1, 1], [3, 0, 4]], np.uint8)
        path = tmp_path / "volumes.npz"
        arrays = dict(images=images, labels=masks, shape=shape, offset=offset)
        np.savez(path, **arrays, subject=[7, 7, 9], split=[0, 0, 2])
        data = read_npz(path, mask="labels", patient="subject", spatial_dims=3)
        assert [data.pixels(i).shape for i in range(3)] == [*map(tuple, shape.tolist())]
        assert np.array_equal(data.pixels(2), images[2, 3:8, :, 4:10])
        assert np.array_equal(data.mask(2), masks[2, 3:8, :, 4:10])
        assert data.splits.tolist() == ["train", "train", "test"]
        assert data.patients.tolist() == [7, 7, 9]
        assert data.labels is None
        with pytest.raises(ValueError, match=r"\(12, 12, 12\). Volumes: pass spatial"):
            read_npz(path)
        with pytest.raises(ValueError, match="no array 'segmentation'"):
            read_npz(path, mask="segmentation", spatial_dims=3)
        np.savez(path, **arrays, split=[0, 1, 3])
        with pytest.raises(ValueError, match=r"0, 1, 2 or words, got \[0 1 3\]"):
            read_npz(path, spatial_dims=3)

    def test_images_are_no_volumes(self, tmp_path) -> None:
        path = tmp_path / "images.npz"
        np.savez(path, images=np.zeros((2, 28, 28, 3), np.uint8))
        assert read_npz(path).spatial_dims == 2
        with pytest.raises(ValueError, match=r"expected volumes .* leave spatial_dims"):
            read_npz(path, spatial_dims=3)

    def test_medmnist(self, tmp_path, monkeypatch) -> None:
        import medmnist

        arrays = {}
        for split in ("train", "val", "test"):
            arrays[f"{split}_images"] = np.zeros((2, 64, 64, 64), np.uint8)
            arrays[f"{split}_labels"] = np.array([[0], [1]])
        np.savez(tmp_path / "adrenalmnist3d_64.npz", **arrays)
        # The sum of the real file, which cannot be downloaded here.
        monkeypatch.setattr(medmnist.dataset.MedMNIST, "download", lambda self: None)
        data = read_medmnist("adrenalmnist3d", size=64, folder=tmp_path)
        assert (len(data), data.spatial_dims) == (6, 3)
        assert data.label_names == ("normal", "hyperplasia")
        with pytest.raises(ValueError, match=r"has the sizes \(28, 64\), got 128"):
            read_medmnist("adrenalmnist3d", size=128)


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
