"""Transforms, loaders and images of other projects, as people have them."""

from __future__ import annotations

import warnings

import albumentations as A
import cv2
import numpy as np
import pytest
import torch
import torchvision
from lightly.data import LightlyDataset
from lightly.transforms import MoCoV2Transform, PIRLTransform
from lightly.transforms.multi_view_transform import MultiViewTransform
from monai import data as md
from monai import transforms as mt
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from lightly_dira import DiRA, DiRATransform, DiRAViews
from lightly_dira.data import white
from lightly_dira.transforms import (
    boundary,
)


def smooth(size: int = 128, top: int = 60000) -> np.ndarray:
    noise = np.random.default_rng(0).random((size, size))
    blurred = cv2.GaussianBlur(noise, (0, 0), 6)
    blurred = (blurred - blurred.min()) / (blurred.max() - blurred.min())
    return (top * blurred).astype(np.uint16)


class HistogramNormalize:
    """As in Lightly's tutorial of custom augmentations."""

    def __call__(self, image):
        counts, edges = np.histogram(image.flatten(), 256, density=True)
        share = counts.cumsum()
        share = 255 * share / share[-1]
        equal = np.interp(image.flatten(), edges[:-1], share)
        return Image.fromarray(equal.reshape(image.shape))


class GaussianNoise:
    def __call__(self, sample):
        deviation = sample.mean() / np.random.randint(low=4, high=8)
        return sample + torch.normal(torch.zeros(sample.shape), deviation)


class TestLightlysTutorialOfChestXRays:
    """Found: 16-bit TIFF files and steps of their own, which failed one by one."""

    transforms = torchvision.transforms
    view = transforms.Compose(
        [
            HistogramNormalize(),
            transforms.Grayscale(num_output_channels=3),
            transforms.RandomResizedCrop(size=64, scale=(0.2, 1.0)),
            transforms.RandomHorizontalFlip(p=0.5),
            transforms.RandomVerticalFlip(p=0.5),
            transforms.GaussianBlur(21),
            transforms.ToTensor(),
            GaussianNoise(),
        ]
    )
    base = MultiViewTransform(transforms=[view, view])

    @pytest.mark.parametrize("histogram", [None, "geometric", "photometric"])
    def test_becomes_dira(self, histogram: str | None, tmp_path) -> None:
        (tmp_path / "a").mkdir()
        for number in range(4):
            cv2.imwrite(str(tmp_path / f"a/{number}.tiff"), smooth())
        kinds = {"GaussianNoise": "photometric"}
        kinds |= {} if histogram is None else {"HistogramNormalize": histogram}
        transform = DiRATransform(self.base, distortion=None, kinds=kinds)
        dataset = LightlyDataset(str(tmp_path), transform=transform)
        dataset.dataset.loader = lambda path: np.array(Image.open(path))
        ((x_q, x_k), _, _) = batch = next(iter(DataLoader(dataset, batch_size=4)))
        assert x_q.shape == x_k.shape == (4, 3, 64, 64)
        target = batch[0].target
        assert target.shape == (4, 1, 64, 64)
        assert 0 <= target.min() < target.max() <= 1
        for view, clean in zip(x_q, target, strict=True):
            pair = torch.stack([view.mean(dim=0).flatten(), clean.flatten()])
            assert torch.corrcoef(pair)[0, 1] > 0.8

    def test_what_is_not_said_is_asked_for(self) -> None:
        with pytest.warns(UserWarning, match="effect of HistogramNormalize, Gaussian"):
            transform = DiRATransform(self.base)
        with pytest.raises(ValueError, match=r'kinds=\{"GaussianNoise": "photometric"'):
            transform(smooth())


class TestClippedImages:
    @pytest.mark.parametrize("base", [None, MoCoV2Transform(input_size=32)])
    @pytest.mark.parametrize("kind", ["lightly", "torchvision"])
    def test_are_warned_of(self, base, kind: str, tmp_path) -> None:
        """Found: PIL makes most pixels of 16-bit files white, in silence."""
        (tmp_path / "a").mkdir()
        for number in range(6):
            cv2.imwrite(str(tmp_path / f"a/{number}.png"), smooth())
        transform = DiRATransform(base, input_size=32)
        if kind == "lightly":
            dataset = LightlyDataset(str(tmp_path), transform=transform)
        else:
            dataset = ImageFolder(str(tmp_path), transform=transform)
        with pytest.warns(UserWarning, match="ImageFiles") as record:
            list(dataset)
        assert len(record) == 1

    def test_others_are_not(self) -> None:
        white = np.full((64, 64, 3), 255, np.uint8)
        white[:20] = 100, 50, 30
        images = [white, np.full((64, 64, 3), 255, np.uint8)]
        transform = DiRATransform(input_size=32)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for image in [*images * 4]:
                transform(Image.fromarray(image))


class TestManyChannels:
    """Found: more than four were refused without a cure."""

    image = np.random.default_rng(0).random((64, 64, 13)).astype(np.float32)

    @pytest.mark.parametrize(
        "base",
        [
            None,
            v2.Compose([v2.RandomResizedCrop(32), v2.RandomHorizontalFlip()]),
            A.Compose([A.RandomCrop(32, 32), A.HorizontalFlip(), A.ToTensorV2()]),
        ],
    )
    @pytest.mark.parametrize("channels", [1, 13])
    def test_are_served(self, base, channels: int) -> None:
        transform = DiRATransform(
            base, input_size=32, target_channels=channels, distortion=None
        )
        views = transform(self.image)
        assert views[0].shape == (13, 32, 32)
        assert views.target.shape == (channels, 32, 32)
        bits = (self.image * 9999).astype(np.uint16)
        said = DiRATransform(base, input_size=32, window="percentiles")
        assert said(bits)[0].shape == (13, 32, 32)

    def test_normalised_as_rgb(self) -> None:
        with pytest.raises(ValueError, match=r"three channels, and .* has 13.*=None"):
            DiRATransform(MoCoV2Transform(32))(self.image)


class TestTensors:
    """Of kornia, whose steps take tensors and return batches of one."""

    class Flip(nn.Module):
        def __init__(self, keepdim: bool) -> None:
            super().__init__()
            self.keepdim = keepdim

        def forward(self, image):
            assert isinstance(image, torch.Tensor)
            flipped = image.flip(-1)
            return flipped if self.keepdim else flipped[None]

    def transform(self, keepdim: bool) -> DiRATransform:
        steps = [nn.Sequential(self.Flip(keepdim)) for _ in "12"]
        return DiRATransform(steps, kinds={"Flip": "geometric"}, distortion=None)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
    def test_stay_tensors(self, dtype) -> None:
        image = (torch.rand(1, 32, 32) * 255).to(dtype)
        image = image / 255 if dtype == torch.float32 else image
        views = self.transform(keepdim=True)(image)
        unit = image.float() if dtype == torch.float32 else image / 255
        torch.testing.assert_close(views.target, unit.flip(-1))

    def test_batches_of_one(self) -> None:
        with pytest.raises(ValueError, match="keepdim=True"):
            self.transform(keepdim=False)(torch.rand(1, 32, 32))


class TestWholeTransforms:
    compose = v2.Compose(
        [v2.RandomResizedCrop(32), v2.ColorJitter(0.4), v2.ToImage(),
         v2.ToDtype(torch.float32, scale=True)]
    )  # fmt: skip

    class NCrops:
        """As solo-learn's pipeline."""

        def __init__(self, transform) -> None:
            self.transform = transform

        def __call__(self, image):
            return [self.transform(image) for _ in "12"]

    def test_are_noticed(self) -> None:
        """Found: targets were jittered and blurred, in silence."""
        cure = r"NCrops is left whole.*DiRATransform\(\[compose, compose\]\)"
        with pytest.warns(UserWarning, match=cure):
            DiRATransform(self.NCrops(self.compose))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            DiRATransform([self.compose] * 2)

    def test_get_a_window(self) -> None:
        """Found: `window` was left out without a word."""
        image = smooth(top=4095)
        for given in (
            image,
            Image.fromarray(image),
            torch.from_numpy(image.astype("i4")),
        ):
            whole = DiRATransform(
                lambda x: [torch.as_tensor(np.array(x)).reshape(1, 128, 128)],
                window=(0, 8190),
                distortion=None,
            )
            torch.testing.assert_close(
                whole(given).target[0], torch.from_numpy(image / np.float32(8190))
            )

    @pytest.mark.parametrize("key", ["image", "views"])
    def test_dictionaries(self, key: str) -> None:
        """As lightly-train's, which returns them."""
        whole = DiRATransform(lambda image: [{key: self.compose(image)}])
        with pytest.raises(ValueError, match=rf"keys {key}.*for view in"):
            whole(Image.fromarray(np.zeros((64, 64, 3), np.uint8)))


class TestMonaisLoaders:
    volumes = [np.random.default_rng(0).random((20, 20, 20)).astype("f4")] * 4

    def transform(self) -> DiRATransform:
        return DiRATransform(spatial_dims=3, input_size=(16, 16, 16))

    def test_in_a_dictionary(self) -> None:
        transform = self.transform()
        for dataset in (md.Dataset, md.CacheDataset):
            kept = {"progress": False} if dataset is md.CacheDataset else {}
            data = dataset(self.volumes, lambda v: {"views": transform(v)}, **kept)
            batch = next(iter(md.DataLoader(data, batch_size=2)))
            assert isinstance(batch["views"], DiRAViews)
            assert batch["views"].target.shape == (2, 1, 16, 16, 16)

    def test_plain_lists_are_told_of(self) -> None:
        """Found: the error advised what was done."""
        data = md.Dataset(self.volumes, self.transform())
        batch = next(iter(DataLoader(data, batch_size=2)))
        backbone = nn.Sequential(
            nn.Conv3d(1, 4, 3, 2, 1), nn.ReLU(), nn.Conv3d(4, 4, 3, 2, 1), nn.ReLU()
        )
        dira = DiRA(backbone, torch.optim.SGD(backbone.parameters(), lr=0.1))
        loss = backbone(batch[0]).mean()
        with pytest.raises(ValueError, match=r"MONAI.*lambda item: \{'views'"):
            dira(loss, batch)

    def test_loader_of_monai(self) -> None:
        """Found: it seeds whatever has `set_random_state`."""
        transform = self.transform()

        class Volumes(torch.utils.data.Dataset):
            def __init__(self, volumes) -> None:
                self.volumes, self.transform = volumes, transform

            def __len__(self) -> int:
                return len(self.volumes)

            def __getitem__(self, index):
                return {"views": self.transform(self.volumes[index])}

        batch = next(iter(md.DataLoader(Volumes(self.volumes), batch_size=2)))
        assert isinstance(batch["views"], DiRAViews)

    def test_a_whole_transform_is_seeded(self) -> None:
        class Mine(mt.RandomizableTransform):
            def __call__(self, volume):
                return [torch.from_numpy(volume[None]) * self.R.random()]

        transform = DiRATransform(Mine(), spatial_dims=3, distortion=None)
        found = []
        for _ in "12":
            transform.set_random_state(seed=7)
            found.append(transform(self.volumes[0])[0])
        torch.testing.assert_close(*found)


class TestPreview:
    def test_of_stacks(self) -> None:
        picture = Image.fromarray(smooth(top=255).astype(np.uint8)).convert("RGB")
        figure = DiRATransform(PIRLTransform(input_size=64)).preview(picture, n=2)
        assert len(figure.axes) == 6

    def test_of_normalised_bytes(self) -> None:
        """Found: white."""
        steps = [
            A.Normalize((123,) * 3, (58,) * 3, max_pixel_value=1.0),
            A.ToTensorV2(),
        ]
        picture = np.repeat(smooth(top=255).astype(np.uint8)[..., None], 3, axis=2)
        figure = DiRATransform(A.Compose(steps), distortion=None).preview(picture, n=1)
        shown = figure.axes[1].images[0].get_array()
        np.testing.assert_allclose(shown, picture / 255, atol=0.01)


class TestPixelsBehindTheBoundary:
    """What a review found: each was wrong in silence, or an error in mid-run."""

    picture = np.repeat(smooth(64, 255).astype(np.uint8)[..., None], 3, axis=2)

    @pytest.mark.parametrize("library", ["torchvision", "albumentations"])
    def test_what_is_normalised_is_not_clamped(self, library: str) -> None:
        if library == "torchvision":
            v1 = torchvision.transforms
            normal = v1.Normalize([0.485] * 3, [0.229] * 3)
            steps = [v1.ToTensor(), normal, v1.RandomHorizontalFlip(1.0)]
            base = v1.Compose(steps)
            bare = base(Image.fromarray(self.picture))
            image = Image.fromarray(self.picture)
        else:
            base = A.Compose([A.Normalize(), A.HorizontalFlip(p=1), A.ToTensorV2()])
            bare, image = base(image=self.picture)["image"], self.picture
        view = DiRATransform([base, base], distortion=None)(image)[0]
        torch.testing.assert_close(view, bare)

    def test_alpha_and_its_like(self) -> None:
        two = np.zeros((64, 64, 2), np.uint8)
        two[..., 1] = self.picture[..., 0]
        boundary._warn_of_alpha.cache_clear()
        with pytest.warns(UserWarning, match="of 2 channels the last one is taken"):
            DiRATransform(MoCoV2Transform(32))(two)

    def test_percentiles_come_from_everywhere(self) -> None:
        volume = np.zeros((256, 128, 128), np.uint8)
        inside = volume[:, 30:100, 30:100]
        inside[:] = np.random.default_rng(0).integers(50, 200, inside.shape)
        low, high = white.limits_of(volume, "percentiles")
        assert low == 0
        assert high == pytest.approx(np.percentile(volume, 99.5), abs=2)

    def test_preview_shows_targets_as_they_are(self) -> None:
        black = Image.new("RGB", (64, 64))
        transform = DiRATransform(MoCoV2Transform(32), target_channels=3)
        shown = transform.preview(black, n=1).axes[0].images[0].get_array()
        assert np.asarray(shown).max() == 0

    def test_windows_of_files_that_monai_reads(self) -> None:
        base = mt.Compose([mt.LoadImage(image_only=True, ensure_channel_first=True)])
        with pytest.raises(ValueError, match="Read them before, with `VolumeFiles`"):
            DiRATransform(base, spatial_dims=3, window=(0, 9))("scan.nii.gz")

    def test_white_in_front_of_monai(self) -> None:
        values = np.random.default_rng(0).integers(0, 4096, (20, 20, 20))
        crop = mt.Compose([mt.RandSpatialCrop((16, 16, 16), random_size=False)])
        transform = DiRATransform([crop], spatial_dims=3, distortion=None)
        stored = white.Stored.of(values.astype(np.uint16), 4095)
        assert transform(stored).target.max() > 0.95
        wide = np.zeros((20, 20, 20), np.int32)
        wide[10:] = 1000
        for _ in range(20):  # some crops have no value above 255
            assert transform(wide).target.max() <= 1000 / 65535

    @pytest.mark.parametrize("base", [None, [mt.Compose([mt.RandFlip(0.5)])]])
    def test_boolean_volumes(self, base) -> None:
        volume = np.zeros((40, 80, 80), bool)
        volume[10:30, 20:60, 20:60] = True
        for _ in range(5):
            views = DiRATransform(base, spatial_dims=3, distortion=None)(volume)
            assert views.target.max() == 1

    @pytest.mark.parametrize("channels", [1, 2, 3, 5])
    def test_flipped_arrays(self, channels: int) -> None:
        image = np.repeat(self.picture[..., :1], channels, axis=2)[::-1]
        base = v2.Compose([v2.CenterCrop(32)])
        views = DiRATransform([base] * 2, distortion=None)(image)
        assert views.target.shape == (1, 32, 32)
