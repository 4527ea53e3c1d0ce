"""A downstream task, and what a pre-trained encoder is worth on it, in tidy rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
from torch import nn
from torch.utils.data import Subset, TensorDataset
from torchvision.transforms import v2

from lightly_dira.core.extras import extra
from lightly_dira.evaluation.dense import dense_probe, encode_pixels
from lightly_dira.evaluation.finetuning import (
    finetune_classifier,
    finetune_unet,
    score_classifier,
    score_unet,
)
from lightly_dira.evaluation.label_fractions import FRACTIONS, label_fractions
from lightly_dira.evaluation.labelled import LabelledImages, Samples
from lightly_dira.evaluation.localisation import score_localisation
from lightly_dira.evaluation.probes import encode, knn_probe, linear_probe
from lightly_dira.models.restoration_head import RestorationHead

with extra("evaluation"):
    import pandas as pd

Row = dict[str, Any]
Protocol = Literal["linear", "knn", "fine-tuned", "dense", "frozen U-Net", "U-Net"]


@dataclasses.dataclass(frozen=True)
class Task:
    """Images, and how encoders are evaluated on them.

    Attributes:
        name: Name of the task in the rows.
        data: Images with labels or masks, and splits.
        size: Side to which images are resized, in pixels, or (D, H, W) of volumes.
        protocols: How an encoder is evaluated: "linear", "knn" and "fine-tuned" with
            labels, "dense", "frozen U-Net" and "U-Net" with masks. "fine-tuned" is also
            scored for localisation if there are boxes.
        fractions: Parts of the training labels to learn from.
        draws: Random choices of each part, whose scores are averaged. With few labels,
            the choice of labels matters more than the encoder.
        train: Name of the split to learn from.
        val: Name of the split on which fine-tuning chooses its weights.
        steps: Steps of fine-tuning.
        batch_size: Images in a step of fine-tuning; by default 32 for classifiers and
            16 for U-Nets.
        pixels: Pixels of each image for the dense probe.

    Examples:
        >>> from lightly_dira.evaluation.protocol import Task
        >>> from lightly_dira.evaluation.read_volumes import read_mni152
        >>> task = Task("tissue", read_mni152(), 32, ("dense",), fractions=(0.1, 1.0))
    """

    name: str
    data: LabelledImages
    size: int | tuple[int, ...]
    protocols: Sequence[Protocol]
    fractions: Sequence[float] = FRACTIONS
    draws: int = 1
    train: str = "train"
    val: str = "val"
    steps: int = 300
    batch_size: int | None = None
    pixels: int = 64

    def __post_init__(self) -> None:
        """Checks the numbers and the protocols."""
        if self.draws < 1:
            raise ValueError(f"Task: draws must be at least 1, got {self.draws}.")
        if self.data.spatial_dims == 2 and not isinstance(self.size, int):
            raise ValueError(f"Task: images become squares, got the size {self.size}.")
        for protocol in self.protocols:
            if protocol not in _PROTOCOLS:
                raise ValueError(
                    f"Task: protocols are {', '.join(_PROTOCOLS)}; got {protocol!r}."
                )


def evaluate(
    task: Task,
    backbone: nn.Module,
    head: RestorationHead | None = None,
    *,
    split: str = "test",
    seed: int = 0,
) -> Iterator[Row]:
    """Evaluates an encoder on a task.

    Everything random depends on the seed: the same seed gives every encoder the same
    labelled images, pixels and order, so that rows of one seed can be paired.

    Args:
        task: The task.
        backbone: Any network of images in [0, 1]; it is not changed. If its views were
            normalised: ``nn.Sequential(v2.Normalize(mean, std), backbone)``.
        head: Its restoration head, for the decoder of the U-Nets.
        split: The split to score on: a validation split while you choose settings, the
            test split once.
        seed: Seed of label fractions, pixels, new weights, order and augmentation.

    Yields:
        Rows with the keys task, protocol, fraction, images (with labels), split, seed,
        metric and value.

    Examples:
        >>> import torchvision
        >>> from lightly_dira.evaluation.protocol import Task, evaluate
        >>> from lightly_dira.evaluation.read_volumes import read_mni152
        >>> task = Task("tissue", read_mni152(), 32, ("dense",), fractions=(0.1,))
        >>> backbone = torchvision.models.resnet18()
        >>> [row["metric"] for row in evaluate(task, backbone, split="val")]
        ['dice', 'dice of 1', 'dice of 2']
    """
    train, test = task.data.split(task.train), task.data.split(split)
    strata = _strata_of(train)
    draws = [
        label_fractions(strata, task.fractions, patients=train.patients, seed=number)
        for number in range(task.draws * seed, task.draws * (seed + 1))
    ]
    for protocol in task.protocols:
        score = _PROTOCOLS[protocol](task, backbone, head, train, test, seed)
        for fraction in task.fractions:
            # Equal draws are scored once: with all labels there is only one choice.
            parts = {tuple(draw[fraction]): draw[fraction] for draw in draws}.values()
            scores = pd.DataFrame([score(part) for part in parts])
            for metric, value in scores.mean().items():
                yield {
                    "task": task.name,
                    "protocol": protocol,
                    "fraction": fraction,
                    "images": round(float(np.mean([len(part) for part in parts]))),
                    "split": split,
                    "seed": seed,
                    "metric": metric,
                    "value": value,
                }


def _strata_of(train: LabelledImages) -> Any:
    """Returns labels, or whether masks show anything, as those of lesions may not."""
    if train.labels is not None:
        return train.labels
    return np.array([train.mask(number).any() for number in range(len(train))])


# Each function below is called once for a protocol and returns a function that scores a
# part of the training images, so that a frozen encoder runs only once.
Score = Callable[[Any], dict[str, float]]


def _probe(
    probe: Callable[[TensorDataset, TensorDataset], dict[str, float]],
    task: Task,
    backbone: nn.Module,
    head: RestorationHead | None,
    train: LabelledImages,
    test: LabelledImages,
    seed: int,
) -> Score:
    batch_size = task.batch_size or 64
    encoded, others = (
        encode(backbone, Samples(data, task.size), batch_size=batch_size)
        for data in (train, test)
    )
    return lambda part: probe(TensorDataset(*encoded[part]), others)


def _dense(
    task: Task,
    backbone: nn.Module,
    head: RestorationHead | None,
    train: LabelledImages,
    test: LabelledImages,
    seed: int,
) -> Score:
    encoded, others = (
        encode_pixels(
            backbone,
            Samples(data, task.size, "mask"),
            pixels=task.pixels,
            seed=number,
        )
        for data, number in ((train, seed), (test, 0))
    )

    shown = [int(label) for label in np.unique(others.tensors[1]) if label]

    def score(part: Any) -> dict[str, float]:
        learnt_from = TensorDataset(*encoded[part])
        # Pixels of one class, as where no drawn one lies in a lesion, teach nothing.
        if len(np.unique(learnt_from.tensors[1])) < 2:
            dice = dict.fromkeys(shown, 0.0)
        else:
            dice = dense_probe(learnt_from, others)
        classes = {f"dice of {label}": value for label, value in dice.items()}
        mean = {"dice": float(np.mean([*dice.values()])) if dice else np.nan}
        return mean | (classes if len(shown) > 1 else {})

    return score


def _classifier(
    task: Task,
    backbone: nn.Module,
    head: RestorationHead | None,
    train: LabelledImages,
    test: LabelledImages,
    seed: int,
) -> Score:
    labels = task.data.labels
    assert labels is not None
    samples = Samples(train, task.size, augment=AUGMENT)
    val = Samples(task.data.split(task.val), task.size)
    framed = {str(name) for own in test.box_labels or () for name in own}
    boxed = framed & set(test.label_names)
    batch_size = task.batch_size or 32

    def score(part: Any) -> dict[str, float]:
        classifier = finetune_classifier(
            backbone,
            Subset(samples, part),
            val,
            classes=int(labels.max()) + 1,
            steps=task.steps,
            batch_size=batch_size,
            seed=seed,
        )
        tested = Samples(test, task.size)
        scores = score_classifier(classifier, tested, batch_size=batch_size)
        if boxed:
            assert isinstance(task.size, int)
            scores |= score_localisation(classifier, test, task.size)
        return scores

    return score


def _unet(
    frozen: bool,
    task: Task,
    backbone: nn.Module,
    head: RestorationHead | None,
    train: LabelledImages,
    test: LabelledImages,
    seed: int,
) -> Score:
    samples = Samples(train, task.size, "mask", augment=AUGMENT)
    val = Samples(task.data.split(task.val), task.size, "mask")
    classes = 1 + max(int(task.data.mask(i).max()) for i in range(len(task.data)))
    batch_size = task.batch_size or 16

    def score(part: Any) -> dict[str, float]:
        unet = finetune_unet(
            backbone,
            Subset(samples, part),
            val,
            classes=classes,
            head=head,
            frozen=frozen,
            steps=task.steps,
            batch_size=batch_size,
            seed=seed,
        )
        tested = Samples(test, task.size, "mask")
        return score_unet(unet, tested, batch_size=batch_size)

    return score


# Mild augmentation: small rotations, shifts and changes of scale, of volumes in plane.
AUGMENT = v2.RandomAffine(10, translate=(0.1, 0.1), scale=(0.9, 1.1))

_PROTOCOLS: dict[str, Callable[..., Score]] = {
    "linear": partial(_probe, linear_probe),
    "knn": partial(_probe, knn_probe),
    "fine-tuned": _classifier,
    "dense": _dense,
    "frozen U-Net": partial(_unet, True),
    "U-Net": partial(_unet, False),
}
