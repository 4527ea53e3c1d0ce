"""DiRATransform on volumes: aligned targets, whatever the base transform."""

from __future__ import annotations

import functools
import subprocess
import sys
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
from monai.data import MetaTensor
from scipy.ndimage import gaussian_filter
from torch import Tensor
from torch.utils.data import DataLoader

from lightly_dira import DiRATransform, DiRAViews
from lightly_dira.transforms import (
    InPainting,
    OutPainting,
    PatchShuffling,
    VolumePipeline,
    models_genesis_mixture,
    transvw_mixture,
)
from lightly_dira.transforms.monai_steps import run_seeded

SIZE = (12, 16, 20)


def cube(shape: tuple[int, ...] = (16, 24, 28), seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(shape, dtype=np.float32)


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


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", ["array", "tensor", "metadata"])
@pytest.mark.parametrize(
    "step",
    [
        mt.RandSpatialCrop(SIZE, random_size=False),
        mt.CropForeground(lambda x: x > 0.5),
        mt.ResizeWithPadOrCrop((20, 20, 20)),
        mt.DivisiblePad(32),
        mt.RandFlip(0.5, 0),
        mt.RandRotate90(0.5),
        mt.RandAxisFlip(1.0),
        mt.RandAffine(0.5, rotate_range=0.2),
        mt.RandZoom(0.5, 0.8, 1.2),
        mt.Rand3DElastic((1, 2), (1, 2), prob=0.5),
        mt.RandGridDistortion(prob=0.5),
        mt.Spacing((2.0, 1.0, 1.0)),
        mt.Orientation("LPS"),
    ],
    ids=lambda step: type(step).__name__,
)
def test_a_step_that_moves_voxels_leaves_the_volume(step, kind: str, seed) -> None:
    """It gets no copy: nor is its output a part of what a data set may keep."""
    array = cube()[None]
    volume = {"array": array, "tensor": torch.tensor(array)}.get(kind)
    if kind == "metadata":
        volume = MetaTensor(torch.tensor(array), affine=torch.diag(torch.arange(4) + 1))
        before = [dict(volume.meta), [*volume.applied_operations]]
    output = run_seeded(step, volume, seed)
    assert (np.asarray(volume) == cube()[None]).all()
    assert not np.shares_memory(np.asarray(output), np.asarray(volume))
    if kind == "metadata":
        assert repr([dict(volume.meta), [*volume.applied_operations]]) == repr(before)
    named = run_seeded(mt.Identityd("image"), {"image": volume}, seed)
    assert not np.shares_memory(np.asarray(named["image"]), np.asarray(volume))


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


def test_published_views() -> None:
    torch.manual_seed(0)
    volume = cube((40, 80, 90))
    views = DiRATransform(spatial_dims=3)(volume)
    assert [tuple(view.shape) for view in views] == [(1, 32, 64, 64)] * 2
    assert views.target.shape == (1, 32, 64, 64)
    views = DiRATransform(spatial_dims=3, input_size=16)(volume)
    assert views[0].shape == (1, 16, 16, 16)
    views = DiRATransform(spatial_dims=3, input_size=(8, 16, 24))(volume)
    assert views.target.shape == (1, 8, 16, 24)


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


def test_scaling_by_a_fixed_rule_is_for_both() -> None:
    """HU are scaled by MONAI's own step, and z-scores are for the view only."""
    hounsfield = 2000 * cube()[None] - 1000
    base = mt.Compose(
        [
            mt.ScaleIntensityRange(-1000, 400, 0, 1, clip=True),
            mt.RandFlip(0.5, 0),
            mt.NormalizeIntensity(),
        ]
    )
    views = DiRATransform(base, spatial_dims=3, distortion=None)(hounsfield)
    clean = ((hounsfield + 1000) / 1400).clip(0, 1)
    assert sorted(views.target.ravel().tolist()) == pytest.approx(
        sorted(clean.ravel().tolist()), abs=1e-6
    )
    assert views[0].mean().abs() < 1e-5
    assert views[0].std() == pytest.approx(1, abs=1e-3)


def test_scales_of_view_and_target_that_differ_are_loud() -> None:
    """Noise makes floats from 0 to 255 of bytes, which the target would keep."""
    volume = (255 * cube()[None]).astype(np.uint8)
    for noise, wrapped in (
        (mt.RandGaussianNoise(1.0), volume),
        (mt.RandGaussianNoised("image", prob=1.0), {"image": volume}),
    ):
        transform = DiRATransform(mt.Compose([noise]), spatial_dims=3)
        with pytest.raises(ValueError, match=r"scales of the two differ.*window="):
            transform(wrapped)
        transform = DiRATransform(mt.Compose([noise]), spatial_dims=3, window=(0, 255))
        assert transform(wrapped)[0].abs().max() < 3
    # What normalises comes after the distortion and may well make floats.
    transform = DiRATransform(mt.Compose([mt.NormalizeIntensity()]), spatial_dims=3)
    assert transform(volume).target.max() <= 1


def test_files_read_by_monai(tmp_path) -> None:
    path = tmp_path / "volume.npy"
    np.save(path, cube())
    base = mt.Compose(
        [
            mt.LoadImaged("image"),
            mt.EnsureChannelFirstd("image", channel_dim="no_channel"),
            mt.RandSpatialCropd("image", SIZE, random_size=False),
        ]
    )
    views = DiRATransform([base, base], spatial_dims=3)({"image": str(path)})
    assert [tuple(view.shape) for view in views] == [(1, *SIZE)] * 2


@pytest.mark.parametrize("window", [None, (-1.0, 2.0)])
@pytest.mark.parametrize("keys", ["array", "dictionary"])
def test_monai_puts_channels_first(keys: str, window) -> None:
    """Its step is given the volume as it is, and finds no channel that we added."""
    add, crop = mt.EnsureChannelFirst(channel_dim="no_channel"), mt.CenterSpatialCrop(8)
    volume: Any = cube()
    if keys == "dictionary":
        add = mt.EnsureChannelFirstd("image", channel_dim="no_channel")
        crop = mt.CenterSpatialCropd("image", 8)
        volume = {"image": volume}
    plain = mt.Compose([add, crop])
    views = DiRATransform(plain, spatial_dims=3, distortion=None, window=window)(volume)
    expected = plain(volume)["image"] if keys == "dictionary" else plain(volume)
    if window is not None:
        expected = (expected + 1) / 3
    torch.testing.assert_close(views[0], expected.as_tensor())
    torch.testing.assert_close(views.target, expected.as_tensor())


def test_a_step_that_fails_names_the_volume() -> None:
    transform = DiRATransform(
        mt.Compose([mt.RepeatChannel(2), mt.RandSpatialCrop((8, 8))]), spatial_dims=3
    )
    with pytest.raises(
        ValueError, match=r"RandSpatialCrop failed on a volume of shape"
    ):
        transform(cube())


def test_a_crop_that_looks_at_voxels_comes_first() -> None:
    volume = np.zeros((1, 16, 16, 16), np.float32)
    volume[:, 4:12, 4:12, 4:12] = 0.5
    noise, crop = mt.RandGaussianNoise(1.0), mt.CropForeground()
    transform = DiRATransform(mt.Compose([crop, noise]), spatial_dims=3)
    assert transform(volume).target.shape == (1, 8, 8, 8)
    transform = DiRATransform(mt.Compose([noise, crop]), spatial_dims=3)
    with pytest.raises(ValueError, match=r"CropForeground looks at.*before such"):
        transform(volume)


@pytest.mark.parametrize(
    ("base", "message"),
    [
        (lambda: mt.Compose([mt.RandSpatialCropSamples(8, 2)]), "list of transforms"),
        (lambda: mt.Compose([mt.RandFlip(0.5, 0)], lazy=True), "lazy=False"),
    ],
)
def test_bases_that_cannot_be_aligned(base, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        DiRATransform(base(), spatial_dims=3)


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


def test_bad_options() -> None:
    for options in (
        {"spatial_dims": 4},
        {"spatial_dims": 2, "transform": VolumePipeline(SIZE)},
        {"input_size": (8, 8, 8)},
        {"spatial_dims": 3, "input_size": 0},
    ):
        with pytest.raises(ValueError, match=r"spatial_dims|input_size"):
            DiRATransform(**options)
    for numbers in ({"size": (8, 8)}, {"scale": (1, 0.5)}, {"flip": 2}):
        with pytest.raises(ValueError, match="VolumePipeline"):
            VolumePipeline(**numbers)


def test_a_callable_without_known_steps() -> None:
    """Its finished view is the target, and the view is distorted."""
    base = functools.partial(np.flip, axis=1)
    views = DiRATransform(base, spatial_dims=3, distortion=InPainting())(cube())
    assert np.array_equal(views.target[0], cube()[:, ::-1])
    assert not torch.equal(views[0], views.target)


def test_preview() -> None:
    figure = DiRATransform(spatial_dims=3, input_size=(8, 16, 24)).preview(cube(), n=2)
    assert len(figure.axes) == 2 * 3
    assert figure.axes[0].images[0].get_array().shape[:2] == (16, 2 * 24 + 16)


class TestDistortions:
    @pytest.mark.parametrize("distortion", [InPainting, OutPainting, PatchShuffling])
    def test_blocks_are_cuboids(self, distortion) -> None:
        transform = distortion(count=1, side=(0.2, 0.4))
        random = np.random.default_rng(0)
        volume = 1 + np.arange(20 * 30 * 40, dtype=np.float32).reshape(20, 30, 40)
        lengths = []
        for _ in range(200):
            drawn = transform.draw(volume.shape, random)
            out = transform.apply(volume, **drawn)
            if distortion is PatchShuffling:
                (blocks,) = drawn["pairs"]
                assert np.array_equal(np.sort(out, None), np.sort(volume, None))
            else:
                blocks = drawn["blocks"]
            for block in blocks:
                sides = np.subtract(block[3:], block[:3])
                lengths.append(sides / (20, 30, 40))
                area = tuple(map(slice, block[:3], block[3:]))
                if distortion is InPainting:
                    assert (out[area] == 0).all()
                    assert (out == 0).sum() == sides.prod()
                if distortion is OutPainting:
                    assert np.array_equal(out[area], volume[area])
                    assert (out != 0).sum() == sides.prod()
        low, high = np.min(lengths, axis=0), np.max(lengths, axis=0)
        assert (np.abs(low - 0.2) <= 0.03).all()
        assert (np.abs(high - 0.4) <= 0.03).all()
        assert len({tuple(each) for each in lengths}) > 100

    @pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
    def test_noise(self, dtype) -> None:
        top = 1 if dtype is np.float32 else np.iinfo(dtype).max
        volume = np.full((32, 64, 64, 1), top, dtype)
        painting = OutPainting(1, (3 / 7, 4 / 7), 3 / 64, fill="noise")
        out = painting(volume)
        noise = out[out != top] / top
        assert out.dtype == dtype
        assert noise.mean() == pytest.approx(0.5, abs=0.01)
        assert noise.std() == pytest.approx(12**-0.5, abs=0.01)

    def test_published_mixture(self) -> None:
        """One of four, each with a quarter; sizes of TransVW for 64 x 64 x 32."""
        # Without the elastic step each of the four leaves its own trace.
        mixture, random = transvw_mixture(displacement=0), np.random.default_rng(0)
        volume = np.linspace(0.2, 0.8, 32 * 64 * 64, dtype=np.float32)
        volume = volume.reshape(32, 64, 64, 1)
        counts = {"shuffled": 0, "curve": 0, "in": 0, "out": 0}
        for _ in range(200):
            out = mixture(volume, random)
            same = (out == volume).mean()
            # Blocks may overlap, so that a voxel may stand twice.
            if np.isin(out, volume).all():
                counts["shuffled"] += 1
                assert 1 - same <= 5 * 6 * 6 * 3 / volume.size
            elif same < 0.01:
                counts["curve"] += 1
            elif same > 0.5:
                counts["in"] += 1
                painted = (1 - same) * volume.size
                assert 5 * 11 * 11 * 0.9 <= painted <= 11 * 21 * 21
            else:
                counts["out"] += 1
                kept = same * volume.size
                assert 14 * 27 * 27 * 0.9 <= kept <= 19 * 37 * 37
        assert min(counts.values()) > 30, counts

    def test_models_genesis(self) -> None:
        """Parts with the published probabilities, in the published order."""
        mixture, random = models_genesis_mixture(), np.random.default_rng(0)
        kinds = [type(part).__name__ for part in mixture.distortions]
        assert kinds == ["PixelShuffling", "NonLinearIntensity", "OneOf"]
        mixture.distortions[1].p = 0.0  # the curve changes every voxel
        ramp = np.linspace(0.2, 0.8, 16 * 32 * 32, dtype=np.float32)
        ramp = ramp.reshape(16, 32, 32, 1)
        counts = {"same": 0, "shuffled": 0, "painted": 0}
        for _ in range(100):
            out = mixture(ramp, random)
            strange = ((out < 0.19) | (out > 0.81)).mean()
            kind = "painted" if strange > 0.005 else "shuffled"
            counts["same" if np.array_equal(out, ramp) else kind] += 1
        assert counts["painted"] == pytest.approx(90, abs=10)
        assert 0 < counts["same"] < 15

    def test_elastic_step_moves_in_plane(self) -> None:
        elastic, random = transvw_mixture().distortions[0], np.random.default_rng(0)
        volume = np.repeat(np.arange(1.0, 9, dtype=np.float32), 64 * 64)
        volume = volume.reshape(8, 64, 64, 1) / 8
        out = elastic(volume, random)
        assert np.allclose(out, volume, atol=1e-6), "slices stay what they are"
        ramp = np.tile(np.linspace(0, 1, 64, dtype=np.float32), (8, 64, 1))[..., None]
        out = elastic(ramp, random)
        assert np.allclose(out, out[:1]), "all slices move alike"

    def test_elastic_step_moves_as_far_as_published(self) -> None:
        """TransVW: noise of 991 that is smoothed over 8 voxels in three dimensions."""
        noise = np.random.default_rng(0).uniform(-991, 991, (48, 96, 96))
        expected = gaussian_filter(noise, 8, mode="wrap").std()
        assert expected == pytest.approx(3.8, rel=0.2)
        elastic = transvw_mixture(expected).distortions[0]
        random = np.random.default_rng(0)
        ramp = np.tile(np.linspace(0, 1, 64, dtype=np.float32), (2, 64, 1))[..., None]
        moved = [63 * (elastic(ramp, random) - ramp)[0] for _ in range(100)]
        inner = np.stack(moved)[:, 24:40, 24:40]
        assert inner.std() == pytest.approx(expected, rel=0.15)

    def test_no_elastic_step(self) -> None:
        assert len(transvw_mixture(0).distortions) == 1
        with pytest.raises(ValueError, match="displacement must be at least 0"):
            transvw_mixture(-1)


def test_no_warnings_about_known_steps() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in ("monai", "monai dictionary", "albumentations", "torchio"):
            DiRATransform(PHOTOMETRIC[name][0](), spatial_dims=3)


def test_crops_are_resized_trilinearly() -> None:
    """As PyTorch does it."""
    for scale in (0.6, 1.3):
        pipeline = VolumePipeline((12, 16, 20), (scale, scale), flip=0.0, curve=0.0)
        volume = cube((round(12 * scale), round(16 * scale), round(20 * scale)))
        padded = np.zeros(np.maximum(volume.shape, (12, 16, 20)), np.float32)
        padded[tuple(map(slice, volume.shape))] = volume
        if scale < 1:
            pipeline.check = lambda _: None
            padded = volume
        view, _ = pipeline._view(padded[None], None)
        expected = torch.nn.functional.interpolate(
            torch.from_numpy(padded)[None, None], (12, 16, 20), mode="trilinear"
        )
        torch.testing.assert_close(view, expected[0], rtol=0, atol=1e-5)


def test_curves_map_every_voxel_alike() -> None:
    torch.manual_seed(0)
    pipeline = VolumePipeline(SIZE, curve=1.0, inverted=0.0)
    for _ in range(5):
        view, clean = pipeline._view(cube()[None], None)
        order = clean.ravel().argsort()
        mapped = view.ravel()[order]
        assert (mapped.diff() >= 0).all()
        assert mapped[0] >= 0
        assert mapped[-1] <= 1


@pytest.mark.slow
def test_images_need_neither_monai_nor_torchio() -> None:
    code = (
        "import sys, numpy as np\n"
        "from lightly.transforms import MoCoV2Transform\n"
        "import lightly_dira.evaluation.data, lightly_dira.lightning\n"
        "from lightly_dira import DiRATransform\n"
        "DiRATransform(MoCoV2Transform(32))(np.zeros((64, 64, 3), np.uint8))\n"
        "DiRATransform(spatial_dims=3)(np.zeros((40, 70, 70), np.uint8))\n"
        "assert not {'monai', 'torchio'} & {*sys.modules}, sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
