"""What a comparison does: its settings and their presets."""

from __future__ import annotations

import dataclasses
from typing import Any, get_args

from restorative import HOSTS

from lightly_dira.evaluation.protocol import Protocol

Run = tuple[str, str, int]  # method, stage, seed
# Bare methods on plain views, on parts of DiRA's views and on all of them; then DiRA.
BARE = ("di", "di+curves", "di+distortions", "di+views")
STAGES = (*BARE, "apart", "recipe", "lean", "dir", "dira", "published")
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
            the first one, in a pass of its own. Whatever the settings say, "recipe" is
            what the README shows, and "published" what `DiRA(backbone, optimizer)` and
            `DiRATransform(transform)` do.
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
        window: Two values that become black and white, in the units of the files, or
            "percentiles"; see `DiRATransform`.
        size: Side of views, in pixels.
        cube: Sides (D, H, W) of views of volumes, in voxels; none for images.
        zoom: Least and largest crop of a volume, as multiples of the view's sides; not
            for TransVW, whose cubes are whole.
        displacement: Of the elastic step of volumes, in voxels; not for Genesis.
        smallest_crop: Smallest area of a view, as a fraction of the image's area.
        jitter: Strength of the colour jitter, 1 as published.
        intensity: Probability of a curve of grey levels before the distortions of
            `dir` and `dira`, and in all views of volumes but those of hosts.
        distortions: How many published distortions of an image follow one another; the
            published pipeline has one.
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
    window: tuple[str, ...] = ()
    size: int = 32
    cube: tuple[int, ...] = ()
    zoom: tuple[float, ...] = (50 / 64, 79 / 64)
    displacement: float = 3.8
    smallest_crop: float = 0.2
    jitter: float = 1.0
    intensity: float = 0.0
    distortions: int = 1
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
