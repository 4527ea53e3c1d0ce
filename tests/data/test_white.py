"""What is white, by type, bits and window."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from lightly_dira import DiRATransform
from lightly_dira.data import white
from lightly_dira.data.pixels import to_pixels


@pytest.fixture(autouse=True)
def warn_again() -> None:
    white._warn_of_few_bits.cache_clear()


class TestIntegers:
    @pytest.mark.parametrize("dtype", ["int8", "int32", "uint32", "int64", "int16"])
    def test_bytes_in_wider_types(self, dtype: str) -> None:
        """Found: int64 with 0 to 255 gave targets of at most 0.003."""
        image = np.arange(1024, dtype=dtype).reshape(32, 32) % 100
        with pytest.raises(ValueError, match=r"window=\(low, high\)"):
            DiRATransform()(image)
        with pytest.raises(ValueError, match=r"window=\(low, high\)"):
            DiRATransform(lambda x: torch.from_numpy(x)[None])(image.astype("int64"))
        scaled = to_pixels(image, (0, 99))
        np.testing.assert_allclose(scaled[0], image / 99, atol=1e-6)

    @pytest.mark.parametrize("dtype", ["uint16", "int32", "uint32", "int64"])
    def test_sixteen_bits_in_any_type(self, dtype: str, recwarn) -> None:
        image = np.linspace(0, 60000, 1024).astype(dtype).reshape(32, 32)
        np.testing.assert_allclose(to_pixels(image)[0], image / 65535, atol=1e-6)
        assert not recwarn.list
        assert not to_pixels(np.zeros((32, 32), dtype)).any()

    @pytest.mark.parametrize("most", [4095, 16383])
    def test_few_bits_are_warned_of_once(self, most: int) -> None:
        image = np.linspace(0, most, 1024).astype("uint16").reshape(32, 32)
        bits = most.bit_length()
        said = rf"those of {bits} bits, .* window=\(0, {most}\)"
        with pytest.warns(UserWarning, match=said):
            to_pixels(image)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            to_pixels(image)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision(self, dtype) -> None:
        views = DiRATransform()(torch.rand(1, 40, 40).to(dtype))
        assert views.target.dtype == torch.float32


def test_bad_window() -> None:
    with pytest.raises(ValueError, match="low < high"):
        DiRATransform(window=(100, 100))


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


class TestPixelsBehindTheBoundary:
    """What a review found: each was wrong in silence, or an error in mid-run."""

    def test_percentiles_come_from_everywhere(self) -> None:
        volume = np.zeros((256, 128, 128), np.uint8)
        inside = volume[:, 30:100, 30:100]
        inside[:] = np.random.default_rng(0).integers(50, 200, inside.shape)
        low, high = white.limits_of(volume, "percentiles")
        assert low == 0
        assert high == pytest.approx(np.percentile(volume, 99.5), abs=2)
