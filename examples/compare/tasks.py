"""Images for pre-training and tasks for evaluation, chosen by `--data`."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import cv2
import numpy as np
from own_data import load_own
from settings import Settings

from lightly_dira.evaluation.chestxray14 import read_chestxray14
from lightly_dira.evaluation.labelled import LabelledImages
from lightly_dira.evaluation.protocol import Protocol, Task
from lightly_dira.evaluation.read_volumes import read_mni152, read_nifti
from lightly_dira.evaluation.readers import read_medmnist, read_npz

# What the folders hold that have readers of their own.
KNOWN = ("lung_seg_128.npz", "Data_Entry_2017*.csv", "hippocampus_*", "imagesTr")


def is_own(data: str) -> bool:
    """Whether `data` is a folder or a file that has no reader of its own."""
    path = Path(data)
    if path.is_file():
        return path.suffix != ".npz"
    return path.is_dir() and not any([*path.glob(known)] for known in KNOWN)


def load_tasks(
    data: str | None, settings: Settings
) -> tuple[LabelledImages, list[Task]]:
    """Returns images to pre-train on, of training splits only, and the tasks.

    Args:
        data: Images of one's own (see `own_data`), a folder of ChestX-ray14, of the
            three files of `load_chest` or of volumes for `load_hippocampus`, a file for
            `load_nodules`, the name of a set of MedMNIST, or None for the MNI152 brain.
        settings: Sizes, parts of the labels to learn from, and steps of fine-tuning,
            which learns from the two smallest parts of images.
    """
    size, fractions = settings.size, settings.fractions
    steps = settings.finetuning_steps
    if data is not None and is_own(data):
        return load_own(Path(data), settings)
    if settings.cube:
        return load_volumes(data, settings)
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
        try:
            chest = read_chestxray14(folder)
        except (FileNotFoundError, ValueError) as error:
            sys.exit(f"--data {data}: {error} Volumes need --preset volumes.")
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


def load_volumes(
    data: str | None, settings: Settings
) -> tuple[LabelledImages, list[Task]]:
    """Returns volumes to pre-train on, and the tasks; see `load_tasks`."""
    if data is None:
        sys.exit("volumes need --data: see --help")
    size, fractions = settings.cube, settings.fractions
    steps, batch = settings.finetuning_steps, settings.finetuning_batch
    if Path(data).is_file():
        volumes, data = load_nodules(Path(data)), "nodules"
        protocols: tuple[Protocol, ...] = ("linear", "knn", "dense")
    elif not Path(data).is_dir():
        try:
            volumes = read_medmnist(data, size=64 if max(size) > 28 else 28)
        except ValueError as error:
            sys.exit(f"--data {data}: there is no such folder, and {error}")
        protocols = ("linear", "knn", "fine-tuned")
    else:
        volumes = load_hippocampus(Path(data))
        data, protocols = "hippocampus", ("dense", "frozen U-Net", "U-Net")
    task = Task(data, volumes, size, protocols, fractions, steps=steps, pixels=300)
    return volumes.split("train"), [dataclasses.replace(task, batch_size=batch)]


def load_hippocampus(folder: Path) -> LabelledImages:
    """Reads MRI of the hippocampus with masks of its two parts.

    Args:
        folder: Holds hippocampus_msd04.npz, or imagesTr and labelsTr of Task04 of the
            Medical Segmentation Decathlon (http://medicaldecathlon.com).

    Returns:
        Volumes whose grey levels between the percentiles 0.5 and 99.5 are 8 bits: they
        have no common unit. Cases 2k-1 and 2k look like two scans of one person, and
        are never in two splits.
    """
    file = folder / "hippocampus_msd04.npz"
    if file.exists():
        return read_npz(file, mask="labels", patient="subject", spatial_dims=3)
    volumes = sorted(folder.glob("imagesTr/hippocampus_*.nii.gz"))
    if not volumes:
        sys.exit(f"{folder} holds neither {file.name} nor imagesTr/hippocampus_*.")
    numbers = [int(path.name.split("_")[1].split(".")[0]) for path in volumes]
    read = read_nifti(
        volumes,
        masks=[folder / "labelsTr" / path.name for path in volumes],
        patients=[str((number + 1) // 2) for number in numbers],
        axis=None,
    )
    return dataclasses.replace(read, images=[eight_bits(v) for v in read.images])


def load_nodules(file: Path) -> LabelledImages:
    """Reads boxes around nodules in CT, benign or malignant.

    Args:
        file: Has the arrays images and masks (N, D, H, W), diagnosis, 0 or 1, patient
            and split, (N,); see `read_npz`.
    """
    try:
        return read_npz(file, label="diagnosis", patient="patient", spatial_dims=3)
    except ValueError as error:
        sys.exit(f"--data {file}: expected CT nodules, and {error}")


def read_words(settings: Settings) -> LabelledImages:
    """Reads the cubes of visual words that volumes/visual_words.py wrote."""
    files = sorted(Path(settings.words).glob("word-*.npz"))
    if not files:
        sys.exit(f"{settings.words} holds no words: see volumes/visual_words.py.")
    words = [np.load(file)["cubes"] for file in files]
    sides = words[0].shape[1:]
    if sides != settings.cube:
        sys.exit(
            f"{settings.words} holds cubes of {sides} voxels, but --cube is "
            f"{settings.cube}: give visual_words.py the same, --input-size D H W."
        )
    cubes = [np.round(255 * cube).astype(np.uint8) for word in words for cube in word]
    labels = np.repeat(np.arange(len(words)), [len(word) for word in words])
    return LabelledImages(cubes, labels=labels, spatial_dims=3)


def eight_bits(volume: np.ndarray) -> np.ndarray:
    low, high = np.percentile(volume, (0.5, 99.5))
    return np.round(255 * ((volume - low) / (high - low)).clip(0, 1)).astype(np.uint8)


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
    pool = concatenated(
        [pneumonia.split("train"), lungs.split("train"), findings.subset(unseen)]
    )
    return [pool, pneumonia, lungs, elsewhere, findings, boxed]


def concatenated(parts: list[LabelledImages]) -> LabelledImages:
    """Joins images of any size, without labels, masks and so on."""
    return LabelledImages([part.pixels(i) for part in parts for i in range(len(part))])
