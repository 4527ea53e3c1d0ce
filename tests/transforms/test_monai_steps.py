"""Steps of MONAI: alike for view and target, and what cannot be."""

from __future__ import annotations

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from monai import transforms as mt
from monai.data import MetaTensor
from pictures import cube
from PIL import Image

from lightly_dira import DiRATransform
from lightly_dira.transforms.monai_steps import run_seeded

SIZE = (12, 16, 20)


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


@pytest.mark.parametrize("kind", ["tensor", "dictionary"])
def test_a_function_of_the_user_gets_a_copy(kind: str) -> None:
    def foreground(image: torch.Tensor) -> torch.Tensor:
        image[image < 0.5] = 0
        return image > 0

    volume = torch.tensor(cube()[None])
    if kind == "tensor":
        run_seeded(mt.CropForeground(foreground), volume, 0)
    else:
        step = mt.CropForegroundd("image", "image", foreground)
        run_seeded(step, {"image": volume}, 0)
    assert (volume.numpy() == cube()[None]).all()


def test_what_is_no_volume_passes() -> None:
    graph = torch.eye(3).to_sparse()
    step = mt.CenterSpatialCropd("image", SIZE)
    output = run_seeded(step, {"image": torch.tensor(cube()[None]), "graph": graph}, 0)
    assert output["graph"].is_sparse


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


class TestMonai:
    @pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.int64])
    @pytest.mark.parametrize("base", [None, "monai"])
    def test_integers_under_the_default_distortion(self, dtype, base) -> None:
        """Found: views in raw units, targets in [0, 1]."""
        volume = np.random.default_rng(0).integers(0, 65536, (24, 36, 36)).astype(dtype)
        transform = base and mt.RandSpatialCrop((16, 32, 32), random_size=False)
        ours = DiRATransform(transform, input_size=(16, 32, 32), spatial_dims=3)
        for _ in range(10):
            views = ours(volume)
            for view in views:
                assert 0 <= view.min() <= view.max() <= 1

    def test_white_of_the_whole_volume(self) -> None:
        """Found: 35 of 60 crops of one volume were errors."""
        volume = np.full((40, 40, 40), 100, np.int32)
        volume[:4] = 40_000
        ours = DiRATransform(input_size=(16, 16, 16), spatial_dims=3)
        for _ in range(20):
            ours(volume)

    def test_lazy_steps_are_run(self) -> None:
        """Found: they were never applied."""
        volume = np.random.default_rng(0).random((1, 16, 32, 32), np.float32)
        for lazy in (False, True):
            step = mt.Spacing((2, 2, 2), lazy=lazy)
            ours = DiRATransform(mt.Compose([step]), spatial_dims=3, distortion=None)
            views = ours(MetaTensor(torch.from_numpy(volume), affine=torch.eye(4)))
            assert views[0].shape == (1, 8, 16, 16)
            assert views.target.shape == (1, 8, 16, 16)

    def test_the_affine_counts(self) -> None:
        """Found: a MetaTensor lost it, so that Spacing did nothing."""
        affine = torch.diag(torch.tensor([2.0, 2.0, 2.0, 1.0]))
        volume = MetaTensor(torch.rand(1, 8, 16, 16), affine=affine)
        ours = DiRATransform(mt.Compose([mt.Spacing((1, 1, 1))]), spatial_dims=3)
        assert ours(volume)[0].shape == (1, 15, 31, 31)
        turned = MetaTensor(torch.rand(1, 8, 16, 16), affine=torch.diag(
            torch.tensor([-1.0, 1.0, 1.0, 1.0])
        ))  # fmt: skip
        base = mt.Compose([mt.Orientation("RAS", labels=None)])
        views = DiRATransform(base, spatial_dims=3, distortion=None)(turned)
        torch.testing.assert_close(views[0], turned.as_tensor().flip(1))

    def test_normalised_before_it_is_turned(self) -> None:
        """Found: the distortion dropped the view's metadata, not the target's."""
        affine = torch.tensor(
            [[0.0, 2, 0, 0], [1, 0, 0, 0], [0, 0, -1, 0], [0, 0, 0, 1]]
        )
        smooth = np.linspace(0, 1, 20 * 24 * 28, dtype=np.float32).reshape(
            1, 20, 24, 28
        )
        volume = {"image": MetaTensor(torch.from_numpy(smooth), affine=affine)}
        base = mt.Compose(
            [
                mt.NormalizeIntensityd("image"),
                mt.Orientationd("image", "RAS", labels=None),
                mt.Spacingd("image", (1, 1, 1)),
            ]
        )
        for _ in range(3):
            views = DiRATransform(base, spatial_dims=3)(volume)
            assert views[0].shape == views.target.shape
        views = DiRATransform(base, spatial_dims=3, distortion=None)(volume)
        pairs = torch.stack([views[0].flatten(), views.target.flatten()])
        assert torch.corrcoef(pairs)[0, 1] > 0.999

    def test_fixed_numbers(self) -> None:
        """Found: a cure that made images constant."""
        step = mt.NormalizeIntensity(subtrahend=-1024, divisor=3072)
        volume = np.random.default_rng(0).integers(-1024, 2048, (16, 32, 32))
        base = mt.Compose([mt.EnsureType(), step])
        ours = DiRATransform(base, spatial_dims=3, distortion=None)
        views = ours(volume.astype(np.float32))
        torch.testing.assert_close(views[0], views.target)
        assert views.target.std() > 0.2
        for fixed in (step, mt.ScaleIntensityRange(-1000, 400, 0, 1)):
            with pytest.raises(ValueError, match="Leave one of the two out"):
                DiRATransform(mt.Compose([fixed]), spatial_dims=3, window=(-1000, 400))

    def test_own_steps_that_draw_globally(self) -> None:
        class Shift(mt.Transform):
            def __call__(self, data):
                return torch.roll(data, int(torch.randint(1, 9, ())), 2)

        base = mt.Compose([mt.RandAdjustContrast(prob=1.0), Shift()])
        kinds = {Shift: "geometric"}
        ours = DiRATransform(base, spatial_dims=3, distortion=None, kinds=kinds)
        ramp = np.linspace(0, 1, 32, dtype=np.float32)
        volume = np.broadcast_to(ramp[:, None], (8, 32, 8)).copy()
        for _ in range(10):
            views = ours(volume)
            where = [
                image.mean((0, 1, 3)).argmax() for image in (views[0], views.target)
            ]
            assert where[0] == where[1]

    def test_threads_take_turns(self) -> None:
        """Found: 40 of 100 samples were misaligned."""
        base = mt.Compose(
            [mt.RandAdjustContrast(prob=1.0), mt.RandFlip(0.5, 2), mt.RandRotate90(1.0)]
        )
        ours = DiRATransform(base, spatial_dims=3, distortion=None)
        ramp = np.random.default_rng(0).random((8, 16, 16), np.float32)

        def aligned(_: int) -> bool:
            views = ours(ramp)
            pairs = torch.stack([views[0].flatten(), views.target.flatten()])
            return bool(torch.corrcoef(pairs)[0, 1] > 0.8)

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(aligned, range(100)))
        assert threading.active_count() < 50


class TestImages:
    """Of two dimensions MONAI's steps get tensors (C, H, W), as they expect."""

    @pytest.mark.parametrize("first", [True, False])
    @pytest.mark.parametrize("kind", ["16 bits", "8 bits", "colour", "PIL", "tensor"])
    def test_of_all_kinds(self, kind: str, first: bool) -> None:
        """Found: internal errors, and colour taken for an image of 64 channels."""
        grey = np.tile(np.arange(0, 250, 5, dtype=np.uint8), (50, 1))
        image: Any = {
            "16 bits": grey.astype(np.uint16) * 257,
            "8 bits": grey,
            "colour": np.repeat(grey[..., None], 3, axis=2),
            "PIL": Image.fromarray(grey),
            "tensor": torch.from_numpy(grey)[None],
        }[kind]
        where = -1 if kind == "colour" else 0 if kind == "tensor" else "no_channel"
        steps = [mt.EnsureChannelFirst(channel_dim=where)] if first else []
        steps += [mt.RandFlip(prob=0.5, spatial_axis=1), mt.RandGaussianNoise(prob=1.0)]
        transform = DiRATransform(mt.Compose(steps), distortion=None)
        flipped = set()
        for _ in range(8):
            views = transform(image)
            assert views[0].shape == (3 if kind == "colour" else 1, 50, 50)
            target = views.target[0]
            assert target.max() == pytest.approx(245 / 255, abs=1e-4)
            flipped.add(bool(target[0, 0] > target[0, -1]))
            pair = torch.stack([views[0].mean(0).flatten(), target.flatten()])
            assert torch.corrcoef(pair)[0, 1] > 0.9
        assert flipped == {True, False}

    @pytest.mark.parametrize("top", [255, 4095, 65535])
    def test_scaled_by_fixed_numbers(self, top: int) -> None:
        """Found: pixels in [0, 1] were divided again, and all was black."""
        dtype = np.uint8 if top == 255 else np.uint16
        image = np.linspace(0, top, 40 * 40).reshape(40, 40).astype(dtype)
        scaling = mt.ScaleIntensityRange(0, top, 0, 1)
        transform = DiRATransform(mt.Compose([scaling]), distortion=None)
        target = transform(image).target[0]
        assert np.allclose(target, image / top, atol=1e-6)
