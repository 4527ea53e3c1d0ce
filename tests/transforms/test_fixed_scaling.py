"""Steps that scale values by fixed numbers, and which of them make a window."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from lightly_dira import DiRATransform
from lightly_dira.data.white import Stored
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
