"""DiRATransform on volumes: aligned targets, whatever the base transform."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import albumentations as A
import numpy as np
import pytest
import torch
import torchio as tio
from hypothesis import given, settings
from hypothesis import strategies as st
from monai import transforms as mt
from pictures import cube
from torch import Tensor
from torch.utils.data import DataLoader

from lightly_dira import DiRATransform, DiRAViews
from lightly_dira.transforms import InPainting, VolumePipeline

SIZE = (12, 16, 20)


def as_dictionary(volume: np.ndarray) -> dict[str, Any]:
    return {"image": volume[None], "label": 1}


# Without photometric steps, of every library.
GEOMETRIC = {
    "published": (lambda: VolumePipeline(SIZE, curve=0.0), None),
    "monai": (
        lambda: mt.Compose(
            [
                mt.EnsureType(),
                mt.RandSpatialCrop(SIZE, random_size=False),
                mt.RandFlip(0.5, 0),
                mt.RandRotate90(0.5, spatial_axes=(1, 2), max_k=2),
                mt.RandZoom(0.5, 0.8, 1.2),
            ]
        ),
        None,
    ),
    "monai dictionary": (
        lambda: mt.Compose(
            [
                mt.RandSpatialCropd("image", SIZE, random_size=False),
                mt.RandFlipd("image", 0.5, 2),
                mt.RandAffined("image", prob=0.7, rotate_range=(0.3, 0.2, 0.1)),
            ]
        ),
        as_dictionary,
    ),
    "albumentations": (
        lambda: A.Compose(
            [A.RandomCrop3D(SIZE), A.HorizontalFlip(), A.Affine(rotate=20, p=0.5)]
        ),
        None,
    ),
    "torchio": (
        lambda: tio.Compose(
            [tio.RandomFlip(axes=(0, 1, 2)), tio.RandomAffine(degrees=10)]
        ),
        None,
    ),
}


# Steps that change intensities, which the target must not show.
PHOTOMETRIC = {
    "published": (lambda: VolumePipeline(SIZE), None),
    "monai": (
        lambda: mt.Compose(
            [
                mt.RandSpatialCrop(SIZE, random_size=False),
                mt.RandGaussianNoise(1.0, std=0.5),
                mt.RandCoarseDropout(4, 5, dropout_holes=True, fill_value=0, prob=1.0),
                mt.RandFlip(0.5, 0),
                mt.RandSimulateLowResolution(1.0),
                mt.OneOf([mt.RandScaleIntensity(0.5, 1.0), mt.RandFlip(1.0, 1)]),
                mt.RandSpatialCrop([8, 8, 8], random_size=False),
            ]
        ),
        None,
    ),
    "monai dictionary": (
        lambda: mt.Compose(
            [
                mt.RandHistogramShiftd("image", prob=1.0),
                mt.RandFlipd("image", 0.5, 2),
                mt.NormalizeIntensityd("image"),
                mt.ToTensord("image"),
            ]
        ),
        as_dictionary,
    ),
    "albumentations": (
        lambda: A.Compose(
            [A.RandomCrop3D(SIZE), A.RandomGamma(p=1), A.GaussianBlur(p=1)]
        ),
        None,
    ),
    "torchio": (
        lambda: tio.Compose([tio.RandomFlip(axes=(0, 1, 2)), tio.RandomNoise(std=1)]),
        None,
    ),
}


def views_of(entry, volume: np.ndarray, **options) -> DiRAViews:
    make, wrapped = entry
    transform = DiRATransform(make(), spatial_dims=3, **options)
    with_channel = transform.transform
    if wrapped is None and not isinstance(with_channel, VolumePipeline):
        volume = volume[None]
    return transform(volume if wrapped is None else wrapped(volume))


@pytest.mark.parametrize("name", GEOMETRIC)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_geometry_is_shared_to_the_voxel(name: str, seed: int) -> None:
    torch.manual_seed(seed)
    views = views_of(GEOMETRIC[name], cube(seed=seed), distortion=None)
    assert len(views.targets) == len(views)
    for view, target in zip(views, views.targets, strict=True):
        assert torch.equal(view.clamp(0, 1), target)
        assert type(view) is type(target) is Tensor
        assert view.dtype == torch.float32


@pytest.mark.parametrize("name", PHOTOMETRIC)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_intensities_never_enter_the_target(name: str, seed: int) -> None:
    """Every voxel of the target is one of the volume."""
    torch.manual_seed(seed)
    volume = cube(seed=seed)
    known = set(volume.ravel().tolist())
    if name == "published":
        entry = lambda: VolumePipeline(SIZE, scale=(1.0, 1.0), curve=1.0), None
    else:
        entry = PHOTOMETRIC[name]
    views = views_of(entry, volume, distortion=None)
    for view, target in zip(views, views.targets, strict=True):
        assert set(target.ravel().tolist()) <= known
        assert not torch.equal(view, target)


@pytest.mark.parametrize("name", GEOMETRIC)
def test_distortion_touches_the_view_only(name: str) -> None:
    torch.manual_seed(0)
    black = InPainting(count=3, side=(0.3, 0.4))
    views = views_of(GEOMETRIC[name], 0.1 + 0.9 * cube(), distortion=black)
    view, target = views[0], views.targets[0]
    changed = view != target
    assert 0.02 < changed.float().mean() < 0.6
    assert (view[changed] == 0).all()
    # In three dimensions: some slices in every direction are whole.
    for axis in (1, 2, 3):
        others = [other for other in (1, 2, 3) if other != axis]
        assert not changed.amax(dim=others).all()


@pytest.mark.parametrize("name", PHOTOMETRIC)
def test_draws_follow_pytorchs_seed(name: str) -> None:
    make, wrapped = PHOTOMETRIC[name]
    transform = DiRATransform(make(), spatial_dims=3)
    volume = cube()
    if wrapped is not None:
        volume = wrapped(volume)
    elif name != "published":
        volume = volume[None]

    class Same(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return 6

        def __getitem__(self, index: int) -> DiRAViews:
            return transform(volume)

    def epochs(seed: int) -> list[list[Tensor]]:
        torch.manual_seed(seed)
        loader = DataLoader(Same(), 1, num_workers=2)
        return [[views[0] for views in loader] for _ in range(2)]

    drawn, again = epochs(0), epochs(0)
    flat = [view for epoch in drawn for view in epoch]
    assert len({view.numpy().tobytes() for view in flat}) == len(flat) == 12
    for one, other in zip(flat, [v for epoch in again for v in epoch], strict=True):
        assert torch.equal(one, other)


def test_bits_and_windows() -> None:
    torch.manual_seed(0)
    values = np.random.default_rng(0).integers(0, 2**16, (16, 20, 24))
    plain = VolumePipeline((16, 20, 24), scale=(1.0, 1.0), flip=0.0, curve=0.0)
    for volume, window, expected in (
        ((values >> 8).astype(np.uint8), None, (values >> 8) / 255),
        (values.astype(np.uint16), None, values / 65535),
        (
            (values % 2000 - 1000).astype(np.int16),
            (-1000, 400),
            np.clip((values % 2000) / 1400, 0, 1),
        ),
    ):
        transform = DiRATransform(plain, spatial_dims=3, distortion=None, window=window)
        target = transform(volume).target[0].numpy()
        np.testing.assert_allclose(target, expected, atol=1e-6)
        compose = mt.Compose([mt.RandFlip(0.0)])
        transform = DiRATransform(
            compose, spatial_dims=3, distortion=None, window=window
        )
        np.testing.assert_allclose(transform(volume).target[0], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("volume", "message"),
    [
        (np.zeros((64, 64), np.uint8), r"\(D, H, W\).*got shape \(64, 64\)"),
        (np.zeros((40, 64, 64, 3), np.uint8), "channels last"),
        (np.zeros((2, 1, 40, 64, 64), np.uint8), "got shape"),
        (np.zeros((64, 1, 64), np.uint8), "at least two voxels"),
        (np.full((40, 64, 64), np.nan, np.float32), "NaN"),
        (np.full((40, 64, 64), np.inf, np.float32), "NaN or infinite"),
        (np.zeros((20, 64, 64), np.uint8), r"smaller than a view of \(32, 64, 64\)"),
        (np.full((40, 70, 70), -900, np.int16), "window"),
        (np.full((40, 70, 70), 40.0, np.float32), r"window=\(low, high\)"),
        (np.zeros((40, 64, 64), complex), "complex"),
        ("volume.nii.gz", "read_volume"),
    ],
)
def test_bad_volumes(volume, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message) as raised:
        DiRATransform(spatial_dims=3)(volume)
    assert str(raised.value).startswith("DiRATransform: ")


def test_values_out_of_range_are_loud() -> None:
    transform = DiRATransform(mt.Compose([mt.RandFlip(0.5, 0)]), spatial_dims=3)
    with pytest.raises(ValueError, match="ScaleIntensityRange"):
        transform(2000 * cube()[None])
    with pytest.raises(ValueError, match="at least two voxels"):
        transform(np.zeros((1, 1, 16, 16), np.float32))


def test_a_callable_without_known_steps() -> None:
    """Its finished view is the target, and the view is distorted."""
    base = functools.partial(np.flip, axis=1)
    views = DiRATransform(base, spatial_dims=3, distortion=InPainting())(cube())
    assert np.array_equal(views.target[0], cube()[:, ::-1])
    assert not torch.equal(views[0], views.target)


def test_no_warnings_about_known_steps() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in ("monai", "monai dictionary", "albumentations", "torchio"):
            DiRATransform(PHOTOMETRIC[name][0](), spatial_dims=3)
