"""Frozen and fine-tuned encoders of volumes."""

from __future__ import annotations

import copy
import dataclasses

import nibabel
import numpy as np
import pytest
import torch
import torchvision
from monai.inferers import sliding_window_inference
from monai.metrics import DiceMetric
from monai.networks.nets import resnet10
from torch.utils.data import TensorDataset

from lightly_dira import DiRA
from lightly_dira.evaluation.dense import dense_probe, encode_pixels
from lightly_dira.evaluation.finetuning import finetune_unet, score_unet
from lightly_dira.evaluation.labelled import LabelledImages, Samples
from lightly_dira.evaluation.networks import UNet
from lightly_dira.evaluation.probes import encode, linear_probe
from lightly_dira.evaluation.protocol import Task, evaluate
from lightly_dira.evaluation.read_volumes import read_nifti
from lightly_dira.evaluation.readers import read_medmnist, read_npz
from lightly_dira.evaluation.scores import segmentation_scores, surface_scores
from lightly_dira.transforms import read_volume

SIZE = 12, 16, 20


def balls(count: int, seed: int = 0) -> TensorDataset:
    """Bright balls in noise, with their masks."""
    generator = torch.Generator().manual_seed(seed)
    volumes = 0.3 * torch.rand(count, 1, *SIZE, generator=generator)
    grid = torch.stack(torch.meshgrid(*map(torch.arange, SIZE), indexing="ij"))
    masks = torch.zeros(count, *SIZE, dtype=torch.long)
    for volume, mask in zip(volumes, masks, strict=True):
        centre = 4 + torch.rand(3, generator=generator) * (torch.tensor(SIZE) - 8)
        mask[(grid - centre[:, None, None, None]).square().sum(0) < 16] = 1
        volume[0][mask == 1] += 0.6
    return TensorDataset(volumes, masks)


@pytest.fixture
def encoder() -> torch.nn.Module:
    torch.manual_seed(0)
    return resnet10(n_input_channels=1, feed_forward=False, widen_factor=1 / 8)


def test_pixels_are_those_of_the_voxels() -> None:
    """Maps that hold every voxel's own place are returned at those places."""
    data = balls(3)
    places = torch.stack(torch.meshgrid(*map(torch.arange, SIZE), indexing="ij"))
    numbers = torch.arange(places[0].numel()).reshape(SIZE).float()

    def maps(volumes):
        return [
            numbers.expand(len(volumes), 1, *SIZE),
            places.expand(len(volumes), -1, *SIZE),
        ]

    encoded, classes = encode_pixels(maps, data, pixels=50).tensors
    assert encoded.shape == (3, 50, 4)
    voxels = encoded[..., 0].round().long()
    assert torch.equal(classes, data.tensors[1].flatten(1).gather(1, voxels))
    expected = torch.stack(torch.unravel_index(voxels, SIZE), dim=-1)
    torch.testing.assert_close(encoded[..., 1:], expected.float(), rtol=0, atol=1e-3)


def test_probes(encoder) -> None:
    train, test = balls(12), balls(6, seed=1)
    dice = dense_probe(encode_pixels(encoder, train), encode_pixels(encoder, test))
    assert dice[1] > 0.7, "bright balls are easy"
    labels = [
        TensorDataset(d.tensors[0], torch.arange(len(d)) % 2) for d in (train, test)
    ]
    for data in labels:
        data.tensors[0][1::2] += 0.5
    scores = linear_probe(*(encode(encoder, data) for data in labels))
    assert scores["auc"] == 1


@pytest.mark.parametrize("pretrained", [False, True])
def test_unet(encoder, pretrained: bool) -> None:
    train, test = balls(12), balls(6, seed=1)
    head = DiRA(copy.deepcopy(encoder)).head if pretrained else None
    unet = finetune_unet(
        encoder, train, test, head=head, steps=40, batch_size=4, lr=3e-3
    )
    assert isinstance(unet, UNet)
    assert unet.head.spatial_dims == 3
    score = score_unet(unet, test)["dice"]
    assert score > 0.7
    # Dice as MONAI has it, of a volume larger than the window.
    volume, mask = torch.zeros(1, 1, 24, 16, 20), torch.zeros(1, 24, 16, 20)
    volume[:, :, 6:18], mask[:, 6:18] = test.tensors[0][:1], test.tensors[1][:1].float()
    with torch.no_grad():
        logits = sliding_window_inference(volume, SIZE, 2, unet, overlap=0.5)
    metric = DiceMetric(include_background=False)
    found = torch.nn.functional.one_hot(logits.argmax(1), 2).movedim(-1, 1)
    expected = torch.nn.functional.one_hot(mask.long(), 2).movedim(-1, 1)
    assert metric(found, expected).item() > 0.6


def test_sliding_window(encoder) -> None:
    """Volumes of any size, each scored as it is; one window is the whole network."""
    train, test = balls(12), balls(3, seed=1)
    unet = finetune_unet(encoder, train, test, steps=40, batch_size=4, lr=3e-3)
    whole, windowed = (score_unet(unet, test, window=w) for w in (None, SIZE))
    assert whole.keys() == windowed.keys() > {"dice", "iou", "surface distance"}
    for name, value in whole.items():
        assert windowed[name] == pytest.approx(value, abs=1e-5), name
    larger = [
        (torch.nn.functional.pad(v, (0, 7, 3, 0, 8, 1)), torch.nn.functional.pad(m, p))
        for (v, m), p in zip(test, 3 * [(0, 7, 3, 0, 8, 1)], strict=True)
    ]
    mixed = [test[0], *larger]
    scores = score_unet(unet, mixed, window=SIZE)
    assert scores["dice"] > 0.6


class TestSurfaceScores:
    """Against distances known by construction."""

    def cubes(self, shift: int) -> tuple[torch.Tensor, torch.Tensor]:
        mask = torch.zeros(1, 12, 12, 12, dtype=torch.long)
        mask[:, 3:8, 3:8, 3:8] = 1
        return mask, mask.roll(shift, dims=1)

    @pytest.mark.parametrize("shift", [0, 1, 2])
    def test_shifted(self, shift: int) -> None:
        mask, moved = self.cubes(shift)
        assert surface_scores(mask, moved)["hausdorff 95"] == shift
        apart = surface_scores(mask, moved, spacing=(2.5, 1, 1))
        assert apart["hausdorff 95"] == 2.5 * shift
        assert (surface_scores(mask, moved)["surface distance"] == 0) == (shift == 0)

    def test_nothing_found_is_the_diagonal(self) -> None:
        mask, _ = self.cubes(0)
        nothing = torch.zeros_like(mask)
        for pair in ((mask, nothing), (nothing, mask)):
            assert surface_scores(*pair)["surface distance"] == pytest.approx(
                12 * 3**0.5
            )
        both = torch.cat([mask, nothing]), torch.cat([mask, nothing])
        assert surface_scores(*both)["surface distance"] == 0, "absent: not counted"

    def test_classes_are_averaged(self) -> None:
        mask, moved = self.cubes(1)
        mask[:, 9:, 9:, 9:] = 2
        moved[:, 9:, 9:, 9:] = 2
        assert surface_scores(mask, moved)["hausdorff 95"] == 0.5

    def test_dice_is_that_of_monai(self) -> None:
        random = torch.Generator().manual_seed(0)
        masks = torch.randint(0, 3, (4, 6, 7, 8), generator=random)
        found = torch.randint(0, 3, (4, 6, 7, 8), generator=random)
        hot = [torch.nn.functional.one_hot(m, 3).movedim(-1, 1) for m in (found, masks)]
        expected = DiceMetric(include_background=False)(*hot).mean().item()
        assert segmentation_scores(masks, found)["dice"] == pytest.approx(expected)


class TestLabelledVolumes:
    def labelled(self, count: int = 24) -> LabelledImages:
        volumes, masks = (tensor.numpy() for tensor in balls(count).tensors)
        splits = np.array(["train", "train", "val", "test"])[np.arange(count) % 4]
        return LabelledImages(
            (255 * volumes[:, 0]).astype(np.uint8),
            labels=np.arange(count) // 4 % 2,
            masks=masks,
            splits=splits,
            spatial_dims=3,
        )

    def test_items_are_arrays(self) -> None:
        data = self.labelled()
        assert data[3][0] is data.images[3] or np.array_equal(
            data[3][0], data.images[3]
        )
        assert data.split("val").spatial_dims == 3

    def test_samples(self) -> None:
        data = self.labelled()
        image, mask = Samples(data, SIZE, "mask")[1]
        assert torch.equal(image, torch.from_numpy(data.images[1])[None] / 255)
        assert torch.equal(mask, torch.from_numpy(data.masks[1]))
        half = tuple(side // 2 for side in SIZE)
        image, mask = Samples(data, half, "mask", channels=2)[1]
        whole = torch.from_numpy(data.images[1])[None, None] / 255
        averaged = torch.nn.functional.avg_pool3d(whole, 2)[0]
        torch.testing.assert_close(image, averaged.expand(2, *half))
        assert mask.shape == half
        assert set(mask.unique().tolist()) == {0, 1}
        with pytest.raises(ValueError, match="one or 3 sides, got "):
            Samples(data, (8, 8))

    def test_augmentation_moves_mask_with_volume(self) -> None:
        data = self.labelled()
        augment = torchvision.transforms.v2.RandomAffine(20, translate=(0.1, 0.1))
        bright = dataclasses.replace(data, images=(255 * data.masks).astype(np.uint8))
        torch.manual_seed(0)
        volume, mask = Samples(bright, SIZE, "mask", augment=augment)[1]
        assert not torch.equal(mask, torch.from_numpy(data.masks[1]))
        assert torch.equal(volume[0].round().long(), mask), "in all slices alike"

    def test_evaluate(self, encoder) -> None:
        protocols = ("linear", "knn", "fine-tuned", "dense", "frozen U-Net", "U-Net")
        task = Task(
            "balls", self.labelled(), SIZE, protocols, (0.5,), steps=10, batch_size=4
        )
        rows = list(evaluate(task, encoder))
        assert [*dict.fromkeys(row["protocol"] for row in rows)] == list(protocols)
        assert rows == list(evaluate(task, encoder))
        metrics = {row["metric"] for row in rows if row["protocol"] == "U-Net"}
        assert metrics == {"dice", "iou", "surface distance", "hausdorff 95"}


class TestReaders:
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

    def test_nifti(self, tmp_path) -> None:
        """Volumes as `read_volume` orients them, masks with them."""
        volume = np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6)
        nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), tmp_path / "a.nii.gz")
        classes = (volume % 4).astype(np.uint8)
        nibabel.save(nibabel.Nifti1Image(classes, np.eye(4)), tmp_path / "m.nii.gz")
        path = tmp_path / "a.nii.gz"
        data = read_nifti([path], masks=[tmp_path / "m.nii.gz"], axis=None)
        assert (len(data), data.spatial_dims, data.names) == (1, 3, ["a"])
        assert np.array_equal(data.pixels(0), read_volume(path))
        assert np.array_equal(data.mask(0), data.pixels(0) % 4)
        # Files that are read when they are needed.
        paths = [tmp_path / "a.nii.gz"], [tmp_path / "m.nii.gz"]
        lazy = LabelledImages(paths[0], masks=paths[1], spatial_dims=3)
        assert np.array_equal(lazy.pixels(0), data.pixels(0))
        assert np.array_equal(lazy.mask(0), data.mask(0))
