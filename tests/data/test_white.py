"""What is white, by type, bits and window."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

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

    def test_twelve_bits_are_warned_of_once(self) -> None:
        image = np.linspace(0, 4095, 1024).astype("uint16").reshape(32, 32)
        with pytest.warns(UserWarning, match=r"window=\(0, 4095\)"):
            to_pixels(image)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            to_pixels(image)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision(self, dtype) -> None:
        views = DiRATransform()(torch.rand(1, 40, 40).to(dtype))
        assert views.target.dtype == torch.float32
