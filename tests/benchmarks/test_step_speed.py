"""What a training step costs: pytest tests/benchmarks --benchmark-only

ResNet-50, 8 images of 224 pixels, float32, on two threads.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torchvision
from PIL import Image
from published_pipeline import transform as published_transform
from published_step import PublishedStep
from steps import METHODS, make_batch, make_step
from torch.utils.data import default_collate
from torch.utils.flop_counter import FlopCounterMode

from lightly_dira import DiRA, DiRATransform, RestorationHead

pytestmark = pytest.mark.threads(2)
LIGHT = (128, 64, 32, 16, 16)
CHANNELS = (64, 256, 512, 1024, 2048)


def multiply_adds(step: Callable[[], object]) -> float:
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops() / 2


def step_of(batch_size: int = 8, size: int = 224, **options) -> Callable[[], object]:
    return partial(make_step(**options), make_batch(batch_size, size))


def test_published(compare) -> None:
    image = Image.effect_noise((1024, 1024), 60)
    colour, transform = image.convert("RGB"), DiRATransform()
    published, ours = PublishedStep(), make_step(dira=True)

    def theirs() -> None:
        samples = [published_transform(colour) for _ in range(8)]
        published(*default_collate(samples))

    compare(
        "step, DiRA-MoCo / published, both with their transforms",
        lambda: ours(default_collate([transform(image) for _ in range(8)])),
        theirs,
        goal="<= 0.70",
        rounds=5,
        inverse=True,
    )


def test_published_arithmetic(benchmark, record) -> None:
    batch, published = make_batch(), PublishedStep()
    ours = benchmark.pedantic(multiply_adds, (step_of(dira=True),))
    theirs = multiply_adds(lambda: published(list(batch), [batch.target]))
    record("  the same, multiply-adds", ours / theirs, "")


@pytest.mark.parametrize("method", METHODS)
def test_bare(compare, record, method: str) -> None:
    ours, bare = step_of(method=method, dira=True), step_of(method=method, dira=False)
    predicted = multiply_adds(ours) / multiply_adds(bare)
    measured = compare(
        f"step, DiRA-{method} / bare", ours, bare, goal="", rounds=5, inverse=True
    )
    record("  over what the multiply-adds predict", measured / predicted, "<= 1.10")


def test_stage_di(compare) -> None:
    options = dict(method="SimSiam", resnet="resnet18", size=64)
    compare(
        "step in stage di / bare, ResNet-18 at 64 pixels",
        step_of(dira=True, restorative_start=math.inf, **options),
        step_of(dira=False, **options),
        goal="<= 1.01",
        rounds=60,
        inverse=True,
    )


def test_light_decoder(compare) -> None:
    head = RestorationHead(CHANNELS, decoder_channels=LIGHT)
    options = dict(dira=True, adversarial_start=math.inf)
    compare(
        "step, light / published decoder, without adversary",
        step_of(head=head, **options),
        step_of(**options),
        goal="",
        rounds=5,
        inverse=True,
    )


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("batch 4", dict(batch_size=4)),
        ("batch 32", dict(batch_size=32)),
        ("64 pixels", dict(size=64)),
        ("384 pixels", dict(size=384, batch_size=4)),
        ("ResNet-101", dict(resnet="resnet101")),
    ],
)
def test_scaling(compare, name: str, changed: dict) -> None:
    options = dict(dira=True, resnet="resnet18")
    ours, reference = step_of(**options | changed), step_of(**options)
    compare(
        f"cost, {name} / ResNet-18 of 8 x 224 pixels, over multiply-adds",
        ours,
        reference,
        goal="about 1",
        rounds=4,
        inverse=True,
        predicted=multiply_adds(ours) / multiply_adds(reference),
    )


def test_construction(benchmark, record) -> None:
    backbone = torchvision.models.resnet50()
    benchmark.pedantic(DiRA, (backbone,), rounds=3)
    record("construction, seconds", benchmark.stats.stats.median, "< 1")


def seconds_to_import() -> float:
    """What is imported after Lightly is what it takes beyond Lightly's own."""
    lines = [
        "import time, lightly.data, lightly.loss, lightly.models.modules",
        "import lightly.transforms",
        "start = time.perf_counter()",
        "import lightly_dira",
        "print(time.perf_counter() - start)",
    ]
    return float(output(sys.executable, "-c", "\n".join(lines)))


def test_import(benchmark, record) -> None:
    seconds = benchmark.pedantic(seconds_to_import, warmup_rounds=1)
    record("import beyond Lightly's own, seconds", seconds, "<= 0.2")


def peak_memory(which: str) -> float:
    script = Path(__file__).with_name("memory.py")
    # It shares the methods of the tests, in the folder above.
    paths = os.environ | {"PYTHONPATH": str(script.parent.parent)}
    return float(output(sys.executable, str(script), which, env=paths))


@pytest.mark.parametrize(
    ("which", "goal"), [("bare", ""), ("dira", "<= 1.00"), ("checkpoint", "<= 0.80")]
)
def test_memory(benchmark, record, which: str, goal: str) -> None:
    ours = benchmark.pedantic(peak_memory, (which,))
    ratio = ours / peak_memory("published")
    record(f"peak memory beyond imports, {which} / published", ratio, goal)


def output(*command: str, **options: object) -> str:
    settings = dict(capture_output=True, text=True, check=True) | options
    done = subprocess.run(command, **settings)
    return done.stdout


def test_time_of_checkpoint(compare) -> None:
    head = RestorationHead(CHANNELS, checkpoint=True)
    compare(
        "step, with a checkpointed decoder / without",
        step_of(dira=True, head=head),
        step_of(dira=True),
        goal="",
        rounds=4,
        inverse=True,
    )
