"""Grey images go through the steps as one channel, and come out as three would."""

from __future__ import annotations

from typing import Any

import lightly.transforms as lightly_transforms
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from lightly_dira import DiRATransform
from lightly_dira.transforms import InPainting, Sequential, published_mixture

NAMES = [
    "BYOLTransform",
    "DINOTransform",
    "MoCoV1Transform",
    "MoCoV2Transform",
    "MSNTransform",
    "SimCLRTransform",
    "SimSiamTransform",
    "SMoGTransform",
    "SwaVTransform",
    "VICRegTransform",
]


def grey(bits: int = 8) -> Any:
    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, (14, 12), dtype=np.uint8)
    image = np.asarray(
        Image.fromarray(coarse).resize((84, 98), Image.Resampling.BICUBIC)
    )
    return image if bits == 8 else image.astype(np.uint16) * 257


def views_of(transform: DiRATransform, image: Any, seed: int) -> list[torch.Tensor]:
    torch.manual_seed(seed)
    np.random.seed(seed)
    views = transform(image)
    return [*views, *views.targets]


@pytest.mark.parametrize("name", NAMES)
def test_bit_for_bit_as_three_channels(name: str) -> None:
    transform = DiRATransform(getattr(lightly_transforms, name)())
    assert transform._boundary.alike
    for seed in range(6):
        colour = views_of(transform, Image.fromarray(grey()).convert("RGB"), seed)
        for image in (Image.fromarray(grey()), grey()):
            for one, three in zip(
                views_of(transform, image, seed), colour, strict=True
            ):
                assert one.shape == three.shape
                assert one.equal(three)


@pytest.mark.parametrize("name", ["MoCoV2Transform", "DINOTransform"])
def test_sixteen_bits(name: str) -> None:
    """Luminance of three equal floats is 0.9999 of them in torchvision.

    Pixels at the threshold of a solarisation may then turn.
    """
    transform = DiRATransform(getattr(lightly_transforms, name)())
    three = np.repeat(grey(16)[..., None], 3, axis=2)
    for seed in range(6):
        pairs = zip(
            views_of(transform, grey(16), seed),
            views_of(transform, three, seed),
            strict=True,
        )
        for one, other in pairs:
            assert ((one - other).abs() < 2e-3).float().mean() > 0.98


@pytest.mark.parametrize("inplace", [False, True])
def test_steps_that_tell_channels_apart_get_three(inplace: bool) -> None:
    mean, std = [0.5, 0.4, 0.3], [0.2, 0.25, 0.3]
    end = [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True)]
    end += [v2.Normalize(mean, std, inplace=inplace)]
    for step, alike in (
        (v2.RandomRotation(20), True),
        (v2.RandomRotation(20, fill=(124, 116, 104)), False),
        (v2.RandomPhotometricDistort(p=1.0), False),
        (torch.nn.Identity(), False),
        (v2.Lambda(lambda image: image), False),
    ):
        transform = DiRATransform(
            [v2.Compose([step, *end])],
            kinds={torch.nn.Identity: "photometric", v2.Lambda: "geometric"},
        )
        assert transform._boundary.alike is alike
        view, target = views_of(transform, Image.fromarray(grey()), 1)
        assert (view.shape[0], target.shape[0]) == (3, 1)


def test_distortions_that_tell_channels_apart_get_three() -> None:
    base = lightly_transforms.MoCoV2Transform()
    noise = InPainting(fill="noise")
    for distortion, alike in (
        (None, True),
        (Sequential([InPainting(), published_mixture()]), True),
        (Sequential([noise]), False),
        (lambda image, random: image, False),
    ):
        transform = DiRATransform(base, distortion=distortion)
        assert transform._boundary.alike is alike
        assert transform(grey())[0].shape == (3, 224, 224)
