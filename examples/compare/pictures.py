"""Pictures of a comparison: restored images, dense features, activations."""

from __future__ import annotations

import re
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from pytorch_grad_cam.utils.image import show_cam_on_image
from torch import Tensor, nn
from torch.utils.data import default_collate

from lightly_dira import DiRATransform, DiRAViews, RestorationHead
from lightly_dira.evaluation.feature_picture import draw_features
from lightly_dira.evaluation.finetuning import finetune_classifier
from lightly_dira.evaluation.labelled import LabelledImages, Samples
from lightly_dira.evaluation.localisation import class_activation_maps
from lightly_dira.evaluation.protocol import AUGMENT, Task
from lightly_dira.features.pyramid import FeaturePyramid
from lightly_dira.transforms import orthogonal_slices

COLUMNS = 6
Encoders = dict[str, tuple[nn.Module, RestorationHead | None]]


def draw_pictures(
    folder: Path,
    encoders: Encoders,
    untrained: nn.Module,
    tasks: list[Task],
    transform: DiRATransform,
    *,
    enlarged: int,
) -> None:
    """Writes restored.png and .csv, features.png and activations.png.

    All are of validation images; those of features are enlarged.
    """

    def save(name: str, figure: plt.Figure) -> None:
        figure.savefig(folder / f"{name}.png", dpi=110)
        plt.close(figure)

    restoring = {
        name: (backbone, head)
        for name, (backbone, head) in encoders.items()
        if not re.search("-di[-+]", name) and head is not None
    }
    if restoring:
        # Small images, enlarged, would show little.
        task = max(tasks, key=lambda task: min(task.data.pixels(0).shape[:2]))
        save("restored", draw_restored(restoring, task, transform))
        errors = measure_restored(restoring, task, transform)
        errors.to_csv(folder / "restored.csv", index=False, float_format="%.4f")
    dense = [task for task in tasks if "dense" in task.protocols]
    if dense and encoders:
        own = draw_dense_features(encoders, untrained, dense[0], enlarged)
        save("features", own)
    for task in tasks:
        flat = task.data.spatial_dims == 2
        if "fine-tuned" in task.protocols and encoders and flat:
            save("activations", draw_activations(encoders, task))
            break


def draw_restored(
    encoders: Encoders, task: Task, transform: DiRATransform
) -> plt.Figure:
    """Draws images in columns: clean, distorted, and restored by each encoder."""
    val = task.data.split(task.val)
    chosen = np.linspace(0, len(val) - 1, COLUMNS).astype(int)
    views = _views(val, transform, chosen)
    rows = {"clean": views.target, "distorted": views.view}
    for name, encoder in encoders.items():
        rows[f"restored by\n{name}"] = restore(encoder, views.view)
    height = 1.5
    if views.target.ndim == 5:
        # Three slices of each volume, across its three axes.
        rows = {name: orthogonal_slices(volumes) for name, volumes in rows.items()}
        height = 0.8
    title = "Validation images, distorted and restored"
    figure, axes = _grid(rows, title, height=height)
    for line, images in zip(axes, rows.values(), strict=True):
        for axis, image in zip(line, images.mean(dim=1), strict=True):
            axis.imshow(image, cmap="gray", vmin=0, vmax=1)
    return figure


def measure_restored(
    encoders: Encoders, task: Task, transform: DiRATransform
) -> pd.DataFrame:
    """Returns mean squared errors on all validation images, of one draw of views."""
    val = task.data.split(task.val)
    views = _views(val, transform, np.arange(len(val)))
    clean = views.target
    others = {
        "distorted view": views.view.mean(dim=1, keepdim=True),
        "mean image": clean.mean(dim=0, keepdim=True),
    }
    for name, encoder in encoders.items():
        parts = [restore(encoder, part) for part in views.view.split(64)]
        others[f"restored by {name}"] = torch.cat(parts)
    return pd.DataFrame(
        [
            {"what": what, "images": len(val), "error": (x - clean).square().mean()}
            for what, x in others.items()
        ]
    ).astype({"error": float})


def restore(encoder: tuple[nn.Module, RestorationHead], images: Tensor) -> Tensor:
    """Returns restored images."""
    backbone, head = encoder
    features = FeaturePyramid(backbone.eval())
    images = images.to(next(backbone.parameters()).device)
    with torch.no_grad():
        return head.eval()(features(images), images.shape[2:]).cpu()


def _views(
    images: LabelledImages, transform: DiRATransform, chosen: np.ndarray
) -> DiRAViews:
    torch.manual_seed(0)
    transformed = images.with_transform(transform)
    return default_collate([transformed[int(index)][0] for index in chosen])


def draw_dense_features(
    encoders: Encoders, untrained: nn.Module, task: Task, enlarged: int
) -> plt.Figure:
    """Draws images and principal components of an encoder's dense features.

    Of the first method the bare one and the last of its other stages are shown, at a
    multiple of the size that they were trained at, where less is blurred.
    """
    names = [*encoders]
    method = names[0].split("-")[0]
    own = sorted(name for name in names if name.startswith(f"{method}-"))
    bare = [name for name in own if re.search("-di-", name)]
    others = [name for name in own if name not in bare]
    shown = {"untrained": untrained}
    for name in [*bare[:1], *others[-1:]]:
        method, stage, _ = name.split("-")
        shown[f"{method}\n{stage}"] = encoders[name][0]
    val = task.data.split(task.val)
    part = val.subset(np.linspace(0, len(val) - 1, 4).astype(int))
    size = np.multiply(task.size, enlarged).tolist()
    images = torch.stack([image for image, _ in Samples(part, size, "mask")])
    return draw_features(shown, images, images)


def draw_activations(encoders: Encoders, task: Task) -> plt.Figure:
    """Draws images, with boxes if there are any; warm pixels speak for the finding."""
    train, val = task.data.split(task.train), task.data.split(task.val)
    labels, size = task.data.labels, task.size
    assert labels is not None
    shown = np.flatnonzero(val.labels > 0 if val.labels.ndim == 1 else val.labels[:, 0])
    if val.boxes is not None and any(map(len, val.boxes)):
        shown = np.array([index for index, own in enumerate(val.boxes) if len(own)])
    part = val.subset(shown[:COLUMNS])
    images = torch.stack([image for image, _ in Samples(part, size)])
    names = task.data.label_names or tuple(map(str, range(int(labels.max()) + 1)))
    label = 1 if labels.ndim == 1 else 0
    rows = {"image": None, **dict.fromkeys(encoders)}
    title = f"{task.name}: what speaks for {names[label]!r}"
    figure, axes = _grid(rows, title, columns=len(part))
    for line, name in zip(axes, rows, strict=True):
        maps = None
        if name in encoders:
            model = finetune_classifier(
                encoders[name][0],
                Samples(train, size, augment=AUGMENT),
                Samples(val, size),
                classes=int(labels.max()) + 1,
                steps=task.steps,
            )
            device = next(model.parameters()).device
            maps = class_activation_maps(model, images.to(device), label)
        for index, (axis, image) in enumerate(zip(line, images, strict=True)):
            picture = image.movedim(0, -1).numpy()
            if maps is not None:
                picture = show_cam_on_image(picture, maps[index], use_rgb=True)
            axis.imshow(picture)
            if part.boxes is not None:
                height, width = part.pixels(index).shape[:2]
                for left, top, wide, high in part.boxes[index]:
                    x, y = size / width, size / height
                    axis.add_patch(
                        plt.Rectangle(
                            (left * x, top * y), wide * x, high * y, fill=False, ec="w"
                        )
                    )
    return figure


def _grid(
    rows: dict[str, object],
    title: str,
    *,
    columns: int = COLUMNS,
    height: float = 1.5,
) -> tuple[plt.Figure, np.ndarray]:
    figure, axes = plt.subplots(
        len(rows),
        columns,
        figsize=(1.5 * columns + 1, height * len(rows) + 0.5),
        squeeze=False,
        layout="constrained",
    )
    figure.suptitle(title)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    for line, name in zip(axes, rows, strict=True):
        line[0].set_ylabel(name, rotation=0, ha="right", va="center")
    return figure, axes
