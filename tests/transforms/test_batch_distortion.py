"""Distortions of batches: the same sizes, counts and rates as those on the host."""

from __future__ import annotations

from typing import Any

import albumentations
import numpy as np
import pytest
import torch
from scipy import stats

from lightly_dira.transforms import (
    BatchDistortion,
    InPainting,
    NonLinearIntensity,
    OneOf,
    OutPainting,
    PatchShuffling,
    PixelShuffling,
    Sequential,
    batch_distortion,
    models_genesis_mixture,
    published_mixture,
    transvw_mixture,
)
from lightly_dira.transforms.albumentations_steps import Albumentation, ElasticInPlane

MANY = 400
IMAGE, VOLUME = (48, 56), (12, 20, 24)


def numbered(sizes: tuple[int, ...]) -> torch.Tensor:
    """Images whose pixels all differ, and none is black or white."""
    count = int(np.prod(sizes))
    pixels = (torch.arange(count) + 1.0) / (count + 1)
    return pixels.view(1, 1, *sizes).expand(MANY, 2, *sizes)


def on_the_host(distortion: Any, images: torch.Tensor) -> torch.Tensor:
    random = np.random.default_rng(0)
    arrays = images.movedim(1, -1).contiguous().numpy()
    distorted = np.stack([distortion(array, random) for array in arrays])
    return torch.from_numpy(distorted).movedim(-1, 1)


def both_ways(
    distortion: Any, sizes: tuple[int, ...]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    images = numbered(sizes)
    torch.manual_seed(0)
    distort = BatchDistortion(distortion, spatial_dims=len(sizes))
    return images, on_the_host(distortion, images), distort(images)


def same_distribution(host: torch.Tensor, device: torch.Tensor) -> None:
    assert stats.ks_2samp(host.flatten(), device.flatten()).pvalue > 1e-3


def sides(changed: torch.Tensor) -> torch.Tensor:
    """For each axis in how many positions something has changed: (B, axes)."""
    axes = range(1, changed.ndim)
    return torch.stack(
        [changed.any(dim=tuple(a for a in axes if a != axis)).sum(1) for axis in axes],
        1,
    )


@pytest.mark.parametrize("sizes", [IMAGE, VOLUME], ids=["images", "volumes"])
@pytest.mark.parametrize(
    "distortion",
    [
        InPainting(),
        InPainting(count=1, p=0.5),
        InPainting(count=3, stop=0.5, fill="noise", margin=0.1),
        OutPainting(),
        OutPainting(count=2, side=(3 / 7, 4 / 7), fill="noise"),
        PatchShuffling(),
        PatchShuffling(count=30, side=(0.1, 0.2)),  # for which there is no room
        PixelShuffling(side=(0.1, 0.3)),
        PixelShuffling(count=1, side=(0.1, 0.9), p=0.7),
    ],
    ids=repr,
)
def test_pixels_change_as_often_and_in_such_places_as_on_the_host(
    distortion: Any, sizes: tuple[int, ...]
) -> None:
    images, host, device = both_ways(distortion, sizes)
    changes = [(result != images).all(dim=1) for result in (host, device)]
    for first, second in zip(
        *([c.flatten(1).sum(1), *sides(c).unbind(1)] for c in changes), strict=True
    ):
        same_distribution(first, second)
    by_place = [change.float().mean(dim=0) for change in changes]
    # Both rates of a place have a deviation of at most 0.5 / sqrt(MANY).
    assert (by_place[0] - by_place[1]).abs().max() < 6 * 0.5 * (2 / MANY) ** 0.5


@pytest.mark.parametrize("sizes", [IMAGE, VOLUME], ids=["images", "volumes"])
@pytest.mark.parametrize(
    "distortion", [PatchShuffling(side=(0.1, 0.2)), PixelShuffling(side=(0.1, 0.3))]
)
def test_shuffled_pixels_come_from_the_image(
    distortion: Any, sizes: tuple[int, ...]
) -> None:
    images, _, shuffled = both_ways(distortion, sizes)
    assert (shuffled[:, 0] == shuffled[:, 1]).all()
    if isinstance(distortion, PatchShuffling):  # none is lost, as blocks are exchanged
        assert shuffled.flatten(2).sort().values.equal(images.flatten(2).sort().values)
    moved = (shuffled != images)[:, 0]
    assert moved.flatten(1).any(dim=1).float().mean() > 0.99


def test_exchanged_blocks_are_rectangles_of_one_size() -> None:
    images = numbered(IMAGE)
    pair = PatchShuffling(count=1, side=(0.1, 0.2))
    torch.manual_seed(0)
    for image, out in zip(
        images[:50, 0], BatchDistortion(pair)(images[:50])[:, 0], strict=True
    ):
        changed = out != image
        offset = ((out - image) * (image.numel() + 1)).round()[changed]
        assert len(offset.unique()) == 2
        assert offset.sum() == 0  # as many one way as the other


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


@pytest.mark.parametrize("inverted", [0.0, 0.5, 1.0])
def test_curves_are_those_of_the_host(inverted: float) -> None:
    _, host, device = both_ways(NonLinearIntensity(inverted=inverted), IMAGE)
    for place in ([0, 0], [20, 3], [47, 55]):
        same_distribution(*(r[:, 0, place[0], place[1]] for r in (host, device)))
    slopes = device[:, 0].flatten(1).diff(dim=1)
    rising = (slopes >= -1e-6).all(dim=1)
    falling = (slopes <= 1e-6).all(dim=1)
    assert (rising | falling).all()
    assert float(falling.float().mean()) == pytest.approx(inverted, abs=0.1)


def test_elastic_deformation_moves_pixels_as_far_as_on_the_host() -> None:
    ramp = torch.linspace(0, 1, 64).expand(MANY // 4, 1, 4, 64, 64).contiguous()
    elastic = transvw_mixture().distortions[0]
    assert isinstance(elastic, ElasticInPlane)
    torch.manual_seed(0)
    device = BatchDistortion(elastic, spatial_dims=3)(ramp)
    assert (device == device[:, :, :1]).all()  # all slices alike
    random = np.random.default_rng(0)
    host = np.stack([elastic(v.movedim(0, -1).numpy(), random) for v in ramp])
    inside = slice(16, 48)
    moves = [
        63 * (torch.as_tensor(r)[..., inside, inside] - ramp[:, 0][..., inside, inside])
        for r in (host[..., 0], device[:, 0])
    ]
    assert float(moves[1].std()) == pytest.approx(3.8, rel=0.1)
    assert float(moves[1].std()) == pytest.approx(float(moves[0].std()), rel=0.1)


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
