"""Distortions of batches: the same sizes, counts and rates as those on the host."""

from __future__ import annotations

from typing import Any

import albumentations
import pytest
import torch
from distorted import IMAGE, MANY, VOLUME, both_ways, numbered

from lightly_dira.transforms import (
    BatchDistortion,
    InPainting,
    NonLinearIntensity,
    OneOf,
    PatchShuffling,
    PixelShuffling,
    Sequential,
    batch_distortion,
    models_genesis_mixture,
    published_mixture,
    transvw_mixture,
)
from lightly_dira.transforms.albumentations_steps import Albumentation


@pytest.mark.parametrize("sizes", [IMAGE, VOLUME], ids=["images", "volumes"])
def test_rates_of_the_mixture(sizes: tuple[int, ...]) -> None:
    images, host, device = both_ways(published_mixture(), sizes)
    rates = []
    for result in (host, device):
        black = (result == 0)[:, 0].flatten(1).float().mean(dim=1)
        changed = (result != images)[:, 0].flatten(1).any(dim=1)
        outside = result[(slice(None), 0) + (0,) * len(sizes)] == 0
        rates.append(
            [
                (outside & (black > 0)).float().mean(),
                ((black > 0) & ~outside).float().mean(),
                (changed & (black == 0)).float().mean(),
            ]
        )
    for host_rate, rate, expected in zip(*rates, [0.05, 0.30, 0.30], strict=True):
        assert float(rate) == pytest.approx(expected, abs=4 * 0.5 / MANY**0.5)
        assert float(rate) == pytest.approx(float(host_rate), abs=6 * 0.5 / MANY**0.5)


@pytest.mark.parametrize("mixture", [transvw_mixture(), models_genesis_mixture()])
def test_mixtures_of_volumes(mixture: Any) -> None:
    volumes = torch.rand(2, 1, 16, 24, 24)
    out = BatchDistortion(mixture, spatial_dims=3)(volumes)
    assert out.shape == volumes.shape
    assert not out.equal(volumes)
    assert ((out >= 0) & (out <= 1)).all()


def test_each_image_has_its_own_draws_and_the_seed_repeats_them() -> None:
    images = torch.rand(1, 1, 64, 64).expand(8, 1, 64, 64)
    outs = [
        BatchDistortion(InPainting())(images, torch.Generator().manual_seed(3))
        for _ in range(2)
    ]
    assert outs[0].equal(outs[1])
    assert len({tuple(image.flatten().tolist()) for image in outs[0]}) == 8


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("distortion", [PatchShuffling(), PixelShuffling(count=50)])
def test_batches_that_are_not_row_by_row(distortion: Any, inplace: bool) -> None:
    """Found: pixels were exchanged in a copy."""
    whole = torch.rand(2, 1, 64, 80)
    last = torch.rand(2, 3, 64, 64).to(memory_format=torch.channels_last)
    for images in (whole.transpose(2, 3), whole[..., :64], last):
        kept = images.clone()
        out = BatchDistortion(distortion, inplace=inplace)(images)
        assert not out.equal(kept)
        assert images.equal(out) == inplace


def test_the_batch_stays_unless_it_may_change() -> None:
    images = torch.ones(16, 1, 64, 64)
    BatchDistortion()(images)
    assert images.all()
    out = BatchDistortion(InPainting(), inplace=True)(images)
    assert out is images
    assert not images.all()


def test_on_accelerators_nobody_asks_which_images_are_chosen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All are distorted, and the rest restored: as often, and the others are equal."""
    monkeypatch.setattr(batch_distortion, "is_waited_for", lambda images: True)
    images = numbered(IMAGE).contiguous()
    torch.manual_seed(0)
    out = BatchDistortion(OneOf([InPainting(), PatchShuffling()], [0.2, 0.3]))(images)
    black = (out == 0).flatten(1).any(dim=1)
    changed = (out != images).flatten(1).any(dim=1)
    assert float(black.float().mean()) == pytest.approx(0.2, abs=0.08)
    assert float(changed.float().mean()) == pytest.approx(0.5, abs=0.1)


def test_reads_no_values_on_accelerators() -> None:
    """Tensors on the device "meta" have none."""
    for distortion, dims in ((published_mixture(), 2), (models_genesis_mixture(), 3)):
        images = torch.empty((4, 1, *(32,) * dims), device="meta")
        out = BatchDistortion(distortion, spatial_dims=dims)(images)
        assert (out.shape, out.device.type) == (images.shape, "meta")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions(dtype: torch.dtype) -> None:
    curves = Sequential([NonLinearIntensity(), published_mixture()])
    assert BatchDistortion(curves)(torch.rand(8, 3, 32, 32).to(dtype)).dtype == dtype


def test_errors() -> None:
    with pytest.raises(TypeError, match="function distorts one array"):
        BatchDistortion(lambda image, random: image)
    with pytest.raises(TypeError, match="uint8"):
        BatchDistortion()(torch.zeros(2, 3, 8, 8, dtype=torch.uint8))
    with pytest.raises(ValueError, match="spatial_dims=3"):
        BatchDistortion()(torch.rand(2, 1, 8, 8, 8))
    with pytest.raises(ValueError, match="2 for images or 3"):
        BatchDistortion(spatial_dims=1)
    blur = OneOf([Albumentation(albumentations.Blur())])
    with pytest.raises(TypeError, match="Albumentation"):
        BatchDistortion(blur)
