"""Image files of every kind."""

from __future__ import annotations

import io
import struct
import warnings
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
import torch
from bounded import BOUNDED
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import pixels, ramp
from PIL import Image, ImageOps
from torchvision.datasets import ImageFolder

from lightly_dira import DiRATransform
from lightly_dira.data.pixels import to_pixels
from lightly_dira.transforms import read_image


class TestTiff:
    """Files of the classic kind and of the large one are told apart by two bytes."""

    grey = np.arange(40 * 40, dtype=np.uint16).reshape(40, 40)

    @pytest.mark.parametrize("order", ["<", ">"])
    @pytest.mark.parametrize("big", [False, True])
    def test_pages(self, big: bool, order: str, tmp_path: Path) -> None:
        """Found: of large files the first page was read, without a word."""
        path = tmp_path / "a.tif"
        options = dict(bigtiff=big, byteorder=order, photometric="minisblack")
        tifffile.imwrite(path, self.grey, **options)
        assert np.array_equal(read_image(path), self.grey)
        tifffile.imwrite(path, np.stack([self.grey] * 3), **options)
        with pytest.raises(ValueError, match="2 pages or frames"):
            read_image(path)

    def test_volumes(self, tmp_path: Path) -> None:
        path = tmp_path / "a.tif"
        options = dict(photometric="minisblack", volumetric=True)
        tifffile.imwrite(path, np.stack([self.grey] * 4), **options)
        with pytest.raises(ValueError, match="holds 4 pages or frames"):
            read_image(path)

    @pytest.mark.parametrize("big", [False, True])
    def test_white_is_zero_and_alpha(self, big: bool, tmp_path: Path) -> None:
        path = tmp_path / "a.tif"
        tifffile.imwrite(path, self.grey, bigtiff=big, photometric="miniswhite")
        assert np.array_equal(read_image(path), 65535 - self.grey)
        image = np.full((40, 40, 4), 200, np.uint8)
        image[..., 3] = 100
        tifffile.imwrite(path, image, bigtiff=big, photometric="rgb", extrasamples=[2])
        assert np.array_equal(read_image(path), image[..., :3])

    @pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
    def test_planes_one_after_the_other(self, dtype, tmp_path: Path) -> None:
        """Found: OpenCV takes the first for all of them, and memory for the rest."""
        planes = np.arange(3 * 40 * 40).reshape(3, 40, 40) % 251
        path = tmp_path / "a.tif"
        options = dict(photometric="rgb", planarconfig="separate")
        tifffile.imwrite(path, planes.astype(dtype), **options)
        if dtype == np.uint8:
            assert np.array_equal(read_image(path), planes.transpose(1, 2, 0))
        else:
            with pytest.raises(ValueError, match=r"keeps its 3 bands of .* one after"):
                read_image(path)

    def test_twelve_bits(self, tmp_path: Path) -> None:
        """Found: values came multiplied by 16."""
        path, values = tmp_path / "a.tif", self.grey % 4096
        pairs = values.reshape(-1, 2).astype(np.uint32)
        packed = pairs[:, 0] << 12 | pairs[:, 1]
        parts = np.stack([packed >> 16, packed >> 8, packed], axis=1).astype(np.uint8)
        tags = [(256, 4, 40), (257, 4, 40), (258, 3, 12), (259, 3, 1), (262, 3, 1)]
        tags += [(273, 4, 8), (277, 3, 1), (278, 4, 40), (279, 4, parts.size)]
        start = struct.pack("<2sHI", b"II", 42, 8 + parts.size)
        entries = b"".join(struct.pack("<HHII", n, kind, 1, v) for n, kind, v in tags)
        end = struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0)
        path.write_bytes(start + parts.tobytes() + end)
        image = read_image(path)
        assert np.array_equal(image, values)
        assert image.white == 4095


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


class TestBandsOfTiff:
    """Found: the first band, colours times the fourth, and two polarities."""

    @pytest.mark.parametrize("bands", [3, 4])
    def test_bands_that_are_not_colours(self, bands: int, tmp_path: Path) -> None:
        pixels = np.zeros((40, 48, bands), np.uint16)
        options = dict(photometric="minisblack", planarconfig="contig")
        tifffile.imwrite(tmp_path / "a.tif", pixels, **options)
        with pytest.raises(ValueError, match=rf"a\.tif holds {bands} bands"):
            read_image(tmp_path / "a.tif")

    def test_colours_are_not_multiplied_by_alpha(self, tmp_path: Path) -> None:
        pixels = np.full((40, 40, 4), 200, np.uint8)
        pixels[..., 3] = 100
        for name in ("a.tif", "a.png"):
            Image.fromarray(pixels).save(tmp_path / name)
            assert (read_image(tmp_path / name) == 200).all()

    @pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
    def test_white_is_zero(self, dtype, tmp_path: Path) -> None:
        pixels = np.zeros((40, 40), dtype)
        pixels[:20] = 200
        tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="miniswhite")
        image = read_image(tmp_path / "a.tif")
        top = np.iinfo(dtype).max
        np.testing.assert_array_equal(image, top - pixels)


class TestDamage:
    def test_constant_lower_half(self, tmp_path: Path) -> None:
        array = np.array(Image.fromarray(ramp(255).astype(np.uint8)))
        array[32:] = 128
        Image.fromarray(array).save(tmp_path / "image.png")
        with pytest.warns(UserWarning, match=r"lower half of .*image.png is constant"):
            read_image(tmp_path / "image.png")

    @settings(**BOUNDED | dict(max_examples=60))
    @given(data=st.data())
    def test_files_damaged_at_random(self, data, tmp_path: Path) -> None:
        """A picture, a warning or an error of ours: nothing else."""
        kind = data.draw(st.sampled_from(["tiff", "bmp", "webp", "jpeg", "png"]))
        file = io.BytesIO()
        Image.fromarray(ramp(255).astype(np.uint8)).save(file, kind)
        content = bytearray(file.getvalue())
        for _ in range(data.draw(st.integers(1, 20))):
            place = data.draw(st.integers(0, len(content) - 1))
            content[place] = data.draw(st.integers(0, 255))
        content = content[: data.draw(st.integers(1, len(content)))]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                image = read_image(bytes(content))
            except ValueError as error:
                assert str(error).startswith("read_image: "), error
            else:
                assert image.ndim in (2, 3)


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


def test_images_that_opencv_refuses(tmp_path, monkeypatch) -> None:
    """Found: its own error, without the file's name, ended a whole run."""
    path = tmp_path / "huge.png"
    cv2.imwrite(str(path), np.zeros((8, 8), np.uint8))

    def refuse(*_: object) -> None:
        raise cv2.error("too many pixels")

    monkeypatch.setattr(cv2, "imdecode", refuse)
    with pytest.raises(ValueError, match=r"huge\.png cannot be read"):
        read_image(path)


def test_signed_colours_of_tiff(tmp_path) -> None:
    """Found: an error of OpenCV about depths."""
    colours = np.arange(-32, 16 * 3 - 32).reshape(4, 4, 3).astype(np.int16)
    tifffile.imwrite(tmp_path / "a.tif", colours, photometric="rgb")
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), colours)


@pytest.mark.parametrize("kind", ["float32", "uint8", "uint16"])
def test_white_is_zero(kind: str, tmp_path) -> None:
    """Found: floats stayed inverted, in silence."""
    values = np.arange(16).reshape(4, 4).astype(kind)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="miniswhite")
    if kind == "float32":
        with pytest.raises(ValueError, match=r"a\.tif says that white is 0"):
            read_image(tmp_path / "a.tif")
    else:
        image = read_image(tmp_path / "a.tif")
        np.testing.assert_array_equal(image, np.iinfo(kind).max - values)


@pytest.mark.parametrize("turned", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
def test_photographs_are_upright(suffix: str, turned: int, tmp_path: Path) -> None:
    """Found: masks that were drawn on what viewers show lay elsewhere."""
    y, x = np.mgrid[:48, :64]
    image = Image.fromarray((2 * y + x).astype(np.uint8))
    exif = Image.Exif()
    exif[274] = turned
    path = tmp_path / f"a{suffix}"
    image.save(path, exif=exif, **({"lossless": True} if suffix == ".webp" else {}))
    with Image.open(path) as opened:
        shown = np.asarray(ImageOps.exif_transpose(opened).convert("L"))
    read = read_image(path)
    read = read if read.ndim == 2 else read[..., 0]
    assert read.shape == shown.shape
    assert np.abs(read.astype(int) - shown).max() <= 4


def test_what_is_drawn_in_alpha_alone(tmp_path: Path) -> None:
    """Found: as a mask it was all foreground, or empty."""
    drawn = np.zeros((32, 32, 4), np.uint8)
    drawn[:8, :8, 3] = 255
    path = tmp_path / "mask.png"
    cv2.imwrite(str(path), drawn)
    with pytest.raises(ValueError, match=r"is of one colour.*alpha"):
        read_image(path)


def test_masks_of_an_upper_half_are_not_damaged(tmp_path: Path, recwarn) -> None:
    mask = np.zeros((32, 32), np.uint8)
    mask[4:12, 4:12] = 255
    cv2.imwrite(str(tmp_path / "mask.png"), mask)
    read_image(tmp_path / "mask.png")
    assert not recwarn.list


def test_stacks_of_imagej(tmp_path: Path) -> None:
    """Found: the first of five images was returned without a word."""
    stack = np.zeros((5, 32, 32), np.uint16)
    tifffile.imwrite(tmp_path / "stack.tif", stack, imagej=True)
    with pytest.raises(ValueError, match=r"holds 5 pages.*volume"):
        read_image(tmp_path / "stack.tif")
    tifffile.imwrite(tmp_path / "one.tif", stack[0], imagej=True)
    assert read_image(tmp_path / "one.tif").shape == (32, 32)


@pytest.mark.parametrize("white", [15, 255, 4095, 65535])
def test_white_of_portable_maps(white: int, tmp_path: Path) -> None:
    """Found: what such a file calls white was almost black."""
    pixels = np.linspace(0, white, 64 * 64).reshape(64, 64).astype(int)
    data = pixels.astype("u1" if white < 256 else ">u2").tobytes()
    path = tmp_path / "a.pgm"
    path.write_bytes(b"P5\n# by a scanner\n64 64\n%d\n" % white + data)
    image = read_image(path)
    np.testing.assert_array_equal(image, pixels)
    values = to_pixels(image)
    top = 255 if values.dtype == np.uint8 else 1
    np.testing.assert_allclose(values[0] / top, pixels / white, atol=1e-6)
