"""The one boundary where values become pixels in [0, 1]."""

from __future__ import annotations

import numpy as np
import torch
from torchvision.transforms import v2

from lightly_dira import DiRATransform
from lightly_dira.data.pixels import to_pixels


def test_window_clips_and_scales() -> None:
    image = np.full((16, 16), -3000, np.int16)
    image[0, :3] = -1000, -300, 400
    (scaled,) = to_pixels(image, (-1000, 400))
    assert scaled.dtype == np.float32
    np.testing.assert_allclose(scaled[0, :4], [0, 0.5, 1, 0])


def test_other_byte_order() -> None:
    image = np.linspace(0, 65535, 40 * 40).reshape(40, 40).astype(">u2")
    ours = DiRATransform(v2.Compose([v2.CenterCrop(32)]), distortion=None)
    torch.testing.assert_close(
        ours(image).target, ours(image.astype("u2")).target, rtol=0, atol=0
    )
