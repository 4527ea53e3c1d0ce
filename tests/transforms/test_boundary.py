"""What enters a transform, and what leaves it."""

from __future__ import annotations

import warnings

import albumentations as A
import cv2
import numpy as np
import pytest
import torch
import torchvision
from lightly.data import LightlyDataset
from lightly.transforms import MoCoV2Transform
from monai import transforms as mt
from pictures import smooth
from PIL import Image
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from lightly_dira import DiRATransform
from lightly_dira.data import white
from lightly_dira.transforms import boundary


class Finished:
    """A transform of one's own that returns views with masks, as for DetCon."""

    def __call__(self, image):
        mask = torch.zeros(1, 32, 32, dtype=torch.int64)
        return [(torch.rand(3, 32, 32), mask), (torch.rand(3, 32, 32), mask)]


def test_views_with_masks_of_any_transform() -> None:
    """Found: `the transform makes 0 views`."""
    views = DiRATransform(Finished())(torch.rand(3, 40, 40))
    assert [len(view) for view in views] == [2, 2]
    assert not views[0][1].any()
    assert len(views.targets) == 2


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
