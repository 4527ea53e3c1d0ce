"""Transforms, loaders and images of other projects, as people have them."""

from __future__ import annotations

import albumentations as A
import cv2
import numpy as np
import pytest
import torch
import torchvision
from lightly.data import LightlyDataset
from lightly.transforms import MoCoV2Transform
from lightly.transforms.multi_view_transform import MultiViewTransform
from monai import data as md
from monai import transforms as mt
from pictures import smooth
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from lightly_dira import DiRA, DiRATransform, DiRAViews


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
