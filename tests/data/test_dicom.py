"""DICOM files: values, units, polarity, windows."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import cv2
import numpy as np
import pydicom
import pytest
import torch
from dicom_files import save_slice
from pydicom import Dataset, Sequence
from pydicom.data import get_testdata_file
from pydicom.pixels.utils import set_pixel_data
from torchvision.transforms import v2

from lightly_dira import DiRATransform
from lightly_dira.data import ImageFiles
from lightly_dira.data.pixels import to_pixels
from lightly_dira.data.white import Stored
from lightly_dira.transforms import read_image, read_volume

PLAIN = v2.Compose([v2.RandomCrop(16), v2.ToImage(), v2.ToDtype(torch.float32, True)])


def save_xray(path: Path, pixels: np.ndarray, bits: int, kind: str) -> Path:
    file = pydicom.Dataset()
    file.SOPClassUID = pydicom.uid.DigitalXRayImageStorageForPresentation
    file.SOPInstanceUID = pydicom.uid.generate_uid()
    file.file_meta = pydicom.dataset.FileMetaDataset()
    file.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    set_pixel_data(file, pixels, kind, bits)
    file.save_as(path, enforce_file_format=True)
    return path


class TestDicom:
    pixels = np.random.default_rng(0).integers(0, 4096, (32, 40), dtype=np.uint16)

    def test_polarity_with_units(self, tmp_path: Path) -> None:
        """Found: with a rescale tag, MONOCHROME1 was not inverted."""
        tags = dict(BitsStored=12, HighBit=11, RescaleSlope=2, RescaleIntercept=-5)
        plain, inverted = (
            read_image(save_slice(tmp_path / f"{kind}.dcm", pixels, **tags,
                                 PhotometricInterpretation=kind))
            for kind, pixels in (("MONOCHROME2", self.pixels),
                                 ("MONOCHROME1", 4095 - self.pixels))
        )  # fmt: skip
        np.testing.assert_array_equal(plain, inverted)

    def test_an_intercept_alone(self, tmp_path: Path) -> None:
        path = save_slice(
            tmp_path / "a.dcm", self.pixels, BitsStored=12, RescaleIntercept=-1024
        )
        np.testing.assert_array_equal(read_image(path), self.pixels - 1024.0)

    @pytest.mark.parametrize("tag", ["RescaleSlope", "NumberOfFrames"])
    def test_empty_tags(self, tag: str, tmp_path: Path) -> None:
        path = save_slice(tmp_path / "a.dcm", self.pixels, BitsStored=16, **{tag: None})
        np.testing.assert_array_equal(read_image(path), self.pixels)

    def test_palette(self) -> None:
        """Found: the indices were returned as grey values."""
        image = read_image(get_testdata_file("examples_palette.dcm"))
        assert image.shape[2] == 3

    def test_padding_stays_black(self, tmp_path: Path) -> None:
        pixels = self.pixels.copy()
        pixels[:4] = 0
        path = save_slice(
            tmp_path / "a.dcm",
            pixels,
            BitsStored=12,
            PhotometricInterpretation="MONOCHROME1",
            PixelPaddingValue=0,
        )
        image = read_image(path)
        assert image[:4].max() == 0
        assert image[4:].mean() > 1_500

    @pytest.mark.parametrize("voi", [False, True])
    def test_ranges_of_padding(self, voi: bool, tmp_path: Path) -> None:
        """Found: of a range, all but its first value became white."""
        pixels = self.pixels.copy() + 10
        pixels[:4, :], pixels[:4, 1] = 5, 0
        path = save_slice(
            tmp_path / "a.dcm",
            pixels,
            BitsStored=12,
            PhotometricInterpretation="MONOCHROME1",
            PixelPaddingValue=0,
            PixelPaddingRangeLimit=5,
            WindowCenter=2048,
            WindowWidth=4096,
        )
        image = read_image(path, voi=voi)
        assert image[:4].max() == 0
        assert np.median(image[4:]) > 0

    def test_bright_padding(self, tmp_path: Path) -> None:
        """Found: it stayed white."""
        pixels = self.pixels.copy()
        pixels[:4] = 65535
        path = save_slice(
            tmp_path / "a.dcm", pixels, BitsStored=16, PixelPaddingValue=65535
        )
        image = read_image(path)
        assert image[:4].max() == 0
        np.testing.assert_array_equal(image[4:], self.pixels[4:])

    @pytest.mark.parametrize("kind", ["MONOCHROME1", "MONOCHROME2"])
    def test_tables_of_bytes(self, kind: str, tmp_path: Path) -> None:
        """Found: they could not be read, also where the table was not needed."""
        item = Dataset()
        item.LUTDescriptor, item.ModalityLUTType = [4096, 0, 16], "US"
        item.add_new("LUTData", "OW", (16 * np.arange(4096, dtype="<u2")).tobytes())
        path = save_slice(
            tmp_path / "a.dcm",
            self.pixels,
            BitsStored=12,
            PhotometricInterpretation=kind,
            ModalityLUTSequence=Sequence([item]),
        )
        expected = 16.0 * self.pixels
        if kind == "MONOCHROME1":
            expected = 16 * 4095 - expected
        np.testing.assert_allclose(read_image(path), expected)

    def test_few_bits_of_bytes(self, tmp_path: Path) -> None:
        """Found: PIL's images do not know that 63 is white."""
        pixels = (self.pixels % 64).astype(np.uint8)
        save_slice(tmp_path / "a.dcm", pixels, BitsStored=6, HighBit=5)
        image = ImageFiles(tmp_path)[0][0]
        assert to_pixels(image).max() == pytest.approx(pixels.max() / 63)

    def test_without_a_preamble(self, tmp_path: Path) -> None:
        path = save_slice(tmp_path / "a.dcm", self.pixels, BitsStored=16)
        data = path.read_bytes()
        (tmp_path / "b").write_bytes(data[132:])
        np.testing.assert_array_equal(read_image(tmp_path / "b"), self.pixels)

    def test_errors_name_the_file(self, tmp_path: Path) -> None:
        path = save_slice(tmp_path / "cut.dcm", self.pixels, BitsStored=16)
        file = pydicom.dcmread(path)
        file.PixelData = file.PixelData[:-200]
        file.save_as(path)
        with pytest.raises(ValueError, match=r"cut\.dcm cannot be read"):
            read_image(path)

    def test_one_rule_for_bits(self, tmp_path: Path) -> None:
        """Found: images of 12 bits were multiplied by 16, and volumes were not."""
        tags = dict(BitsStored=12, HighBit=11, RescaleSlope=None, RescaleIntercept=None)
        image = read_image(save_slice(tmp_path / "a.dcm", self.pixels, **tags))
        folder = tmp_path / "series"
        folder.mkdir()
        for number in range(3):
            save_slice(
                folder / f"{number}.dcm",
                self.pixels,
                **tags,
                ImagePositionPatient=[0, 0, number],
                ImageOrientationPatient=[1, 0, 0, 0, 1, 0],
                PixelSpacing=[1, 1],
            )
        volume = read_volume(folder)
        np.testing.assert_array_equal(image, self.pixels)
        np.testing.assert_array_equal(volume[1], self.pixels)
        for values, dims in ((image, 2), (volume, 3)):
            # White is known, and a window is in the file's own units.
            pixels = to_pixels(values, None, dims)
            np.testing.assert_allclose(pixels, to_pixels(values, (0, 4095), dims))
            assert pixels.max() > 0.99
        dataset = ImageFiles(tmp_path / "series", DiRATransform(input_size=32))
        assert dataset[0][0].target.max() > 0.8

    def test_arithmetic_forgets_white(self) -> None:
        stored = Stored.of(self.pixels.copy(), 4095)
        for same in (stored[2:, ::-1].T.copy(), pickle.loads(pickle.dumps(stored))):
            assert same.white == 4095
        assert type(stored * 2) is np.ndarray
        assert to_pixels(stored).max() == pytest.approx(self.pixels.max() / 4095)

    @pytest.mark.parametrize("kind", ["MONOCHROME1", "MONOCHROME2"])
    def test_the_window_for_displays(self, kind: str, tmp_path: Path) -> None:
        tags = dict(BitsStored=12, HighBit=11, PhotometricInterpretation=kind)
        tags |= dict(RescaleSlope=2, RescaleIntercept=-1000)
        tags |= dict(WindowCenter=[500, 9], WindowWidth=[1001, 3])
        path = save_slice(tmp_path / "a.dcm", self.pixels, **tags)
        shown = read_image(path, voi=True)
        values = self.pixels * 2.0 - 1000
        right = ((values - 499.5) / 1000 + 0.5).clip(0, 1)
        right = right if kind == "MONOCHROME2" else 1 - right
        np.testing.assert_allclose(shown, right, atol=1e-6)
        assert shown.dtype == np.float32
        (image, *_) = ImageFiles([path], voi=True)[0]
        np.testing.assert_array_equal(image, shown)

    def test_a_table_for_displays(self, tmp_path: Path) -> None:
        table = Dataset()
        table.add_new("LUTDescriptor", "US", [4096, 0, 8])
        curve = (255 * np.sqrt(np.arange(4096) / 4095)).astype(np.uint8)
        table.add_new("LUTData", "US", curve.astype(int).tolist())
        tags = dict(BitsStored=12, HighBit=11, VOILUTSequence=Sequence([table]))
        path = save_slice(tmp_path / "a.dcm", self.pixels, **tags)
        np.testing.assert_allclose(
            read_image(path, voi=True), curve[self.pixels] / 255, atol=1e-6
        )

    def test_no_window_for_displays(self, tmp_path: Path) -> None:
        path = save_slice(tmp_path / "a.dcm", self.pixels, BitsStored=12)
        with pytest.raises(ValueError, match=r'a\.dcm .*window="percentiles"'):
            read_image(path, voi=True)
        cv2.imwrite(str(tmp_path / "a.png"), self.pixels)
        with pytest.raises(ValueError, match=r"for DICOM files, got .*a\.png"):
            read_image(tmp_path / "a.png", voi=True)

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

    def test_full_range_of_16_bits(self, tmp_path) -> None:
        pixels = np.random.default_rng(0).integers(0, 4096, (32, 40), dtype=np.uint16)
        path = save_xray(tmp_path / "cr.dcm", pixels, 12, "MONOCHROME2")
        image = read_image(path)
        assert image.dtype == np.uint16
        np.testing.assert_array_equal(image, pixels)
        ours = DiRATransform(v2.Compose([v2.CenterCrop(32)]), distortion=None)
        said = DiRATransform(ours.transform, distortion=None, window=(0, 4095))
        torch.testing.assert_close(ours(image).target, said(image).target)
        np.testing.assert_array_equal(read_image(path.read_bytes()), image)

    def test_monochrome1_is_inverted(self, tmp_path) -> None:
        pixels = np.random.default_rng(0).integers(0, 256, (32, 40), dtype=np.uint8)
        path = save_xray(tmp_path / "cr.dcm", pixels, 8, "MONOCHROME1")
        np.testing.assert_array_equal(read_image(path), 255 - pixels)
        pixels = np.random.default_rng(0).integers(0, 4096, (32, 40), dtype=np.uint16)
        path = save_xray(tmp_path / "cr.dcm", pixels, 12, "MONOCHROME1")
        np.testing.assert_array_equal(read_image(path), 4095 - pixels)

    def test_several_frames(self, tmp_path) -> None:
        pixels = np.zeros((3, 32, 40), dtype=np.uint8)
        path = save_xray(tmp_path / "film.dcm", pixels, 8, "MONOCHROME2")
        with pytest.raises(ValueError, match=r"one image, got .*film\.dcm with 3"):
            read_image(path)

    def test_without_pydicom(self, monkeypatch) -> None:
        monkeypatch.setitem(sys.modules, "pydicom", None)
        with pytest.raises(ModuleNotFoundError, match=r"install lightly-dira\[medical"):
            read_image(get_testdata_file("CT_small.dcm"))


class TestOddDicom:
    @pytest.mark.parametrize("signed", [0, 1])
    @pytest.mark.parametrize("inverted", [False, True])
    def test_inverted(self, signed: int, inverted: bool, tmp_path: Path) -> None:
        """Found: signed MONOCHROME1 was not."""
        pydicom = pytest.importorskip("pydicom")
        values = np.arange(256, dtype=np.int16 if signed else np.uint16)
        values = values.reshape(16, 16)
        interpretation = "MONOCHROME1" if inverted else "MONOCHROME2"
        path = tmp_path / "image.dcm"
        file = pydicom.dcmread(get_testdata_file("MR_small.dcm"))
        set_pixel_data(file, values, interpretation, 16, generate_instance_uid=False)
        file.save_as(path)
        assert pydicom.dcmread(path).PixelRepresentation == signed
        found = read_image(path).astype(int)
        assert (found[0, 0] > found[0, 1]) == inverted
        if signed:
            assert np.array_equal(found, ~values if inverted else values)


def test_padding_darker_than_air(tmp_path: Path) -> None:
    """Found: percentiles of CT were those of -3024, beside the circle."""
    pixels = np.random.default_rng(0).integers(-1000, 300, (64, 64)).astype(np.int16)
    pixels[:, :20] = -2000
    tags = dict(BitsStored=16, HighBit=15, RescaleSlope=1, RescaleIntercept=-24)
    path = save_slice(tmp_path / "a.dcm", pixels, **tags)
    file = pydicom.dcmread(path)
    file.add_new("PixelPaddingValue", "SS", -2000)
    file.save_as(path)
    values = read_image(path)
    assert values.min() == values[:, 0].max() == pixels[:, 20:].min() - 24.0


def test_few_bits_that_are_inverted(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 4096, (32, 32)).astype(np.uint16)
    path = save_xray(tmp_path / "a.dcm", pixels, 16, "MONOCHROME1")
    with pytest.warns(UserWarning, match=r"almost white.*window=\(61440, 65535\)"):
        values = read_image(path)
    assert to_pixels(values, (61440, 65535)).min() < 0.1


def test_windows_of_what_is_windowed(tmp_path: Path) -> None:
    """Found: targets of at most 0.0002."""
    pixels = np.random.default_rng(0).integers(0, 4096, (32, 32)).astype(np.uint16)
    tags = dict(BitsStored=12, HighBit=11, WindowCenter=600, WindowWidth=400)
    path = save_slice(tmp_path / "a.dcm", pixels, **tags)
    shown = read_image(path, voi=True)
    with pytest.raises(ValueError, match="Leave one of the two out"):
        to_pixels(shown, (0, 4095))
    assert to_pixels(shown, (0, 0.5)).max() == 1


def test_objects_without_an_image(tmp_path: Path) -> None:
    file = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
    del file.PixelData
    file.save_as(tmp_path / "report.dcm")
    with pytest.raises(ValueError, match=r"with 0: leave it out"):
        read_image(tmp_path / "report.dcm")


def test_padding_whose_bits_are_stated_as_unsigned(tmp_path: Path) -> None:
    """Found: padding of -2000, stated as 63536, ruled the percentiles."""
    pixels = np.random.default_rng(0).integers(-1000, 300, (64, 64)).astype(np.int16)
    pixels[:, :20] = -2000
    tags = dict(BitsStored=16, HighBit=15, RescaleSlope=1, RescaleIntercept=0)
    path = save_slice(tmp_path / "a.dcm", pixels, PixelPaddingValue=63536, **tags)
    assert read_image(path).min() == pixels[:, 20:].min()


def test_palettes_need_no_window(tmp_path: Path) -> None:
    """Found: numbers of colours were windowed as if they were grey values."""
    path = tmp_path / "a.dcm"
    file = pydicom.dcmread(get_testdata_file("examples_palette.dcm"))
    file.WindowCenter, file.WindowWidth = 128, 256
    file.save_as(path)
    np.testing.assert_array_equal(read_image(path, voi=True), read_image(path))


def test_half_a_window(tmp_path: Path) -> None:
    pixels = np.zeros((32, 32), np.uint16)
    path = save_slice(tmp_path / "a.dcm", pixels, BitsStored=16, WindowCenter=None)
    with pytest.raises(ValueError, match="it states no window"):
        read_image(path, voi=True)
