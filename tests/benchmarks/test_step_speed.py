"""What a training step costs: pytest tests/benchmarks --benchmark-only

ResNet-50, 8 images of 224 pixels, float32, on two threads.
"""

from __future__ import annotations

import copy
import math
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from itertools import chain, islice, repeat
from pathlib import Path

import pytest
import torch
import torchvision
from lightly.transforms import SimSiamTransform
from PIL import Image
from published_pipeline import transform as published_transform
from published_step import PublishedStep
from steps import METHODS, make_batch, make_step
from torch.utils.data import DataLoader, default_collate
from torch.utils.flop_counter import FlopCounterMode

from lightly_dira import DiRA, DiRATransform, PatchDiscriminator, RestorationHead
from lightly_dira.evaluation.data import MNI152Slices
from lightly_dira.features import FeaturePyramid
from lightly_dira.models import light_head

pytestmark = pytest.mark.threads(2)
LIGHT = (64, 32, 16, 16, 16)
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
        rounds=12,
        inverse=True,
    )


@pytest.mark.parametrize(
    ("size", "precision", "goal"),
    [
        (224, "", ">= 1.28"),
        (128, "", ">= 1.20"),
        (64, "", ">= 1.20"),
        (64, ", bf16", ">= 1.10"),
    ],
)
def test_published_on_the_same_views(
    compare, size: int, precision: str, goal: str
) -> None:
    """The step alone, both on the same tensors."""
    batch, published, ours = make_batch(8, size), PublishedStep(), make_step(dira=True)
    half = torch.autocast("cpu", torch.bfloat16, enabled=bool(precision))
    compare(
        f"step, published / DiRA-MoCo, {size} pixels{precision}",
        lambda: ours(batch, half),
        lambda: published(list(batch), [batch.target], half),
        goal=goal,
        rounds=8 if size > 64 else 20,
    )


def test_published_arithmetic(benchmark, record) -> None:
    batch, published = make_batch(), PublishedStep()
    ours = benchmark.pedantic(multiply_adds, (step_of(dira=True),))
    theirs = multiply_adds(lambda: published(list(batch), [batch.target]))
    record("multiply-adds, DiRA-MoCo / published", ours / theirs, "")
    no_critic = multiply_adds(step_of(dira=True, adversarial_start=None))
    record("multiply-adds, DiRA-MoCo, stage dira / dir", ours / no_critic, "")


@pytest.mark.parametrize("method", METHODS)
def test_bare(compare, record, method: str) -> None:
    ours, bare = step_of(method=method, dira=True), step_of(method=method, dira=False)
    predicted = multiply_adds(ours) / multiply_adds(bare)
    measured = compare(
        f"step, DiRA-{method} / bare", ours, bare, goal="", rounds=5, inverse=True
    )
    record(
        f"step, DiRA-{method} / bare, over multiply-adds",
        measured / predicted,
        "<= 1.10",
    )


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


def test_lean(medians, record) -> None:
    """A light head, a quarter of the batch, no adversary: alternating in one run."""
    features = FeaturePyramid(torchvision.models.resnet50())
    head, no_critic = light_head(features), dict(adversarial_start=None)
    of_recipe = light_head(features, cost=0.25)
    steps = {
        "bare": step_of(dira=False),
        "a quarter": step_of(dira=True, restored_share=0.25, **no_critic),
        "light": step_of(dira=True, head=copy.deepcopy(head), **no_critic),
        "lean": step_of(dira=True, head=head, restored_share=0.25, **no_critic),
        "recipe": step_of(dira=True, head=of_recipe, **no_critic),
        "dir": step_of(dira=True, **no_critic),
        "dira": step_of(dira=True),
    }
    counted = {name: multiply_adds(step) for name, step in steps.items()}
    times = medians(steps, rounds=6)
    goals = {"lean": "<= 1.15", "dir": "<= 1.60", "dira": "<= 2.10"}
    for name in list(steps)[1:]:
        ratio = times[name] / times["bare"]
        record(f"step of MoCo, {name} / bare", ratio, goals.get(name, ""))
        bound = counted[name] / counted["bare"]
        record(f"multiply-adds of MoCo, {name} / bare", bound, "")


def test_light_decoder(medians, record) -> None:
    """What of DiRA's overhead is left with a lighter decoder, and a lighter critic."""
    decoder = dict(head=RestorationHead(CHANNELS, decoder_channels=LIGHT))
    critic = dict(discriminator=PatchDiscriminator(channels=(32, 64, 128, 256)))
    no_critic = dict(adversarial_start=None)
    steps = {
        "bare": step_of(dira=False),
        "dir": step_of(dira=True, **no_critic),
        "dira": step_of(dira=True),
        "light dir": step_of(dira=True, **no_critic, **copy.deepcopy(decoder)),
        "light dira": step_of(dira=True, **copy.deepcopy(decoder)),
        "both light": step_of(dira=True, **copy.deepcopy(decoder), **critic),
    }
    bare, *rest = medians(steps, rounds=6).values()
    of_dir, of_dira, light_dir, light_dira, both_light = (time - bare for time in rest)
    name = "overhead of DiRA-MoCo, light / published decoder"
    record(f"{name}, stage dir", light_dir / of_dir, "<= 0.50")
    record(f"{name}, stage dira", light_dira / of_dira, "")
    record(f"{name}, and a critic of half the width", both_light / of_dira, "")


def test_error_of_the_light_decoder(benchmark, record) -> None:
    """Held-out slices of a brain, after 200 steps of SimSiam with a ResNet-18."""
    published, light = (256, 128, 64, 32, 16), LIGHT
    error = restoration_error(published)
    of_light = benchmark.pedantic(restoration_error, (light,))
    record("restoration error, light / published decoder", of_light / error, "")
    record("restoration error, light decoder / none", of_light, "")
    record("restoration error, published decoder / none", error, "")


def restoration_error(decoder_channels: tuple[int, ...]) -> float:
    """Error of the restored images, over that of the distorted ones."""
    torch.manual_seed(0)
    transform = DiRATransform(SimSiamTransform(input_size=64, normalize=None))
    train = MNI152Slices("train", transform)
    loader = DataLoader(train, batch_size=16, shuffle=True, drop_last=True)
    channels = (64, 64, 128, 256, 512)
    step = make_step(
        "SimSiam",
        "resnet18",
        dira=True,
        head=RestorationHead(channels, decoder_channels=decoder_channels),
        adversarial_start=None,
    )
    for views, *_ in islice(chain.from_iterable(repeat(loader)), 200):
        step(views)
    torch.manual_seed(1)
    test = default_collate([item[0] for item in MNI152Slices("test", transform)])
    before = (test.view.mean(dim=1, keepdim=True) - test.target).square().mean()
    after = (step.dira.restore(test.view) - test.target).square().mean()
    return float(after / before)


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
    environment = os.environ | {
        # It shares the methods of the tests, in the folder beside this one.
        "PYTHONPATH": str(script.parents[1] / "support"),
        # What is freed goes back at once: no holes in the C library's heap.
        "MALLOC_MMAP_THRESHOLD_": "65536",
    }
    return float(output(sys.executable, str(script), which, env=environment))


@pytest.mark.parametrize(
    ("which", "goal"), [("bare", ""), ("dira", "<= 1.00"), ("checkpoint", "<= 0.80")]
)
def test_memory(benchmark, record, which: str, goal: str) -> None:
    ours = benchmark.pedantic(peak_memory, (which,))
    ratio = ours / peak_memory("published")
    record(f"peak memory beyond imports, {which} / published", ratio, goal)


def test_memory_by_stage(benchmark, record) -> None:
    bare = benchmark.pedantic(peak_memory, ("bare",))
    for which, goal in (("di", ""), ("lean", "<= 1.15"), ("dir", ""), ("dira", "")):
        ratio = peak_memory(which) / bare
        record(f"peak memory beyond imports, {which} / bare", ratio, goal)


def test_memory_of_the_dry_pass(benchmark, record) -> None:
    dry = benchmark.pedantic(peak_memory, ("dry pass",))
    ratio = dry / peak_memory("pass")
    record("peak memory of a ViT-L's dry pass / a pass with gradients", ratio, "<= 1")


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
