"""Images for pre-training and tasks for evaluation, chosen by `--data`."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from lightly_dira.evaluation.labelled import LabelledImages
from lightly_dira.evaluation.protocol import Task
from lightly_dira.evaluation.read_tables import read_chestxray14
from lightly_dira.evaluation.read_volumes import read_mni152
from lightly_dira.evaluation.readers import read_medmnist, read_npz


def load_tasks(
    data: str | None, *, size: int, fractions: Sequence[float], steps: int
) -> tuple[LabelledImages, list[Task]]:
    """Returns images to pre-train on, of training splits only, and the tasks.

    Args:
        data: A folder of ChestX-ray14 or of the three files of `load_chest`, the name
            of a set of MedMNIST, or None for the MNI152 brain.
        size: Side of images, in pixels.
        fractions: Parts of the labels to learn from.
        steps: Steps of fine-tuning, which learns from the two smallest parts.
    """
    few = tuple(fraction for fraction in fractions if fraction < 1)[:2]
    if data is None:
        brain = read_mni152()
        return brain.split("train"), [
            Task("brain direction", brain, size, ("linear", "knn"), fractions),
            Task("brain tissue", brain, size, ("dense",), fractions, pixels=32),
            Task("brain tissue", brain, size, ("U-Net",), few[:1], steps=steps),
        ]
    folder = Path(data)
    if not folder.is_dir():
        sides = [side for side in (28, 64, 128, 224) if side >= size]
        try:
            images = read_medmnist(data, size=min(sides, default=224))
        except ValueError as error:
            sys.exit(f"--data {data}: there is no such folder, and {error}")
        return images.split("train"), [
            Task(data, images, size, ("linear", "knn"), fractions),
            Task(data, images, size, ("fine-tuned",), few, steps=steps),
        ]
    if not list(folder.glob("*.npz")):
        chest = read_chestxray14(folder)
        protocols = ("linear", "knn", "fine-tuned")
        task = Task("ChestX-ray14", chest, size, protocols, fractions, steps=steps)
        return chest.split("train"), [task]
    pool, pneumonia, lungs, elsewhere, findings, boxed = load_chest(folder)
    return pool, [
        Task("pneumonia", pneumonia, size, ("linear", "knn"), fractions),
        Task("tuberculosis", lungs, size, ("linear", "knn"), fractions),
        Task("findings", findings, size, ("linear", "knn"), fractions),
        Task("lungs", lungs, size, ("dense",), fractions),
        Task("lungs elsewhere", elsewhere, size, ("dense",), fractions),
        Task("lungs", lungs, size, ("frozen U-Net", "U-Net"), few, steps=steps),
        Task("pneumonia", pneumonia, size, ("fine-tuned",), few, steps=steps),
        # Activation maps need more positions, hence larger images.
        Task("findings", boxed, 2 * size, ("fine-tuned",), (1.0,), steps=steps),
    ]


def load_chest(folder: Path) -> list[LabelledImages]:
    """Reads the chest X-rays of the study, three files of small images.

    Returns:
        Images to pre-train on; pneumonia of children; lungs with masks and labels of
        tuberculosis; the same, with one hospital for training and another for testing;
        findings; the same, with all patients who have boxes in the test split.
    """
    pneumonia = read_npz(folder / "pneumoniamnist_full.npz")
    lungs = read_npz(folder / "lung_seg_128.npz", label="tb_label")
    source = read_npz(folder / "lung_seg_128.npz", split="source").splits
    away = (source == "montgomery") == (lungs.splits != "train")
    elsewhere = dataclasses.replace(
        lungs, splits=np.where(away, lungs.splits, "unused")
    )
    # Grey levels alone tell ill from healthy here, so histograms are equalised.
    findings = read_npz(folder / "nih_cxr_mini_128.npz")
    findings = dataclasses.replace(
        findings,
        images=np.stack([cv2.equalizeHist(image) for image in findings.images]),
        label_names=("No Finding", "Pneumonia"),
    )
    framed = [
        patient
        for patient, own in zip(findings.patients, findings.boxes, strict=True)
        if len(own)
    ]
    boxed = dataclasses.replace(
        findings,
        splits=np.where(np.isin(findings.patients, framed), "test", findings.splits),
    )
    unseen = (findings.splits == "train") & (boxed.splits == "train")
    pool = join(
        [pneumonia.split("train"), lungs.split("train"), findings.subset(unseen)]
    )
    return [pool, pneumonia, lungs, elsewhere, findings, boxed]


def join(parts: list[LabelledImages]) -> LabelledImages:
    """Joins images of any size, without labels, masks and so on."""
    return LabelledImages([part.pixels(i) for part in parts for i in range(len(part))])
