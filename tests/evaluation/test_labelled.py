"""Labelled images and volumes, and samples of them."""

from __future__ import annotations

import dataclasses

import nibabel
import numpy as np
import pandas as pd
import pytest
import torch
import torchvision
from PIL import Image
from small import SIZE, bars, labelled_balls
from torchvision.transforms import v2

from lightly_dira.data.white import Stored
from lightly_dira.evaluation.labelled import LabelledImages, Samples


class TestLabelledImages:
    def test_selections_keep_what_belongs_together(self) -> None:
        data = bars(16)
        test = data.split("test")
        chosen = np.flatnonzero(data.splits == "test")
        assert test.names == [str(number) for number in chosen]
        for index, number in enumerate(chosen):
            assert np.array_equal(test.pixels(index), data.images[number])
            assert np.array_equal(test.mask(index), data.masks[number])
            assert np.array_equal(test.boxes[index], data.boxes[number])
        assert test.labels.tolist() == data.labels[chosen].tolist()

    def test_items_are_those_of_lightly(self) -> None:
        image, label, name = bars(16).with_transform(lambda image: image.size)[1]
        assert (image, label, name) == ((32, 32), 1, "1")

    def test_unequal_lengths(self) -> None:
        with pytest.raises(ValueError, match="4 images need as many labels, got 3"):
            LabelledImages(np.zeros((4, 32, 32), np.uint8), labels=np.zeros(3))

    def test_images_of_pil(self) -> None:
        """Found: numbers in a palette were grey values, and CMYK was four colours."""
        red = Image.new("RGB", (32, 32), (255, 0, 0))
        palette = red.convert("P")
        images = [red, palette, red.convert("CMYK"), red.convert("RGBA")]
        samples = Samples(LabelledImages(images, labels=[0] * 4), 16)
        for image, _ in samples:
            torch.testing.assert_close(image, samples[0][0])
        # In a mask the numbers are classes.
        mask = Image.fromarray(np.eye(32, dtype=np.uint8)).convert("P")
        mask.putpalette([0, 0, 0, 255, 0, 0])
        data = LabelledImages([red], masks=[mask])
        assert data.mask(0).tolist() == np.asarray(mask).tolist()

    def test_what_fails_is_named(self) -> None:
        """Found: of a thousand images, an error did not say which."""
        images = [np.zeros((32, 32)), np.full((32, 32), np.nan)]
        data = LabelledImages(images, labels=[0, 1], names=["right", "wrong"])
        with pytest.raises(ValueError, match=r"^wrong: DiRATransform: .*NaN"):
            Samples(data, 16)[1]

        def broken(image):
            raise KeyError("bone")

        with pytest.raises(RuntimeError, match=r"^right: KeyError\('bone'\)"):
            data.with_transform(broken)[0]

    def test_masks_of_volumes_on_another_grid(self, tmp_path) -> None:
        """Found: each file was turned by its own affine; Dice with the object: 0.04."""
        volume = np.zeros((20, 20, 20), np.uint8)
        volume[2:7, 3:8, 4:9] = 1
        paths = {}
        for name, affine in (("lps", np.diag([-1, -1, 1, 1])), ("ras", np.eye(4))):
            paths[name] = tmp_path / f"{name}.nii.gz"
            nibabel.save(nibabel.Nifti1Image(volume, affine), paths[name])
        turned = tmp_path / "turned.nii.gz"
        image = nibabel.as_closest_canonical(nibabel.load(paths["lps"]))
        nibabel.save(image, turned)
        np.save(tmp_path / "plain.npy", volume)

        def mask(image, mask) -> np.ndarray:
            data = LabelledImages([image], masks=[mask], spatial_dims=3)
            assert data.pixels(0).shape == volume.shape
            return data.mask(0)

        with pytest.raises(ValueError, match=r"ras\.nii\.gz lie on different grids"):
            mask(paths["lps"], paths["ras"])
        # The same grid, stored in another order.
        right = LabelledImages([turned], spatial_dims=3).pixels(0)
        assert np.array_equal(mask(paths["lps"], turned), right)
        # Which do not tell where they lie.
        assert mask(tmp_path / "plain.npy", paths["lps"]).sum() == 125

    def test_masks_that_were_scaled(self, tmp_path) -> None:
        """Found: 1.0000000591 was taken for a probability."""
        image = nibabel.Nifti1Image(np.eye(8)[None] * np.ones((8, 1, 1)), np.eye(4))
        image.set_data_dtype(np.uint8)
        nibabel.save(image, tmp_path / "mask.nii")
        path = tmp_path / "mask.nii"
        data = LabelledImages([path], masks=[path], spatial_dims=3)
        assert set(np.unique(data.mask(0))) == {0, 1}

    @pytest.mark.parametrize("channels", [2, 3, 4])
    def test_modalities_are_no_alpha(self, channels: int) -> None:
        """Found: of 2 or 4 modalities the last was left out of their mean."""
        volume = np.zeros((channels, 8, 8, 8), np.uint8)
        volume[-1] = 255
        data = LabelledImages([volume], labels=np.zeros(1), spatial_dims=3)
        assert Samples(data, 8)[0][0].mean() == pytest.approx(1 / channels)

    def test_unknown_split(self) -> None:
        with pytest.raises(ValueError, match=r"no split 'other'; there are \['test'"):
            bars(16).split("other")

    def test_samples_of_16_bits(self) -> None:
        grey = np.linspace(0, 65535, 32 * 32, dtype=np.uint16).reshape(32, 32)
        data = LabelledImages([grey], labels=np.array([1]))
        image, label = Samples(data, 32, channels=1)[0]
        assert label == 1
        np.testing.assert_allclose(image[0], grey / 65535, atol=1e-6)

    def test_augmentation_moves_mask_with_image(self) -> None:
        data = bars(16)
        augment = v2.RandomHorizontalFlip(p=1)
        plain = Samples(data, 32, "mask")
        flipped = Samples(data, 32, "mask", augment=augment)
        for before, after in zip(plain[3], flipped[3], strict=True):
            assert torch.equal(before.flip(-1), after)
            assert type(after) is torch.Tensor

    def test_unknown_target(self) -> None:
        data = LabelledImages(np.zeros((1, 32, 32), np.uint8))
        with pytest.raises(ValueError, match="'mask' is not among what is known"):
            Samples(data, 32, "mask")


class TestMasks:
    """Found: each of these was scored in silence."""

    images = np.zeros((1, 32, 32), np.uint8)

    @pytest.mark.parametrize("value", [0.4, 255, -1, np.nan])
    def test_of_what_are_not_classes(self, value: float) -> None:
        masks = np.zeros((1, 32, 32), np.float32)
        masks[0, 3, 4] = value
        data = LabelledImages(self.images, masks=masks)
        with pytest.raises(ValueError, match=r"image 0 holds .*values are classes"):
            Samples(data, 16, "mask")[0]

    @pytest.mark.parametrize("dims", [2, 3])
    def test_of_another_size(self, dims: int) -> None:
        images = np.zeros((1,) + (32,) * dims, np.uint8)
        masks = np.zeros((1,) + (16,) * dims, np.uint8)
        data = LabelledImages(images, masks=masks, spatial_dims=dims)
        with pytest.raises(ValueError, match=r"image 0 has .* and its mask"):
            Samples(data, 16, "mask")[0]

    def test_with_an_axis_of_one(self) -> None:
        grey = np.full((1, 32, 32, 1), 7, np.uint8)
        data = LabelledImages(grey, masks=grey > 0)
        image, mask = Samples(data, 16, "mask")[0]
        assert image.shape == (3, 16, 16)
        assert mask.shape == (16, 16)
        assert mask.all()
        assert data[0][0].mode == "L"


class TestChannels:
    def test_white_is_kept(self) -> None:
        stored = Stored.of(np.full((32, 32), 4095, np.uint16), 4095)
        image, _ = Samples(LabelledImages([stored], labels=np.zeros(1)), 16)[0]
        assert image.min() == 1

    @pytest.mark.parametrize("channels", [2, 4, 5])
    def test_of_bytes(self, channels: int) -> None:
        images = np.zeros((1, 32, 32, channels), np.uint8)
        images[..., -1] = 255
        data = LabelledImages(images, labels=np.zeros(1))
        assert data[0][0].shape == (32, 32, channels)
        image, _ = Samples(data, 16)[0]
        assert image.max() == (0 if channels < 5 else pytest.approx(0.2))

    def test_flipped_volumes(self) -> None:
        volume = np.zeros((1, 8, 16, 16), np.uint8)[:, ::-1]
        data = LabelledImages(volume, labels=np.zeros(1), spatial_dims=3)
        assert Samples(data, 8)[0][0].shape == (1, 8, 8, 8)


class TestLabelledVolumes:
    def test_items_are_arrays(self) -> None:
        data = labelled_balls()
        assert data[3][0] is data.images[3] or np.array_equal(
            data[3][0], data.images[3]
        )
        assert data.split("val").spatial_dims == 3

    def test_samples(self) -> None:
        data = labelled_balls()
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
        data = labelled_balls()
        augment = torchvision.transforms.v2.RandomAffine(20, translate=(0.1, 0.1))
        bright = dataclasses.replace(data, images=(255 * data.masks).astype(np.uint8))
        torch.manual_seed(0)
        volume, mask = Samples(bright, SIZE, "mask", augment=augment)[1]
        assert not torch.equal(mask, torch.from_numpy(data.masks[1]))
        assert torch.equal(volume[0].round().long(), mask), "in all slices alike"


def test_lists_and_windows() -> None:
    """Found: 'list' object has no attribute 'tolist', and images that were inverted."""
    images = np.zeros((2, 8, 8), np.uint8)
    data = LabelledImages(images, labels=[0, 1], splits=["train", "val"])
    assert data.split("val").labels.tolist() == [1]
    for window in ((400, 0), "percentile"):
        with pytest.raises(ValueError, match="window must be"):
            LabelledImages(images, window=window)


class TestColumnsOfPandas:
    """Found: they were read by their index, so that what belongs together did not."""

    def test_after_a_shuffle(self) -> None:
        greys = np.arange(10, 250, 30)
        frame = pd.DataFrame(
            {
                "image": [np.full((16, 16), grey, np.uint8) for grey in greys],
                "mask": [np.full((16, 16), grey > 125, np.uint8) for grey in greys],
                "label": (greys > 125).astype(int),
                "patient": [f"p{grey}" for grey in greys],
            }
        ).sample(frac=1, random_state=0)
        data = LabelledImages(
            frame["image"],
            labels=frame["label"],
            masks=frame["mask"],
            patients=frame["patient"],
            names=frame["patient"],
        )
        for part in (data, data.subset([4, 1, 6])):
            for index in range(len(part)):
                image, label, name = part[index]
                grey = image.getpixel((0, 0))
                assert label == (grey > 125) == part.mask(index).all()
                assert name == part.patients[index] == f"p{grey}"


@pytest.mark.parametrize("bands", [2, 4])
def test_bands_of_floats_are_no_alpha(bands: int) -> None:
    """Found: the last of four sequences was left out."""
    image = np.zeros((32, 32, bands), np.float32)
    image[..., -1] = 1
    data = LabelledImages([image], labels=np.zeros(1))
    assert Samples(data, 32)[0][0].mean() == pytest.approx(1 / bands)
