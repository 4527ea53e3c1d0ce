"""Compares methods, bare and as DiRA variants, by what their encoders are worth.

    python examples/compare.py --preset smoke                 # 2 minutes, brain MRI
    python examples/compare.py --preset cpu --data FOLDER     # hours, chest X-rays
    python examples/compare.py --preset paper --data FOLDER   # days on a GPU
    python examples/compare.py --data pneumoniamnist          # a set of MedMNIST

Every method is pre-trained in every stage (`di`: the bare method on undistorted views,
`dir`: with restoration, `dira`: with restoration and adversary) with every seed, then
evaluated on every task. Untrained encoders and trivial baselines are evaluated as well.
A finished run is never repeated. A killed run resumes after its last complete epoch and
gives the same rows. The folder of results gets:

    results.csv      a row for each result
    settings.json    the settings; a folder holds results of one setting only
    environment.txt  versions and machine
    summary.csv      mean and 95 % interval over seeds
    tests.csv        stages against each other: paired t-tests, corrected by Holm
    outcomes.csv, outcome_tests.csv   the same for means over all tasks, few labels
    *.png            the same as pictures, restored images, and what classifiers look at
    runs/            encoders and decoders, as `save_pretrained` writes them
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import platform
import sys
import zlib
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

import albumentations as A
import pandas as pd
import torch
import torchvision
from compare_methods import METHODS
from compare_pictures import draw_pictures
from compare_report import report
from compare_tasks import load_tasks
from filelock import FileLock, Timeout
from lightly.models import ResNetGenerator
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from tqdm import tqdm

from lightly_dira import DiRA, DiRALoss, DiRATransform, PatchDiscriminator
from lightly_dira.evaluation.labelled import LabelledImages
from lightly_dira.evaluation.protocol import Protocol, Row, Task, evaluate
from lightly_dira.transforms.distortions import published_mixture
from lightly_dira.transforms.grey_curves import NonLinearIntensity
from lightly_dira.transforms.published_pipeline import PublishedPipeline
from lightly_dira.weights.pretrained import from_pretrained, save_pretrained

Run = tuple[str, str, int]  # method, stage, seed
STAGES = ("di", "dir", "dira")
# Settings whose values may be added to those of a folder of results.
JOINING = ("methods", "stages", "seeds", "protocols")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
FORMAT = torch.channels_last  # a fifth faster on CPUs


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a comparison does.

    Attributes:
        methods: Names from `compare_methods.METHODS`.
        stages: "di", "dir" and "dira".
        seeds: Every method and stage runs once for each.
        encoder: A ResNet of torchvision, or, with a dash in its name ("resnet-9"),
            Lightly's for small images, whose stem keeps their size.
        width: Width of Lightly's ResNet.
        size: Side of views, in pixels.
        smallest_crop: Smallest area of a view, as a fraction of the image's area.
        jitter: Strength of the colour jitter, 1 as published.
        intensity: Probability of a curve of grey levels before the distortions.
        batch_size: Images in a step.
        epochs: Passes over the unlabelled images.
        restorative_weight: Weight of the restoration loss.
        adversarial_weight: Weight of the adversarial loss.
        adversary_from: Fraction of a run after which `dira` gets its adversary.
        critic: Width of the adversary's critic, 1 as published.
        optimizer: "AdamW" or "SGD" (momentum 0.9).
        lr: Highest learning rate. It rises in the first tenth of a run and then falls
            as a cosine.
        bare_lr: Factor on `lr` in stage `di`.
        weight_decay: Weight decay of the optimiser.
        fractions: Parts of the labels to learn from.
        draws: Choices of those labels, over which scores are averaged.
        protocols: How encoders are evaluated, see `Task`.
        decoder: "pre-trained" or "new", for the U-Nets of `dir` and `dira`.
        finetuning_steps: Steps of every fine-tuning.
        precision: "32", or "bf16-mixed" for autocast.
        workers: Processes that load images; another number gives other views.
        options: Arguments of each method, by the method's name.
    """

    methods: tuple[str, ...] = ("MoCo", "BarlowTwins", "SimSiam")
    stages: tuple[str, ...] = STAGES
    seeds: tuple[int, ...] = (0, 1, 2)
    encoder: str = "resnet18"
    width: float = 1.0
    size: int = 32
    smallest_crop: float = 0.2
    jitter: float = 1.0
    intensity: float = 0.0
    batch_size: int = 64
    epochs: int = 20
    restorative_weight: float = 10.0
    adversarial_weight: float = 0.001
    adversary_from: float = 1 / 3
    critic: float = 1.0
    optimizer: str = "AdamW"
    lr: float = 1e-3
    bare_lr: float = 1.0
    weight_decay: float = 1e-4
    fractions: tuple[float, ...] = (0.01, 0.1, 1.0)
    draws: int = 1
    protocols: tuple[str, ...] = (*get_args(Protocol),)
    decoder: str = "pre-trained"
    finetuning_steps: int = 100
    precision: str = "32"
    workers: int = 0
    options: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)


PRESETS = {
    "smoke": Settings(
        methods=("SimSiam",),
        seeds=(0, 1),
        epochs=2,
        fractions=(0.05, 0.25),
        finetuning_steps=20,
    ),
    # Settings of the study in examples/results/README.md, changed by its results.
    "cpu": Settings(
        methods=("MoCo", "MeanBarlowTwins", "SimSiam"),
        seeds=(0, 1, 2, 3, 4),
        encoder="resnet-9",
        width=0.5,
        intensity=0.5,
        epochs=8,
        restorative_weight=100.0,
        adversarial_weight=0.01,
        adversary_from=0.5,
        critic=0.5,
        fractions=(0.01, 0.05, 0.1, 0.25, 1.0),
        draws=3,
        decoder="new",
        precision="bf16-mixed",
    ),
    "paper": Settings(
        encoder="resnet50",
        size=224,
        batch_size=256,
        epochs=400,
        optimizer="SGD",
        lr=0.03,
        fractions=(0.01, 0.25, 0.5, 1.0),
        finetuning_steps=5000,
        workers=16,
        options={"MoCo": {"queue": 65536, "momentum": 0.999}},
    ),
}


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    # Two comparisons at once would overwrite each other's rows. The operating system
    # releases the lock of a process that ends.
    lock = FileLock(options.out / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"waiting for another comparison in {options.out}", flush=True)
        lock.acquire()
    try:
        compare(options)
    finally:
        lock.release()


def compare(options: argparse.Namespace) -> None:
    settings, folder = options.settings, options.out
    torch.set_num_threads(options.threads)
    pool, tasks = load_tasks(
        options.data,
        size=settings.size,
        fractions=settings.fractions,
        steps=settings.finetuning_steps,
    )
    tasks = [dataclasses.replace(task, draws=settings.draws) for task in tasks]
    tasks = restrict(tasks, lambda task, protocol: protocol in settings.protocols)
    (folder / "runs").mkdir(parents=True, exist_ok=True)
    results = Results(folder / "results.csv")
    pending = {
        run: lacking
        for run in list_runs(settings)
        if (lacking := results.lacking(run, tasks))
    }
    keep_settings(folder, settings, options.split, pool, changed=bool(pending))
    views = PublishedPipeline(
        settings.size,
        scale=(settings.smallest_crop, 1.0),
        jitter=tuple(settings.jitter * most for most in PublishedPipeline.jitter),
    )
    distort: A.BasicTransform | A.BaseCompose = published_mixture()
    if settings.intensity:
        curve = NonLinearIntensity(inverted=0.0, p=settings.intensity)
        distort = A.Sequential([curve, distort], p=1)
    transforms = {
        stage: DiRATransform(views, distortion=distortion)
        # Even `NoOp` draws a seed, so that all stages see the same crops.
        for stage, distortion in zip(STAGES, (A.NoOp(), distort, distort), strict=True)
    }

    epochs = sum(settings.epochs for method, stage, _ in pending if stage in STAGES)
    with tqdm(total=epochs, unit="epoch", disable=None) as progress:
        for (method, stage, seed), lacking in pending.items():
            progress.set_description(f"{method} {stage} {seed}")
            baseline, head = BASELINES.get(stage), None
            backbone = baseline or make_encoder(settings, seed)
            if stage in STAGES:
                images = pool.with_transform(transforms[stage])
                run = folder / "runs" / f"{method}-{stage}-{seed}"
                pretrain(settings, method, stage, seed, images, run, progress)
                head = from_pretrained(run, backbone)
            # The bare method did not train its head: the U-Net gets a new decoder.
            if stage == "di" or settings.decoder == "new":
                head = None
            rows = [
                row
                for task in lacking
                for row in evaluate(
                    task, backbone, head, split=options.split, seed=seed
                )
            ]
            results.add(method, stage, seed, rows)
    report(folder)
    if not pending and (folder / "restored.png").exists():
        return
    encoders = {
        path.name: (
            backbone := make_encoder(settings, 0),
            from_pretrained(path, backbone),
        )
        for path in sorted(folder.glob(f"runs/*-{settings.seeds[0]}"))
    }
    draw_pictures(folder, encoders, tasks, transforms["dira"])


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", choices=PRESETS, default="smoke")
    parser.add_argument(
        "--data",
        help="folder of .npz files or of ChestX-ray14, or a set of MedMNIST, which is "
        "downloaded; by default the MNI152 brain",
    )
    parser.add_argument("--out", type=Path, help="folder of results")
    parser.add_argument(
        "--split",
        choices=("val", "test"),
        default="test",
        help="val while you choose settings; test once",
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    known = {
        "methods": METHODS,
        "stages": STAGES,
        "protocols": get_args(Protocol),
        "decoder": ("pre-trained", "new"),
        "precision": ("32", "bf16-mixed"),
    }
    for field in dataclasses.fields(Settings):
        if field.name != "options":
            default = getattr(PRESETS["cpu"], field.name)
            several = isinstance(default, tuple)
            kind = type(default[0] if several else default)
            parser.add_argument(
                f"--{field.name.replace('_', '-')}",
                type=kind,
                nargs="+" if several else None,
                choices=known.get(field.name),
                help="instead of the preset's",
            )
    options = parser.parse_args(arguments)
    changed = {
        field.name: tuple(value) if isinstance(value, list) else value
        for field in dataclasses.fields(Settings)
        if (value := getattr(options, field.name, None)) is not None
    }
    options.settings = dataclasses.replace(PRESETS[options.preset], **changed)
    if options.out is None:
        options.out = Path(f"compare-{options.preset}")
    return options


def list_runs(settings: Settings) -> list[Run]:
    """Lists cheap runs first, then seed by seed, so that early results are pairs."""
    runs = [("baseline", stage, seed) for stage in BASELINES for seed in settings.seeds]
    runs += [("random", "random", seed) for seed in settings.seeds]
    return runs + [
        (method, stage, seed)
        for seed in settings.seeds
        for method in settings.methods
        for stage in settings.stages
    ]


def restrict(tasks: list[Task], wanted: Callable[[Task, str], bool]) -> list[Task]:
    """Keeps the wanted protocols of each task, and drops tasks without any."""
    kept = [[p for p in task.protocols if wanted(task, p)] for task in tasks]
    return [
        dataclasses.replace(task, protocols=protocols)
        for task, protocols in zip(tasks, kept, strict=True)
        if protocols
    ]


def make_encoder(settings: Settings, seed: int) -> nn.Module:
    """Returns an encoder with its global pooling; its weights depend on the seed."""
    torch.manual_seed(seed)
    if "-" in settings.encoder:
        resnet = ResNetGenerator(settings.encoder, width=settings.width)
        convolve, normalise, *layers, _ = resnet.children()
        pool = nn.AdaptiveAvgPool2d(1)
        return nn.Sequential(convolve, normalise, nn.ReLU(), *layers, pool).to(DEVICE)
    resnet = getattr(torchvision.models, settings.encoder)()
    return nn.Sequential(*list(resnet.children())[:-1]).to(DEVICE)


def pretrain(
    settings: Settings,
    method: str,
    stage: str,
    seed: int,
    images: LabelledImages,
    run: Path,
    progress: tqdm,
) -> None:
    """Pre-trains an encoder, and resumes after the last epoch that was saved."""
    if (run / "config.json").exists():
        progress.update(settings.epochs)
        return
    backbone = make_encoder(settings, seed)
    with torch.no_grad():
        blank = torch.zeros(1, 3, settings.size, settings.size, device=DEVICE)
        width = backbone.eval()(blank).shape[1]
    model = METHODS[method](
        backbone.train(), width, **settings.options.get(method, {})
    ).to(DEVICE, memory_format=FORMAT)
    optimizer = make_optimizer(settings, stage, model)
    loader = DataLoader(
        images,
        settings.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=settings.workers,
    )
    steps = settings.epochs * len(loader)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min(
            1.0,
            (step + 1) / (0.1 * steps),
            0.5 + 0.5 * math.cos(math.pi * step / steps),
        ),
    )
    critic = PatchDiscriminator(
        channels=[int(settings.critic * width) for width in (64, 128, 256, 512)]
    )
    dira = DiRA(
        model.backbone,
        optimizer,
        discriminator=critic.to(DEVICE),
        loss=DiRALoss(
            restorative_weight=settings.restorative_weight,
            adversarial_weight=settings.adversarial_weight,
        ),
        criterion=model.criterion,
        restorative_start=math.inf if stage == "di" else 0,
        adversarial_start=settings.adversary_from * steps
        if stage == "dira"
        else math.inf,
    )
    parts = {"model": model, "dira": dira, "optimizer": optimizer, "lr": schedule}
    mixed = settings.precision == "bf16-mixed"
    first = 0
    path = run.with_suffix(".pt")
    if path.exists():
        kept = torch.load(path, weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(kept[name])
        first = kept["epoch"]
        progress.update(first)
    for epoch in range(first, settings.epochs):
        # Every epoch has its own seed: if it is killed, it is repeated unchanged.
        torch.manual_seed(1000 * seed + epoch)
        for batch in loader:
            x0, x1 = (view.to(DEVICE, memory_format=FORMAT) for view in batch[0])
            with torch.autocast(DEVICE.type, torch.bfloat16, enabled=mixed):
                loss = dira(model(x0, x1), batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        state = {name: part.state_dict() for name, part in parts.items()}
        save(state | {"epoch": epoch + 1}, path)
        progress.update()
    save_pretrained(run, model.backbone, dira.head)
    path.unlink()


def make_optimizer(
    settings: Settings, stage: str, model: nn.Module
) -> torch.optim.Optimizer:
    parameters = [p for p in model.parameters() if p.requires_grad]
    lr = settings.lr * (settings.bare_lr if stage == "di" else 1)
    common = dict(lr=lr, weight_decay=settings.weight_decay)
    if settings.optimizer == "SGD":
        return torch.optim.SGD(parameters, momentum=0.9, **common)
    return getattr(torch.optim, settings.optimizer)(parameters, **common)


def save(state: dict[str, Any], path: Path) -> None:
    """Writes a file whole or not at all."""
    beside = path.with_suffix(".part")
    torch.save(state, beside)
    os.replace(beside, path)


def write_whole(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    beside = path.with_suffix(".part")
    beside.write_text(text)
    os.replace(beside, path)


class Thumbnail(nn.Module):
    """Not an encoder: 8 x 8 grey averages, which any encoder must beat."""

    def forward(self, images: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(images[:, :1], 8).flatten(start_dim=1)


class Histogram(nn.Module):
    """Not an encoder: 16 grey levels and how often they occur."""

    def forward(self, images: Tensor) -> Tensor:
        levels = (images[:, 0].flatten(start_dim=1) * 16).long().clamp(0, 15)
        return F.one_hot(levels, 16).float().mean(dim=1)


def position(images: Tensor) -> list[Tensor]:
    """Not an encoder: the position of a pixel, as bumps on a grid of 8 x 8."""
    side = torch.arange(8)
    maps = F.one_hot(side[:, None] * 8 + side, 64).movedim(-1, 0).float()
    return [maps.expand(len(images), -1, -1, -1)]


# Baselines without an encoder, each evaluated by one protocol.
BASELINES = {"thumbnail": Thumbnail(), "histogram": Histogram(), "position": position}
BASELINE_PROTOCOLS = {"thumbnail": "linear", "histogram": "linear", "position": "dense"}


class Results:
    """A table of results on disk, to which whole runs are added."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.table = pd.DataFrame()
        if path.exists():
            # Python parses the numbers, so that any pandas reads what was written.
            exact = {"value": lambda text: float(text or "nan")}
            try:
                self.table = pd.read_csv(path, converters=exact)
            except (pd.errors.EmptyDataError, pd.errors.ParserError) as error:
                sys.exit(
                    f"{path} is damaged ({error}). Restore it from a copy, or delete "
                    "it: pre-trained encoders are then evaluated again."
                )

    def lacking(self, run: Run, tasks: list[Task]) -> list[Task]:
        """Returns the tasks with those protocols that have no rows yet."""
        keys = ["method", "stage", "seed", "task", "protocol"]
        done = set(self.table.reindex(columns=keys).itertuples(index=False, name=None))
        only = BASELINE_PROTOCOLS.get(run[1])
        return restrict(
            tasks,
            lambda task, protocol: (
                only in (None, protocol) and (*run, task.name, protocol) not in done
            ),
        )

    def add(self, method: str, stage: str, seed: int, rows: list[Row]) -> None:
        rows = [{"method": method, "stage": stage, **row} for row in rows]
        self.table = pd.concat([self.table, pd.DataFrame(rows)], ignore_index=True)
        write_whole(self.path, self.table.to_csv(index=False))


def as_json(settings: Settings) -> dict[str, Any]:
    """Returns settings as they are in JSON, with lists instead of tuples."""
    kept: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(settings)))
    return kept


def keep_settings(
    folder: Path,
    settings: Settings,
    split: str,
    pool: LabelledImages,
    *,
    changed: bool,
) -> None:
    """Checks the settings against those of the folder, and writes them for new rows."""
    data = {"images": len(pool), "first_image": zlib.crc32(pool.pixels(0).tobytes())}
    asked = {"split": split, "data": data} | as_json(settings)
    path = folder / "settings.json"
    if path.exists():
        # Settings that the file lacks did not exist yet: they have their defaults.
        before = {"data": data} | as_json(Settings())
        try:
            before |= json.loads(path.read_text())
        except ValueError as error:
            sys.exit(f"{path} is damaged ({error}). Restore a copy, or delete it.")
        for name in JOINING:
            asked[name] = list(dict.fromkeys([*before[name], *asked[name]]))
            before[name] = asked[name]
        if other := [name for name in asked if asked[name] != before[name]]:
            sys.exit(
                f"{folder} holds results of another {', '.join(other)}: "
                f"{ {name: before[name] for name in other} }. Choose another --out."
            )
    if not changed:
        return
    write_whole(path, json.dumps(asked, indent=2) + "\n")
    packages = ("lightly-dira", "lightly", "torch", "torchvision", "albumentations")
    packages += ("scikit-learn", "scipy", "segmentation-models-pytorch", "pandas")
    versions = [f"{package} {version(package)}" for package in packages]
    threads = f"{torch.get_num_threads()} threads"
    machine = f"Python {platform.python_version()}, {platform.machine()}, {threads}"
    write_whole(folder / "environment.txt", "\n".join([machine, *versions]) + "\n")


if __name__ == "__main__":
    main()
