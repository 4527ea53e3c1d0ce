"""What a comparison does: its settings, presets and options of the command."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from pathlib import Path
from typing import Any, get_args

import timm
from discriminative import METHODS
from restorative import HOSTS

from lightly_dira.evaluation.protocol import Protocol
from lightly_dira.loss.adversaries import ADVERSARIES

EXAMPLE = '{"Genesis": {"contrastive_weight": 0.001}}'
Run = tuple[str, str, int]  # method, stage, seed
# Bare methods on plain views, on parts of DiRA's views and on all of them; then DiRA.
BARE = ("di", "di+curves", "di+distortions", "di+views")
STAGES = (*BARE, "apart", "lean", "dir", "dira", "published")
DEPTHS = (18, 34, 50, 101, 152)
TORCHVISION = tuple(f"resnet{depth}" for depth in DEPTHS)
# Those, ResNets of Lightly for small images, and a ViT.
ENCODERS = (
    *TORCHVISION,
    *(f"resnet-{depth}" for depth in (9, *DEPTHS)),
    "vit",
)
# ResNets of MONAI, and the encoder of a U-Net.
ENCODERS_3D = (*(f"resnet{depth}" for depth in (10, *DEPTHS, 200)), "unet")


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a comparison does.

    Attributes:
        methods: Names from `discriminative.METHODS`, or from `restorative.HOSTS`, which
            restore by themselves: MAE and SimMIM need the encoder "vit", Genesis and
            TransVW the encoder "unet".
        stages: "di", the bare method on plain views, and on the views that DiRA makes:
            "di+curves" (their curves of grey levels), "di+distortions" (their
            distortions) and "di+views" (both); "dir" restores, "lean" restores a part
            of each batch by a light head, and "dira" has an adversary. "apart" trains
            the method on plain views and restores, as "dir" does, a distorted copy of
            the first one, in a pass of its own. "published" is what `DiRA(backbone,
            optimizer)` and `DiRATransform(transform)` do, whatever the settings say.
        seeds: Every method and stage runs once for each.
        encoder: A ResNet of torchvision, any encoder of timm, or, with a dash in its
            name ("resnet-9"), a ResNet of Lightly's for small images, whose stem keeps
            their size; "vit", a small one with patches of 8 pixels; for volumes a
            ResNet of MONAI, with a stem of stride 1, or "unet", that of the U-Net of
            Models Genesis.
        width: Width of Lightly's and MONAI's encoders.
        start: What encoders of torchvision and timm start from: nothing, "imagenet" for
            their weights, which are downloaded, or a file of such weights. They are
            also evaluated.
        words: Folder of visual words, for TransVW; see volumes/visual_words.py.
        size: Side of views, in pixels.
        cube: Sides (D, H, W) of views of volumes, in voxels; none for images.
        zoom: Least and largest crop of a volume, as multiples of the view's sides; not
            for TransVW, whose cubes are whole.
        displacement: Of the elastic step of volumes, in voxels; not for Genesis.
        smallest_crop: Smallest area of a view, as a fraction of the image's area.
        jitter: Strength of the colour jitter, 1 as published.
        intensity: Probability of a curve of grey levels before the distortions of
            `dir` and `dira`, and in all views of volumes but those of hosts.
        batch_size: Images in a step.
        epochs: Passes over the unlabelled images.
        restorative_weight: Weight of the restoration loss; hosts have their own.
        adversarial_weight: Weight of the adversarial loss.
        adversary: Form of the adversarial losses, see `DiRALoss`.
        balanced: Whether the adversary's weight is relative, see `DiRALoss`.
        conditional: Whether the critic also sees the distorted view.
        restorative_from: Fraction of a run after which `dir` and `dira` restore.
        adversary_from: Fraction of a run after which `dira` gets its adversary.
        critic: Width of the adversary's critic, 1 as published.
        restored_share: Of `lean`, the part of each batch that is restored.
        head_cost: Of the head of `lean`, as a part of the encoder's, or 0 for the
            published head.
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
        finetuning_batch: Images in such a step, of volumes.
        precision: "32", or "bf16-mixed" for autocast.
        workers: Processes that load images; another number gives other views.
        options: Arguments of each method, by the method's name.
    """

    methods: tuple[str, ...] = ("MoCo", "BarlowTwins", "SimSiam")
    stages: tuple[str, ...] = ("di", "dir", "dira")
    seeds: tuple[int, ...] = (0, 1, 2)
    encoder: str = "resnet18"
    width: float = 1.0
    start: str = ""
    words: str = ""
    size: int = 32
    cube: tuple[int, ...] = ()
    zoom: tuple[float, ...] = (50 / 64, 79 / 64)
    displacement: float = 3.8
    smallest_crop: float = 0.2
    jitter: float = 1.0
    intensity: float = 0.0
    batch_size: int = 64
    epochs: int = 20
    restorative_weight: float = 10.0
    adversarial_weight: float = 0.001
    adversary: str = "least_squares"
    balanced: bool = False
    conditional: bool = False
    restorative_from: float = 0.0
    adversary_from: float = 1 / 3
    critic: float = 1.0
    restored_share: float = 0.25
    head_cost: float = 0.1
    optimizer: str = "AdamW"
    lr: float = 1e-3
    bare_lr: float = 1.0
    weight_decay: float = 1e-4
    fractions: tuple[float, ...] = (0.01, 0.1, 1.0)
    draws: int = 1
    protocols: tuple[str, ...] = (*get_args(Protocol),)
    decoder: str = "pre-trained"
    finetuning_steps: int = 100
    finetuning_batch: int = 4
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
    # Volumes of MRI with masks.
    "volumes": Settings(
        methods=("SimSiam",),
        stages=("di", "dira"),
        encoder="resnet10",
        width=0.25,
        cube=(24, 32, 24),
        zoom=(1.1, 1.5),
        displacement=1.5,
        intensity=0.5,
        batch_size=12,
        epochs=28,
        restorative_weight=100.0,
        adversarial_weight=0.01,
        adversary_from=0.5,
        critic=0.25,
        lr=3e-3,
        fractions=(0.02, 0.05, 0.1, 0.25),
        protocols=("dense", "frozen U-Net", "U-Net"),
        decoder="new",
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


def parse(arguments: list[str] | None, description: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", choices=PRESETS, default="smoke")
    parser.add_argument(
        "--data",
        help="folder of .npz files, of ChestX-ray14 or of a task of the Medical "
        "Segmentation Decathlon, a file of CT nodules (images, masks, diagnosis, "
        "patient, split), or a set of MedMNIST, which is downloaded; by default the "
        "MNI152 brain",
    )
    parser.add_argument("--out", type=Path, help="folder of results")
    parser.add_argument(
        "--split",
        choices=("val", "test"),
        default="test",
        help="val while you choose settings; test once",
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument(
        "--options",
        type=read_options,
        metavar="JSON",
        help=f"arguments of methods, beside the preset's: {EXAMPLE}",
    )
    known = {
        "methods": [*METHODS, *HOSTS],
        "stages": STAGES,
        "protocols": get_args(Protocol),
        "decoder": ("pre-trained", "new"),
        "adversary": ADVERSARIES,
        "precision": ("32", "bf16-mixed"),
    }
    for field in dataclasses.fields(Settings):
        if field.name != "options":
            default = getattr(PRESETS["cpu"], field.name)
            if isinstance(default, bool):
                kind = argparse.BooleanOptionalAction
                parser.add_argument(f"--{field.name}", action=kind, default=None)
                continue
            several = isinstance(default, tuple)
            kind = type(default[0] if default else 0) if several else type(default)
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
    preset = PRESETS[options.preset]
    of_methods = preset.options.copy()
    for method, own in changed.get("options", {}).items():
        of_methods[method] = of_methods.get(method, {}) | own
    changed["options"] = of_methods
    options.settings = dataclasses.replace(preset, **changed)
    if problem := find_problem(options.settings):
        parser.error(problem)
    if options.out is None:
        options.out = Path(f"compare-{options.preset}")
    return options


def read_options(text: str) -> dict[str, dict[str, Any]]:
    try:
        options = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text} is not JSON: {error}") from None
    of_methods = options.values() if isinstance(options, dict) else [options]
    if not all(isinstance(own, dict) for own in of_methods):
        raise argparse.ArgumentTypeError(f"expected e.g. {EXAMPLE}, got {text}")
    return options


def find_problem(settings: Settings) -> str | None:
    """Returns what is wrong with settings that do not fit together."""
    if unknown := set(settings.options) - (METHODS | HOSTS).keys():
        return f"--options are of methods; got {', '.join(sorted(unknown))}"
    for name in settings.methods:
        host = HOSTS.get(name)
        if host is not None and settings.encoder != host.encoder:
            return f"{name} needs --encoder {host.encoder}"
        if host is not None and set(settings.stages) - {"di", "dira"}:
            return f"{name} restores: choose --stages di dira"
        if name == "TransVW" and not settings.words:
            return "TransVW needs --words FOLDER, as volumes/visual_words.py writes it"
    if settings.cube and {"apart", "published"} & set(settings.stages):
        return "the stages apart and published are of images"
    parts = {"di+curves", "di+distortions"} & set(settings.stages)
    if parts and (settings.cube or not settings.intensity):
        return f"{min(parts)} needs images and --intensity: choose di+views"
    encoder = settings.encoder
    if settings.cube and encoder not in ENCODERS_3D:
        return f"encoders of volumes are {', '.join(ENCODERS_3D)}; got {encoder}"
    if not settings.cube and encoder not in ENCODERS and not timm.is_model(encoder):
        return f"encoders of images are {', '.join(ENCODERS)}, or timm's; got {encoder}"
    if settings.start and (settings.cube or encoder == "vit" or "-" in encoder):
        return "--start is for torchvision and timm: choose --encoder resnet18"
    return None


def views_of(run: Run) -> str:
    """Returns which views a run gets, see `make_transforms`."""
    method, stage, _ = run
    if method in HOSTS:
        return HOSTS[method].transform
    known = {
        "di": "plain",
        "di+curves": "curved",
        "di+distortions": "uncurved",
        "published": "uncurved",
        "apart": "both",
    }
    return known.get(stage, "distorted")
