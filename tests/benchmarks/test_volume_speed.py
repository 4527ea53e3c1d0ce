"""What volumes cost: pytest tests/benchmarks/test_volume_speed.py --benchmark-only

Cubes of 32 x 64 x 64 voxels, MONAI's ResNet-18, SimSiam, batches of 2, two threads.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from methods import SimSiam
from monai import transforms as mt
from monai.networks.nets import resnet10, resnet18
from test_step_speed import multiply_adds

from lightly_dira import DiRA, DiRATransform, DiRAViews, RestorationHead
from lightly_dira.features import FeaturePyramid
from lightly_dira.models import light_head
from lightly_dira.transforms import PixelShuffling
from lightly_dira.transforms.monai_steps import run_seeded

SIZE = 32, 64, 64


def make_step(
    *,
    dira: bool,
    checkpoint: bool = False,
    stem_stride: int = 1,
    batch_size: int = 2,
    net: Callable = resnet18,
    size: tuple[int, ...] = SIZE,
    **options: object,
) -> Callable[[], object]:
    torch.manual_seed(0)
    settings = dict(n_input_channels=1, feed_forward=False, conv1_t_stride=stem_stride)
    model = SimSiam(net(**settings), 512, width=128)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    views = DiRAViews(
        torch.rand(2, batch_size, 1, *size), torch.rand(batch_size, 1, *size)
    )
    wrapper = None
    if dira:
        wrapper = DiRA(model.backbone, optimizer, **options)
        if checkpoint:
            assert isinstance(wrapper.head, RestorationHead)
            wrapper.head.checkpoint = True

    def step() -> None:
        loss = model.loss(*views)
        loss = loss if wrapper is None else wrapper(loss, views)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


@pytest.mark.threads(2)
def test_lean_volumes(medians, record) -> None:
    """MONAI's ResNet-10 on 2 x 32^3: alternating in one run."""
    net = partial(resnet10, n_input_channels=1, feed_forward=False)
    lean = {"restored_share": 0.25, "adversarial_start": None}
    steps = {
        "bare": make_step(dira=False, net=resnet10, size=(32, 32, 32)),
        "lean": make_step(
            dira=True,
            net=resnet10,
            size=(32, 32, 32),
            head=light_head(FeaturePyramid(net()), cost=0.31),
            **lean,
        ),
        "dira": make_step(dira=True, net=resnet10, size=(32, 32, 32)),
    }
    counted = {name: multiply_adds(step) for name, step in steps.items()}
    times = medians(steps, rounds=30, warmup=3)
    for name, goal in (("lean", "<= 1.25"), ("dira", "<= 1.76")):
        ratio = times[name] / times["bare"]
        record(f"step of volumes, 2 x 32^3, {name} / bare", ratio, goal)
        bound = counted[name] / counted["bare"]
        record(f"multiply-adds of volumes, 2 x 32^3, {name} / bare", bound, "")


@pytest.mark.threads(2)
def test_step(compare, record) -> None:
    ours, bare = make_step(dira=True), make_step(dira=False)
    predicted = multiply_adds(ours) / multiply_adds(bare)
    measured = compare(
        "step of volumes, DiRA-SimSiam / bare",
        ours,
        bare,
        goal="",
        rounds=5,
        inverse=True,
    )
    name = "step of volumes, DiRA-SimSiam / bare, over multiply-adds"
    record(name, measured / predicted, "<= 1.10")


def test_pipeline(compare) -> None:
    """Crop, resize, three flips and a grey curve of a CT, for two views."""
    random = np.random.default_rng(0)
    volume = random.integers(-1000, 2000, (96, 192, 192), dtype=np.int16)
    ours = DiRATransform(spatial_dims=3, distortion=None, window=(-1000, 400))
    steps = mt.Compose(
        [
            mt.RandSpatialCrop((25, 50, 50), (39, 79, 79)),
            mt.ScaleIntensityRange(-1000, 400, 0, 1, clip=True),
            mt.Resize(SIZE, mode="trilinear"),
            *(mt.RandFlip(0.4, axis) for axis in range(3)),
            mt.RandHistogramShift(4, prob=0.9),
            mt.ToTensor(track_meta=False),
        ]
    )
    compare(
        "pipeline of volumes, speed against MONAI's steps one by one",
        lambda: ours(volume),
        lambda: [steps(volume[None]) for _ in "12"],
        goal=">= 5",
        rounds=30,
    )


def test_crop(compare) -> None:
    """MONAI's crop of a large volume, which is read only, against one of a copy."""
    volume = torch.rand(1, 128, 256, 256)
    crop = mt.RandSpatialCrop(SIZE, random_size=False)
    compare(
        "MONAI's crop of 128 x 256 x 256 voxels, speed against one of a copy",
        lambda: run_seeded(crop, volume, 0),
        lambda: crop(volume.clone()),
        goal=">= 2",
        rounds=30,
    )


def test_shuffling(compare) -> None:
    """The 10,000 blocks of Models Genesis, against a loop over them."""
    random = np.random.default_rng(0)
    volume = random.random(SIZE, dtype=np.float32)
    ours = PixelShuffling(count=10_000, side=(1 / 64, 6 / 64))
    longest = [max(1, round(6 / 64 * side)) for side in SIZE]

    def block_by_block() -> np.ndarray:
        out = volume.copy()
        for _ in range(10_000):
            lengths = [random.integers(1, most, endpoint=True) for most in longest]
            starts = [
                random.integers(0, side - length, endpoint=True)
                for side, length in zip(SIZE, lengths, strict=True)
            ]
            area = tuple(map(slice, starts, np.add(starts, lengths)))
            part = volume[area]
            out[area] = random.permutation(part.ravel()).reshape(part.shape)
        return out

    compare(
        "shuffling inside 10,000 blocks, speed against a loop over them",
        lambda: ours(volume[..., None]),
        block_by_block,
        goal=">= 5",
        rounds=6,
    )


def peak(stem_stride: int, checkpoint: bool) -> float:
    """Peak memory of two steps of 4 cubes in a process of its own, in MiB."""
    options = dict(stem_stride=stem_stride, checkpoint=checkpoint, batch_size=4)
    code = (
        "import torch; torch.set_num_threads(2)\n"
        "import re, pathlib\n"
        "from test_volume_speed import make_step\n"
        f"step = make_step(dira=True, **{options})\n"
        "read = lambda: int(re.search(r'VmHWM:\\s+(\\d+)', "
        "pathlib.Path('/proc/self/status').read_text())[1])\n"
        "before = read(); step(); step(); print((read() - before) / 1024)"
    )
    here = Path(__file__).parent
    paths = os.pathsep.join([str(here), str(here.parent / "support")])
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([paths, os.environ.get("PYTHONPATH", "")]),
        "MALLOC_MMAP_THRESHOLD_": "65536",
    }
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=True
    )
    return float(re.findall(r"[\d.]+", done.stdout)[-1])


@pytest.mark.parametrize(
    ("stem_stride", "goal"),
    # MONAI's own stem has stride 1. There the encoder's maps of full resolution decide
    # the peak, with DiRA as without.
    [(1, ""), (2, "<= 0.80")],
)
def test_memory(stem_stride: int, goal: str, benchmark, record) -> None:
    less = benchmark.pedantic(peak, (stem_stride, True))
    name = "peak memory of volumes beyond imports, checkpoint / without"
    record(
        f"{name}, stem of stride {stem_stride}", less / peak(stem_stride, False), goal
    )
