"""How distortions change a batch on its device: as they do on the host."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from distorted import IMAGE, MANY, VOLUME, both_ways, numbered
from scipy import stats
from scipy.ndimage import gaussian_filter1d

from lightly_dira.transforms import (
    BatchDistortion,
    InPainting,
    NonLinearIntensity,
    OutPainting,
    PatchShuffling,
    PixelShuffling,
    transvw_mixture,
)
from lightly_dira.transforms.albumentations_steps import ElasticInPlane
from lightly_dira.transforms.batch_kernels import _smoothing


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


@pytest.mark.parametrize("size", [48, 9, 2])
def test_noise_is_smoothed_as_scipy_does(size: int) -> None:
    """By mirrors at the borders, even those that lie nearer than the filter reaches."""
    signal = np.random.default_rng(0).random((size, 5))
    matrix = _smoothing(size, 4.0, torch.device("cpu"))
    expected = gaussian_filter1d(signal, 4.0, axis=0, mode="mirror")
    np.testing.assert_allclose(matrix.numpy() @ signal, expected, atol=1e-9)
