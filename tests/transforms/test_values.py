"""Where values and metadata cross a boundary."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pydicom
import pytest
import torch
from lightly.transforms import DINOTransform, MAETransform
from monai import transforms as mt
from monai.data import MetaTensor
from PIL import Image
from pydicom.data import get_testdata_file
from torchvision.transforms import v2

from lightly_dira import DiRATransform
from lightly_dira.data.resizing import resize_area
from lightly_dira.transforms import read_image, read_volume

SIZES = [
    (155, 32), (155, 64), (1024, 224), (1023, 224), (700, 224), (301, 100), (64, 32),
    (65, 32), (127, 32), (129, 64), (512, 128), (513, 128), (200, 199), (97, 48),
    (255, 64), (257, 64), (333, 111), (2047, 256), (90, 45), (33, 32),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new"), SIZES)
def test_a_picture_of_a_mask_is_its_mask(old: int, new: int) -> None:
    """Found: up to 7 rows at the bottom and the right were cut off, then stretched."""
    for edge in (0.1, 0.5, 0.9):
        image = np.zeros((old, old), np.float32)
        cut = round(edge * old)
        image[cut:] = 1
        right = (old - cut) * new / old
        for turned in (image, image.T):
            small = resize_area(np.ascontiguousarray(turned), new, new)
            along = small[:, 0] if turned is image else small[0]
            assert along.sum() == pytest.approx(right, abs=0.1)
            assert small.sum() == pytest.approx(right * new, rel=0.02)


def test_the_case_of_the_brain() -> None:
    image = np.zeros((155, 155), "float32")
    image[139:] = 1
    assert resize_area(image, 32, 32)[:, 0].sum() == pytest.approx(3.30, abs=0.05)


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
        assert transform._normalisation is None
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


class TestAlpha:
    def file(self, path: Path, channels: int, dtype=np.uint8) -> Path:
        pixels = np.zeros((40, 40, channels), dtype)
        pixels[10:20, 10:20, :3] = np.iinfo(dtype).max
        pixels[..., 3:] = np.iinfo(dtype).max
        assert cv2.imwrite(str(path), pixels)
        return path

    @pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
    def test_read(self, dtype, tmp_path: Path) -> None:
        image = read_image(self.file(tmp_path / "a.png", 4, dtype))
        assert image.shape == (40, 40, 3)
        assert len(DiRATransform(input_size=32)(image)[0]) == 3

    def test_grey_beside_alpha(self, tmp_path: Path) -> None:
        Image.fromarray(np.full((40, 40), 7, np.uint8)).convert("LA").save(
            tmp_path / "a.png"
        )
        image = read_image(tmp_path / "a.png")
        assert image.shape == (40, 40)
        assert (image == 7).all()

    def test_masks(self, tmp_path: Path) -> None:
        """Found: 4,096 pixels instead of 100."""
        from lightly_dira.evaluation.labelled import LabelledImages

        path = self.file(tmp_path / "mask.png", 4)
        data = LabelledImages([path], masks=[path])
        assert data.mask(0).sum() == 100

    @pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "CMYK", "P"])
    def test_modes_of_pil(self, mode: str) -> None:
        grey = Image.fromarray(np.full((40, 40), 100, np.uint8))
        image = grey.convert("P").convert("PA") if mode == "PA" else grey.convert(mode)
        views = DiRATransform(input_size=32, distortion=None)(image)
        assert len(views[0]) == 3
        torch.testing.assert_close(
            views.target, torch.full((1, 32, 32), 100 / 255), atol=0.01, rtol=0
        )


def test_other_byte_order() -> None:
    image = np.linspace(0, 65535, 40 * 40).reshape(40, 40).astype(">u2")
    ours = DiRATransform(v2.Compose([v2.CenterCrop(32)]), distortion=None)
    torch.testing.assert_close(
        ours(image).target, ours(image.astype("u2")).target, rtol=0, atol=0
    )


class TestPages:
    def images(self, count: int = 2) -> list[Image.Image]:
        return [
            Image.fromarray(np.full((40, 40), 99 * n, np.uint8)) for n in range(count)
        ]

    @pytest.mark.parametrize("suffix", ["tif", "gif", "png", "webp"])
    def test_several_are_refused(self, suffix: str, tmp_path: Path) -> None:
        """Found: the first was returned, in silence."""
        first, *rest = self.images()
        path = tmp_path / f"a.{suffix}"
        first.save(path, save_all=True, append_images=rest)
        with pytest.raises(ValueError, match=r"a\.\w+ holds 2 pages or frames"):
            read_image(path)
        first.save(path)
        assert read_image(path).shape[:2] == (40, 40)

    def test_cmyk(self, tmp_path: Path) -> None:
        image = Image.new("CMYK", (40, 40), (0, 255, 255, 0))
        image.save(tmp_path / "a.tif")
        assert read_image(tmp_path / "a.tif").shape == (40, 40, 3)
        np.testing.assert_array_equal(
            read_image(tmp_path / "a.tif"), np.asarray(image.convert("RGB"))
        )


class TestDicom:
    def save(self, path: Path, pixels, **tags) -> Path:
        file = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
        for name in ("RescaleSlope", "RescaleIntercept", "PixelPaddingValue"):
            if name in file:
                delattr(file, name)
        file.PixelData = pixels.tobytes()
        file.Rows, file.Columns = pixels.shape
        file.BitsAllocated = 8 * pixels.dtype.itemsize
        file.PixelRepresentation = int(pixels.dtype.kind == "i")
        for name, value in tags.items():
            setattr(file, name, value)
        if "PixelPaddingValue" in tags:
            file["PixelPaddingValue"].VR = "US"
        file.save_as(path)
        return path

    pixels = np.random.default_rng(0).integers(0, 4096, (32, 40), dtype=np.uint16)

    def test_polarity_with_units(self, tmp_path: Path) -> None:
        """Found: with a rescale tag, MONOCHROME1 was not inverted."""
        tags = dict(BitsStored=12, HighBit=11, RescaleSlope=2, RescaleIntercept=-5)
        plain, inverted = (
            read_image(self.save(tmp_path / f"{kind}.dcm", pixels, **tags,
                                 PhotometricInterpretation=kind))
            for kind, pixels in (("MONOCHROME2", self.pixels),
                                 ("MONOCHROME1", 4095 - self.pixels))
        )  # fmt: skip
        np.testing.assert_array_equal(plain, inverted)

    def test_an_intercept_alone(self, tmp_path: Path) -> None:
        path = self.save(
            tmp_path / "a.dcm", self.pixels, BitsStored=12, RescaleIntercept=-1024
        )
        np.testing.assert_array_equal(read_image(path), self.pixels - 1024.0)

    @pytest.mark.parametrize("tag", ["RescaleSlope", "NumberOfFrames"])
    def test_empty_tags(self, tag: str, tmp_path: Path) -> None:
        path = self.save(tmp_path / "a.dcm", self.pixels, BitsStored=16, **{tag: None})
        np.testing.assert_array_equal(read_image(path), self.pixels)

    def test_palette(self) -> None:
        """Found: the indices were returned as grey values."""
        image = read_image(get_testdata_file("examples_palette.dcm"))
        assert image.shape[2] == 3

    def test_padding_stays_black(self, tmp_path: Path) -> None:
        pixels = self.pixels.copy()
        pixels[:4] = 0
        path = self.save(
            tmp_path / "a.dcm",
            pixels,
            BitsStored=12,
            PhotometricInterpretation="MONOCHROME1",
            PixelPaddingValue=0,
        )
        image = read_image(path)
        assert image[:4].max() == 0
        assert image[4:].mean() > 1_500

    def test_without_a_preamble(self, tmp_path: Path) -> None:
        path = self.save(tmp_path / "a.dcm", self.pixels, BitsStored=16)
        data = path.read_bytes()
        (tmp_path / "b").write_bytes(data[132:])
        np.testing.assert_array_equal(read_image(tmp_path / "b"), self.pixels)

    def test_errors_name_the_file(self, tmp_path: Path) -> None:
        path = self.save(tmp_path / "cut.dcm", self.pixels, BitsStored=16)
        file = pydicom.dcmread(path)
        file.PixelData = file.PixelData[:-200]
        file.save_as(path)
        with pytest.raises(ValueError, match=r"cut\.dcm cannot be read"):
            read_image(path)

    def series(self, folder: Path, change) -> Path:
        folder.mkdir(exist_ok=True)
        for number in range(5):
            place = {
                "ImagePositionPatient": [0.0, 0.0, 2.0 * number],
                "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
                "PixelSpacing": [1.0, 1.0],
            }
            change(number, place)
            path = folder / f"{number}.dcm"
            self.save(path, self.pixels, BitsStored=16, **place)
        return folder

    def test_a_straight_series(self, tmp_path: Path) -> None:
        folder = self.series(tmp_path / "a", lambda number, place: None)
        assert read_volume(folder).shape == (5, 32, 40)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            # Found: sheared, shifted or stretched, in silence.
            (lambda n, p: p["ImagePositionPatient"].__setitem__(1, 0.6 * n), "sheared"),
            (lambda n, p: p["ImagePositionPatient"].__setitem__(0, 9 * (n > 3)), "mm"),
            (lambda n, p: p.update(PixelSpacing=[1.0 + (n > 2), 1.0]), "different"),
            (lambda n, p: p.update(PixelSpacing=None), "PixelSpacing"),
        ],
    )  # fmt: skip
    def test_series_that_are_not(self, change, message: str, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=message):
            read_volume(self.series(tmp_path / "a", change))


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
