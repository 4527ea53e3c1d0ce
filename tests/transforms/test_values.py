"""Where values and metadata cross a boundary."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from lightly.transforms import DINOTransform, MAETransform
from monai import transforms as mt
from monai.data import MetaTensor
from PIL import Image
from torchvision.transforms import v2

from lightly_dira import DiRATransform
from lightly_dira.transforms import read_volume


class TestStepsOfTheUsersOwn:
    """Found: a class was taken for a library's step by its bare name."""

    def test_a_to_tensor(self) -> None:
        class ToTensor:
            def __call__(self, image):
                called.append(1)
                return v2.functional.to_dtype(v2.functional.to_image(image), scale=True)

        called = []
        with pytest.warns(UserWarning, match="effect of ToTensor"):
            transform = DiRATransform(v2.Compose([v2.CenterCrop(32), ToTensor()]))
        transform(Image.fromarray(np.zeros((40, 40, 3), np.uint8)))
        assert called

    def test_a_normalize(self) -> None:
        class Normalize:
            mean, std = (0.5,) * 3, (0.5,) * 3

            def __call__(self, image):
                return image

        with pytest.warns(UserWarning, match="effect of Normalize"):
            transform = DiRATransform(v2.Compose([v2.ToImage(), Normalize()]))
        assert transform._boundary.normalisation is None
        said = DiRATransform(
            v2.Compose([v2.CenterCrop(32), v2.ToImage(), Normalize()]),
            kinds={Normalize: "photometric"},
        )
        assert said is not None

    def test_of_a_library_by_inheritance(self) -> None:
        class Mine(v2.CenterCrop):
            pass

        DiRATransform(v2.Compose([Mine(32), v2.ToImage()]))


@pytest.mark.parametrize("kind", [DINOTransform, MAETransform])
@pytest.mark.parametrize("window", [None, (0, 65535), "percentiles"])
def test_bicubic_steps_of_sixteen_bits(kind, window) -> None:
    """Found: every such image was an error, as interpolation left [0, 1]."""
    image = (np.random.default_rng(0).integers(0, 2, (200, 200)) * 65535).astype("u2")
    transform = DiRATransform(kind(), window=window)
    for target in transform(image).targets:
        assert 0 <= target.min() <= target.max() <= 1


def test_other_byte_order() -> None:
    image = np.linspace(0, 65535, 40 * 40).reshape(40, 40).astype(">u2")
    ours = DiRATransform(v2.Compose([v2.CenterCrop(32)]), distortion=None)
    torch.testing.assert_close(
        ours(image).target, ours(image.astype("u2")).target, rtol=0, atol=0
    )


class TestNifti:
    def test_spacing_by_the_affine(self, tmp_path: Path) -> None:
        nibabel = pytest.importorskip("nibabel")
        image = nibabel.Nifti1Image(
            np.zeros((20, 20, 20), np.int16), np.diag([2, 2, 2, 1])
        )
        image.header["pixdim"][1:4] = 1
        image.header.set_sform(np.diag([2, 2, 2, 1]), code=1)
        nibabel.save(image, tmp_path / "a.nii")
        assert read_volume(tmp_path / "a.nii", spacing=(1, 1, 1)).shape == (40, 40, 40)

    def test_complex(self, tmp_path: Path) -> None:
        nibabel = pytest.importorskip("nibabel")
        image = nibabel.Nifti1Image(np.zeros((4, 4, 4), np.complex64), np.eye(4))
        nibabel.save(image, tmp_path / "a.nii")
        with pytest.raises(ValueError, match="complex"):
            read_volume(tmp_path / "a.nii")


class TestMonai:
    @pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.int64])
    @pytest.mark.parametrize("base", [None, "monai"])
    def test_integers_under_the_default_distortion(self, dtype, base) -> None:
        """Found: views in raw units, targets in [0, 1]."""
        volume = np.random.default_rng(0).integers(0, 65536, (24, 36, 36)).astype(dtype)
        transform = base and mt.RandSpatialCrop((16, 32, 32), random_size=False)
        ours = DiRATransform(transform, input_size=(16, 32, 32), spatial_dims=3)
        for _ in range(10):
            views = ours(volume)
            for view in views:
                assert 0 <= view.min() <= view.max() <= 1

    def test_white_of_the_whole_volume(self) -> None:
        """Found: 35 of 60 crops of one volume were errors."""
        volume = np.full((40, 40, 40), 100, np.int32)
        volume[:4] = 40_000
        ours = DiRATransform(input_size=(16, 16, 16), spatial_dims=3)
        for _ in range(20):
            ours(volume)

    def test_lazy_steps_are_run(self) -> None:
        """Found: they were never applied."""
        volume = np.random.default_rng(0).random((1, 16, 32, 32), np.float32)
        for lazy in (False, True):
            step = mt.Spacing((2, 2, 2), lazy=lazy)
            ours = DiRATransform(mt.Compose([step]), spatial_dims=3, distortion=None)
            views = ours(MetaTensor(torch.from_numpy(volume), affine=torch.eye(4)))
            assert views[0].shape == (1, 8, 16, 16)
            assert views.target.shape == (1, 8, 16, 16)

    def test_the_affine_counts(self) -> None:
        """Found: a MetaTensor lost it, so that Spacing did nothing."""
        affine = torch.diag(torch.tensor([2.0, 2.0, 2.0, 1.0]))
        volume = MetaTensor(torch.rand(1, 8, 16, 16), affine=affine)
        ours = DiRATransform(mt.Compose([mt.Spacing((1, 1, 1))]), spatial_dims=3)
        assert ours(volume)[0].shape == (1, 15, 31, 31)
        turned = MetaTensor(torch.rand(1, 8, 16, 16), affine=torch.diag(
            torch.tensor([-1.0, 1.0, 1.0, 1.0])
        ))  # fmt: skip
        base = mt.Compose([mt.Orientation("RAS", labels=None)])
        views = DiRATransform(base, spatial_dims=3, distortion=None)(turned)
        torch.testing.assert_close(views[0], turned.as_tensor().flip(1))

    def test_normalised_before_it_is_turned(self) -> None:
        """Found: the distortion dropped the view's metadata, not the target's."""
        affine = torch.tensor(
            [[0.0, 2, 0, 0], [1, 0, 0, 0], [0, 0, -1, 0], [0, 0, 0, 1]]
        )
        smooth = np.linspace(0, 1, 20 * 24 * 28, dtype=np.float32).reshape(
            1, 20, 24, 28
        )
        volume = {"image": MetaTensor(torch.from_numpy(smooth), affine=affine)}
        base = mt.Compose(
            [
                mt.NormalizeIntensityd("image"),
                mt.Orientationd("image", "RAS", labels=None),
                mt.Spacingd("image", (1, 1, 1)),
            ]
        )
        for _ in range(3):
            views = DiRATransform(base, spatial_dims=3)(volume)
            assert views[0].shape == views.target.shape
        views = DiRATransform(base, spatial_dims=3, distortion=None)(volume)
        pairs = torch.stack([views[0].flatten(), views.target.flatten()])
        assert torch.corrcoef(pairs)[0, 1] > 0.999

    def test_fixed_numbers(self) -> None:
        """Found: a cure that made images constant."""
        step = mt.NormalizeIntensity(subtrahend=-1024, divisor=3072)
        volume = np.random.default_rng(0).integers(-1024, 2048, (16, 32, 32))
        base = mt.Compose([mt.EnsureType(), step])
        ours = DiRATransform(base, spatial_dims=3, distortion=None)
        views = ours(volume.astype(np.float32))
        torch.testing.assert_close(views[0], views.target)
        assert views.target.std() > 0.2
        for fixed in (step, mt.ScaleIntensityRange(-1000, 400, 0, 1)):
            with pytest.raises(ValueError, match="Leave one of the two out"):
                DiRATransform(mt.Compose([fixed]), spatial_dims=3, window=(-1000, 400))

    def test_own_steps_that_draw_globally(self) -> None:
        class Shift(mt.Transform):
            def __call__(self, data):
                return torch.roll(data, int(torch.randint(1, 9, ())), 2)

        base = mt.Compose([mt.RandAdjustContrast(prob=1.0), Shift()])
        kinds = {Shift: "geometric"}
        ours = DiRATransform(base, spatial_dims=3, distortion=None, kinds=kinds)
        ramp = np.linspace(0, 1, 32, dtype=np.float32)
        volume = np.broadcast_to(ramp[:, None], (8, 32, 8)).copy()
        for _ in range(10):
            views = ours(volume)
            where = [
                image.mean((0, 1, 3)).argmax() for image in (views[0], views.target)
            ]
            assert where[0] == where[1]

    def test_threads_take_turns(self) -> None:
        """Found: 40 of 100 samples were misaligned."""
        base = mt.Compose(
            [mt.RandAdjustContrast(prob=1.0), mt.RandFlip(0.5, 2), mt.RandRotate90(1.0)]
        )
        ours = DiRATransform(base, spatial_dims=3, distortion=None)
        ramp = np.random.default_rng(0).random((8, 16, 16), np.float32)

        def aligned(_: int) -> bool:
            views = ours(ramp)
            pairs = torch.stack([views[0].flatten(), views.target.flatten()])
            return bool(torch.corrcoef(pairs)[0, 1] > 0.8)

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(aligned, range(100)))
        assert threading.active_count() < 50


class TestPercentiles:
    @pytest.mark.parametrize("dims", [2, 3])
    @pytest.mark.parametrize("dtype", [np.int16, np.float32, np.uint16, np.float64])
    def test_of_each_image(self, dims: int, dtype) -> None:
        random = np.random.default_rng(0)
        for scale in (100, 3000):
            image = random.normal(4 * scale, scale, (24, 40, 40)[-dims:]).clip(0, None)
            image = image.astype(dtype)
            ours = DiRATransform(
                None if dims == 3 else v2.Compose([v2.CenterCrop(40)]),
                input_size=(16, 32, 32) if dims == 3 else 32,
                spatial_dims=dims,
                window="percentiles",
                distortion=None,
            )
            target = ours(image).target
            assert 0.3 < target.mean() < 0.7
            assert 0.1 < target.std() < 0.4

    def test_constant_images(self) -> None:
        ours = DiRATransform(input_size=32, window="percentiles", distortion=None)
        assert ours(np.full((40, 40), 7.0)).target.max() == 0

    def test_errors(self) -> None:
        for window in ("percentile", (1, 0)):
            with pytest.raises(ValueError, match=r"window must be .* 'percentiles'"):
                DiRATransform(window=window)
        with pytest.raises(ValueError, match='window="percentiles"'):
            DiRATransform(input_size=32)(np.full((40, 40), -5, np.int16))


class TestTheDefectOfThePublishedRun:
    """Found: `aligned=False` did nothing where there is no such flip."""

    def test_where_it_has_an_effect(self) -> None:
        base = v2.Compose([v2.RandomHorizontalFlip(1.0), v2.ToImage()])
        image = Image.fromarray(np.arange(40 * 40).reshape(40, 40).astype(np.uint8))
        views = DiRATransform(base, aligned=False, distortion=None)(image)
        torch.testing.assert_close(views[0].flip(-1), views.target)
        DiRATransform(aligned=False)

    def test_where_it_has_none(self) -> None:
        for base in (v2.CenterCrop(32), mt.RandFlip(0.5), v2.RandomVerticalFlip()):
            dims = 3 if isinstance(base, mt.RandFlip) else 2
            with pytest.raises(ValueError, match="has none"):
                DiRATransform(base, aligned=False, spatial_dims=dims)
