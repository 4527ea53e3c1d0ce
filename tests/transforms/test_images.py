from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np
import pydicom
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightly.transforms import MoCoV2Transform
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.pixels.utils import set_pixel_data
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from lightly_dira import DiRATransform
from lightly_dira.data.image_files import read_image
from lightly_dira.data.pixels import to_pixels
from lightly_dira.data.resizing import resize_area

PLAIN = v2.Compose([v2.RandomCrop(16), v2.ToImage(), v2.ToDtype(torch.float32, True)])
DTYPES = {
    np.uint8: (0, 255),
    np.uint16: (0, 65535),
    np.int16: (-1000, 1000),
    np.float32: (0, 1),
    np.float64: (0, 1),
}


def pixels(dtype, shape, seed: int = 0) -> np.ndarray:
    low, high = DTYPES[dtype]
    values = low + (high - low) * np.random.default_rng(seed).random(shape)
    return values.astype(dtype)


@settings(max_examples=80, deadline=None)
@given(
    height=st.integers(16, 40),
    width=st.integers(16, 40),
    channels=st.sampled_from([None, 1, 2, 3, 4]),
    dtype=st.sampled_from(list(DTYPES)),
    as_tensor=st.booleans(),
    base=st.sampled_from(["published", "torchvision", "lightly"]),
    number=st.integers(0, 2**31),
)
def test_any_array(height, width, channels, dtype, as_tensor, base, number) -> None:
    shape = (height, width) if channels is None else (height, width, channels)
    image = given_image = pixels(dtype, shape, number)
    before = image.copy()
    if as_tensor and dtype is not np.uint16:
        given_image = torch.from_numpy(image)
        given_image = given_image if channels is None else given_image.movedim(-1, 0)
    options = {"window": (-1000, 1000)} if dtype is np.int16 else {}
    transform = DiRATransform(
        {
            "published": None,
            "torchvision": PLAIN,
            "lightly": MoCoV2Transform(input_size=16),
        }[base],
        input_size=16,
        distortion=None,
        **options,
    )
    outputs = []
    for _ in range(2):
        torch.manual_seed(number)
        np.random.seed(number % 2**32)
        views = transform(given_image)
        outputs.append(torch.cat([views[0], views.target]))
    assert torch.equal(*outputs), "one seed, two results"
    assert np.array_equal(image, before), "the input was modified"
    assert views.target.shape == (1, 16, 16)
    assert 0 <= views.target.min() <= views.target.max() <= 1
    count = channels or 1
    expected = {"published": 3 if count == 1 else count, "torchvision": count}
    assert len(views[0]) == expected.get(base, 3)
    if base == "torchvision" and count == 1:
        assert torch.allclose(views[0], views.target)


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "RGBA", "I;16", "I", "F"])
@pytest.mark.parametrize("base", [None, MoCoV2Transform(input_size=16)])
def test_any_pil_mode(mode: str, base) -> None:
    grey = pixels(np.uint8, (40, 40))
    image = {
        "I;16": lambda: Image.fromarray(pixels(np.uint16, (40, 40))),
        "I": lambda: Image.fromarray(pixels(np.uint16, (40, 40)).astype(np.int32)),
        "F": lambda: Image.fromarray(pixels(np.float32, (40, 40))),
    }.get(mode, lambda: Image.fromarray(grey).convert(mode))()
    assert image.mode == mode
    views = DiRATransform(base, input_size=16)(image)
    assert views.target.shape == (1, 16, 16)
    assert len(views[0]) == 3


@pytest.mark.parametrize("base", [None, "lightly"])
@pytest.mark.parametrize("kind", ["uint16", "int16", "I;16", "float32", "tensor"])
def test_sixteen_bits_survive(kind: str, base: str | None) -> None:
    ramp = np.arange(128 * 128, dtype=np.uint16).reshape(128, 128)
    options = {}
    if kind == "int16":
        image, options = ramp.astype(np.int16) - 1000, {"window": (-1000, 15383)}
    elif kind == "I;16":
        image = Image.fromarray(ramp)
    elif kind == "uint16":
        image = ramp
    else:
        image = (ramp / 16383).astype(np.float32)
        image = torch.from_numpy(image)[None] if kind == "tensor" else image
    lightly = MoCoV2Transform(input_size=64, normalize=None)
    transform = DiRATransform(
        lightly if base == "lightly" else None,
        input_size=64,
        distortion=None,
        **options,
    )
    for number in range(5):
        torch.manual_seed(number)
        views = transform(image)
        assert len(views.target.unique()) > 1000
        assert len(views[0][0].unique()) > 1000


def test_window_clips_and_scales() -> None:
    image = np.full((16, 16), -3000, np.int16)
    image[0, :3] = -1000, -300, 400
    (scaled,) = to_pixels(image, (-1000, 400))
    assert scaled.dtype == np.float32
    np.testing.assert_allclose(scaled[0, :4], [0, 0.5, 1, 0])


def test_shrinking_does_not_alias() -> None:
    """A grating finer than the output's pixels must become an even grey."""
    grating = np.tile(np.array([0, 255], np.uint8), (1024, 512))
    transform = DiRATransform(distortion=None, input_size=224)
    for number in range(10):
        torch.manual_seed(number)
        target = transform(grating).target
        # Sides of 0.45 to 1 of 1024 pixels shrink at least twofold.
        assert target[:, 8:-8, 8:-8].std() < 0.2
    aliased = cv2.resize(grating, (224, 224), interpolation=cv2.INTER_NEAREST)
    assert (aliased / 255).std() > 0.4


@pytest.mark.parametrize("size", [(1024, 1024), (300, 900), (900, 300), (513, 257)])
def test_shrinking_is_nearly_the_average_of_the_area(size: tuple[int, int]) -> None:
    noise = cv2.GaussianBlur(pixels(np.uint8, size), (0, 0), 1.0)
    area = cv2.resize(noise, (64, 64), interpolation=cv2.INTER_AREA).astype(float)
    bilinear = cv2.resize(noise, (64, 64), interpolation=cv2.INTER_LINEAR)
    error = np.abs(resize_area(noise, 64, 64) - area).mean()
    assert error < 0.3 * np.abs(bilinear - area).mean()


@pytest.mark.parametrize("channels", [3, 4])
def test_target_as_the_image(channels: int) -> None:
    image = pixels(np.uint8, (32, 32, channels))
    transform = DiRATransform(PLAIN, distortion=None, target_channels=channels)
    views = transform(image)
    torch.testing.assert_close(views.target, views[0])


class TestReadImage:
    @pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
    @pytest.mark.parametrize("channels", [None, 3, 4])
    def test_reads_what_pil_or_opencv_wrote(self, tmp_path, dtype, channels) -> None:
        shape = (20, 30) if channels is None else (20, 30, channels)
        image = pixels(dtype, shape)
        path = tmp_path / "image.png"
        order = {3: [2, 1, 0], 4: [2, 1, 0, 3]}.get(channels)
        cv2.imwrite(str(path), image if order is None else image[..., order])
        read = read_image(path)
        np.testing.assert_array_equal(read_image(path.read_bytes()), read)
        assert read.dtype == dtype
        # Found: alpha counted as a fourth colour.
        assert np.array_equal(read, image if channels != 4 else image[..., :3])
        if dtype is np.uint8:
            mode = "L" if channels is None else "RGB"
            assert np.array_equal(read, np.asarray(Image.open(path).convert(mode)))

    def test_as_a_loader(self, tmp_path: Path) -> None:
        (tmp_path / "class").mkdir()
        cv2.imwrite(str(tmp_path / "class" / "a.png"), pixels(np.uint16, (40, 40)))
        dataset = ImageFolder(tmp_path, DiRATransform(input_size=32), loader=read_image)
        views, label = dataset[0]
        assert views.target.shape == (1, 32, 32)
        assert len(views.target.unique()) > 256
        assert label == 0

    @pytest.mark.parametrize("content", [b"", b"no image", None])
    def test_damaged_file(self, tmp_path: Path, content) -> None:
        path = tmp_path / "image.png"
        if content is None:
            cv2.imwrite(str(path), pixels(np.uint8, (40, 40)))
            content = path.read_bytes()[:20]
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"image\.png is not an image"):
            read_image(path)

    def test_missing_file(self) -> None:
        with pytest.raises(FileNotFoundError):
            read_image("nowhere.png")


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        (
            np.zeros((0, 16), np.uint8),
            ValueError,
            "16 x 16 pixels, got 0 x 16",
        ),
        (np.zeros((15, 40), np.uint8), ValueError, "got 15 x 40"),
        (Image.new("L", (15, 40)), ValueError, "got 40 x 15"),
        (np.full((16, 16), np.nan), ValueError, "NaN or infinite"),
        (np.full((16, 16), np.inf, np.float32), ValueError, "NaN or infinite"),
        (np.full((16, 16), 3.0), ValueError, r"floats in \[0, 1\], got.*window="),
        (np.zeros((16, 16), np.int16), ValueError, "int16.*window="),
        (np.full((16, 16), 2**20, np.int32), ValueError, "1.04858e\\+06.*window="),
        (np.zeros((16, 16), np.complex64), TypeError, "got complex64"),
        (np.zeros((16, 16, 33), np.uint8), ValueError, "1 to 32 channels"),
        (np.zeros((2, 16, 16, 3), np.uint8), ValueError, "1 to 32 channels"),
        ("image.png", TypeError, "got str"),
    ],
)
@pytest.mark.parametrize("base", [None, PLAIN])
def test_bad_images(image, error, message: str, base) -> None:
    with pytest.raises(error, match=message):
        DiRATransform(base)(image)


def test_bad_window() -> None:
    with pytest.raises(ValueError, match="low < high"):
        DiRATransform(window=(100, 100))


def test_colour_target_of_other_channels() -> None:
    with pytest.raises(ValueError, match=r"image of 4 channels.*target of 3"):
        DiRATransform(PLAIN, target_channels=3)(np.zeros((16, 16, 4), np.uint8))


def test_preview() -> None:
    pytest.importorskip("matplotlib")
    figure = DiRATransform(MoCoV2Transform(32)).preview(np.zeros((40, 40), np.uint8), 3)
    assert len(figure.axes) == 9
    assert {axis.get_ylabel() for axis in figure.axes} - {""} == {
        "clean target",
        "view 0",
        "view 1",
    }


class TestDicom:
    """Of two scans that pydicom ships, and of files made here."""

    def test_values_with_units(self) -> None:
        image = read_image(get_testdata_file("CT_small.dcm"))
        assert image.dtype == np.float32
        assert image.shape == (128, 128)
        file = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
        expected = file.pixel_array * float(file.RescaleSlope)
        np.testing.assert_array_equal(image, expected + float(file.RescaleIntercept))
        assert image.min() < -800, "air in Hounsfield units"
        view = DiRATransform(PLAIN, window=(-1000, 400))(image)[0]
        assert 0 <= view.min() < view.max() <= 1

    def test_signed_values_stay(self) -> None:
        image = read_image(get_testdata_file("MR_small.dcm"))
        file = pydicom.dcmread(get_testdata_file("MR_small.dcm"))
        assert image.dtype == np.int16
        np.testing.assert_array_equal(image, file.pixel_array)

    def save(self, path: Path, pixels: np.ndarray, bits: int, kind: str) -> Path:
        file = pydicom.Dataset()
        file.SOPClassUID = pydicom.uid.DigitalXRayImageStorageForPresentation
        file.SOPInstanceUID = pydicom.uid.generate_uid()
        file.file_meta = pydicom.dataset.FileMetaDataset()
        file.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        set_pixel_data(file, pixels, kind, bits)
        file.save_as(path, enforce_file_format=True)
        return path

    def test_full_range_of_16_bits(self, tmp_path) -> None:
        pixels = np.random.default_rng(0).integers(0, 4096, (32, 40), dtype=np.uint16)
        path = self.save(tmp_path / "cr.dcm", pixels, 12, "MONOCHROME2")
        image = read_image(path)
        assert image.dtype == np.uint16
        np.testing.assert_array_equal(image, pixels)
        ours = DiRATransform(v2.Compose([v2.CenterCrop(32)]), distortion=None)
        said = DiRATransform(ours.transform, distortion=None, window=(0, 4095))
        torch.testing.assert_close(ours(image).target, said(image).target)
        np.testing.assert_array_equal(read_image(path.read_bytes()), image)

    def test_monochrome1_is_inverted(self, tmp_path) -> None:
        pixels = np.random.default_rng(0).integers(0, 256, (32, 40), dtype=np.uint8)
        path = self.save(tmp_path / "cr.dcm", pixels, 8, "MONOCHROME1")
        np.testing.assert_array_equal(read_image(path), 255 - pixels)
        pixels = np.random.default_rng(0).integers(0, 4096, (32, 40), dtype=np.uint16)
        path = self.save(tmp_path / "cr.dcm", pixels, 12, "MONOCHROME1")
        np.testing.assert_array_equal(read_image(path), 4095 - pixels)

    def test_several_frames(self, tmp_path) -> None:
        pixels = np.zeros((3, 32, 40), dtype=np.uint8)
        path = self.save(tmp_path / "film.dcm", pixels, 8, "MONOCHROME2")
        with pytest.raises(ValueError, match=r"one image, got .*film\.dcm with 3"):
            read_image(path)

    def test_without_pydicom(self, monkeypatch) -> None:
        monkeypatch.setitem(sys.modules, "pydicom", None)
        with pytest.raises(ModuleNotFoundError, match=r"install lightly-dira\[medical"):
            read_image(get_testdata_file("CT_small.dcm"))
