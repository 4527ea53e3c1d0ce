"""Steps that scale values by fixed numbers, and which of them make a window."""

from __future__ import annotations

from typing import Any

import albumentations as A
import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from lightly_dira import DiRATransform
from lightly_dira.data.white import Stored
from lightly_dira.transforms import DiRABatchTransform
from lightly_dira.transforms.fixed_scaling import (
    changes_values_by_rule,
    scales_by_fixed_numbers,
    window_of,
)

monai = pytest.importorskip("monai.transforms")
tio = pytest.importorskip("torchio")


@pytest.mark.parametrize(
    ("step", "fixed", "rule", "window"),
    [
        (monai.ScaleIntensityRange(-1000, 400, 0, 1), True, True, (-1000, 400)),
        (monai.ScaleIntensityRanged("a", 0, 9, 0, 1), True, True, (0, 9)),
        (monai.ScaleIntensityRange(0, 9, -1, 1), True, True, None),
        (monai.NormalizeIntensity(5, 2), True, True, None),
        (monai.NormalizeIntensity(), False, True, None),
        (monai.ScaleIntensity(), False, True, None),
        (monai.RandScaleIntensity(0.1), False, False, None),
        (monai.RandFlip(), False, False, None),
        (tio.RescaleIntensity(in_min_max=(0, 9)), True, True, (0, 9)),
        (tio.RescaleIntensity(), False, True, None),
        (tio.ZNormalization(), False, True, None),
        (tio.RandomFlip(), False, False, None),
        (torch.nn.Identity(), False, False, None),
    ],
)
def test_steps(step: Any, fixed: bool, rule: bool, window: Any) -> None:
    assert scales_by_fixed_numbers(step) is fixed
    assert changes_values_by_rule(step) is rule
    assert window_of(step) == window


def test_torchio_beside_a_window() -> None:
    """Found: the view was grey all over, as values were scaled twice."""
    steps = tio.Compose([tio.RescaleIntensity((0, 1), in_min_max=(-1000, 1000))])
    with pytest.raises(ValueError, match="RescaleIntensity scales values by fixed num"):
        DiRATransform(steps, spatial_dims=3, window=(-1000, 1000))


def test_torchio_of_files_that_state_white() -> None:
    """Found: values were scaled by the file's white, and then by the step again."""
    values = np.linspace(0, 4095, 20**3).reshape(20, 20, 20).astype(np.uint16)
    steps = tio.Compose([tio.RescaleIntensity((0, 1), in_min_max=(0, 4095))])
    transform = DiRATransform(steps, spatial_dims=3, distortion=None)
    for volume in (values, Stored.of(values, 4095.0)):
        target = transform(volume).target
        assert np.allclose(target[0], values / 4095, atol=1e-6)


OF_BYTES = [
    v2.Normalize([127.5], [127.5]),
    v2.RandomErasing(p=1, value=127),
    v2.RandomRotation((45, 45), fill=127),
    A.Normalize(mean=127.5, std=60, max_pixel_value=1),
    A.CoarseDropout(fill=127, p=1),
]


@pytest.mark.parametrize("step", OF_BYTES)
@pytest.mark.parametrize("window", [(0, 4095), "percentiles", None])
def test_numbers_of_bytes_and_pixels_of_more_bits(step: Any, window: Any) -> None:
    """Found: views were constant, or had values of 127."""
    image = np.random.default_rng(0).integers(0, 4096, (48, 48)).astype(np.uint16)
    image = image if window else (image / 4095).astype(np.float32)
    ours = isinstance(step, A.BasicTransform)
    steps = A.Compose([step]) if ours else v2.Compose([v2.ToImage(), step])
    transform = DiRATransform(steps, window=window, distortion=None)
    with pytest.raises(ValueError, match=r"count from 0 to 255.*Divide"):
        transform(image)
    if not ours:
        with pytest.raises(ValueError, match=r"count from 0 to 255.*Divide"):
            DiRABatchTransform(v2.Compose([step]))


def test_numbers_of_bytes_in_kornia() -> None:
    kornia = pytest.importorskip("kornia.augmentation")
    mean = torch.full((3,), 127.5)
    with pytest.raises(ValueError, match=r"count from 0 to 255.*Divide"):
        DiRABatchTransform(kornia.Normalize(mean, mean))
    assert DiRABatchTransform(kornia.Normalize(mean / 255, mean / 255))


def test_numbers_of_bytes_and_images_of_bytes() -> None:
    image = np.random.default_rng(0).integers(0, 256, (48, 48), dtype=np.uint8)
    steps = [v2.ToImage(), v2.RandomRotation((45, 45), fill=127)]
    steps += [v2.ToDtype(torch.float32), v2.Normalize([127.5], [127.5])]
    view = DiRATransform(v2.Compose(steps), distortion=None)(image).view
    assert view.std() > 0.3
    assert view[0, 0, 0].abs() < 0.01
