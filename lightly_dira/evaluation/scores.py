"""Scores of predictions, by scikit-learn, torchmetrics and MONAI."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from lightly_dira.core.extras import extra

with extra("evaluation"):
    from sklearn.metrics import accuracy_score, balanced_accuracy_score, roc_auc_score
    from torchmetrics.functional.segmentation import dice_score, mean_iou


def classification_scores(
    targets: NDArray[Any], probabilities: NDArray[Any]
) -> dict[str, float]:
    """Scores predicted probabilities.

    Args:
        targets: A class for each image, (N,), or 0 or 1 for each finding, (N, L).
        probabilities: (N, classes) or (N, L).

    Returns:
        - "auc": area under the ROC curve, in [0, 1], averaged over findings or over
          classes, each against the rest (macro). Those that all or none of the images
          have are left out; NaN if none remains.
        - "accuracy" and "balanced_accuracy" (mean recall of the classes), for classes
          only.

    Raises:
        ValueError: If targets and probabilities differ in their number of images or
            findings.

    Examples:
        >>> import numpy as np
        >>> from lightly_dira.evaluation.scores import classification_scores
        >>> probabilities = np.array([[0.9, 0.1], [0.6, 0.4], [0.7, 0.3], [0.2, 0.8]])
        >>> classification_scores(np.array([0, 0, 1, 1]), probabilities)
        {'auc': 0.75, 'accuracy': 0.75, 'balanced_accuracy': 0.75}
    """
    scores = {}
    if targets.ndim == 1:
        classes = max(2, int(targets.max(initial=0)) + 1)
        if probabilities.ndim != 2 or probabilities.shape[1] < classes:
            raise ValueError(
                f"classification_scores: {classes} classes need probabilities (N, "
                f"{classes}), got {probabilities.shape}. Of the probability p of one "
                "finding: np.stack([1 - p, p], axis=1)."
            )
        predicted = probabilities.argmax(axis=1)
        scores["accuracy"] = float(accuracy_score(targets, predicted))
        recall = balanced_accuracy_score(targets, predicted)
        scores["balanced_accuracy"] = float(recall)
        one_each = targets[:, None] == np.arange(probabilities.shape[1])
        if probabilities.shape[1] == 2:  # both classes have the same area
            one_each, probabilities = one_each[:, 1:], probabilities[:, 1:]
    else:
        one_each = targets > 0
    if one_each.shape != probabilities.shape:
        raise ValueError(
            f"classification_scores: targets need probabilities of {one_each.shape}, "
            f"got {probabilities.shape}."
        )
    areas = [
        roc_auc_score(truth, column)
        for truth, column in zip(one_each.T, probabilities.T, strict=True)
        if 0 < truth.sum() < len(truth)
    ]
    return {"auc": float(np.mean(areas)) if areas else float("nan"), **scores}


def segmentation_scores(masks: Tensor, predicted: Tensor) -> dict[str, float]:
    """Scores predicted masks, image by image and class by class.

    With T the pixels of a class and P those predicted, Dice is 2 |P & T| / (|P| + |T|)
    and IoU is |P & T| / |P | T|. A class does not count for an image that neither has
    it nor is predicted to have it. Class 0, the background, is left out.

    Args:
        masks: True class of each pixel, (N, H, W) integers, or (N, D, H, W).
        predicted: Predicted class of each pixel, integers of the same shape.

    Raises:
        ValueError: If the shapes differ, or classes are not whole numbers.

    Returns:
        "dice" and "iou", each in [0, 1], averaged over classes, then over images.

    Examples:
        >>> import torch
        >>> from lightly_dira.evaluation.scores import segmentation_scores
        >>> masks = torch.tensor([[[0, 1], [1, 1]]])
        >>> segmentation_scores(masks, torch.tensor([[[0, 0], [1, 1]]]))["dice"]
        0.800000011920929
    """
    masks, predicted = _classes_of("segmentation_scores", masks, predicted)
    classes = int(max(masks.max(), predicted.max(), torch.tensor(1))) + 1
    settings: dict[str, Any] = dict(num_classes=classes, include_background=False)
    settings |= dict(input_format="index")
    dice = dice_score(predicted, masks, average="none", **settings)
    iou = mean_iou(predicted, masks, per_class=True, **settings)
    present = torch.stack(
        [
            ((masks == label) | (predicted == label)).flatten(1).any(dim=1)
            for label in range(1, classes)
        ],
        dim=1,
    )
    return {
        name: float(torch.where(present, values, torch.nan).nanmean(dim=1).nanmean())
        for name, values in (("dice", dice), ("iou", iou))
    }


def _classes_of(who: str, *masks: Tensor) -> tuple[Tensor, ...]:
    """Returns masks as 64-bit integers."""
    if len({mask.shape for mask in masks}) > 1:
        shapes = " and ".join(str(tuple(mask.shape)) for mask in masks)
        raise ValueError(f"{who}: expected masks of one shape, got {shapes}.")
    if any(mask.is_floating_point() for mask in masks):
        raise ValueError(
            f"{who}: expected classes, integers, got floats. Of logits or "
            "probabilities take the class: `values.argmax(dim=1)`."
        )
    return tuple(mask.long() for mask in masks)


def surface_scores(
    masks: Tensor,
    predicted: Tensor,
    *,
    spacing: Sequence[float] | None = None,
) -> dict[str, float]:
    """Measures how far predicted surfaces lie from the true ones, with MONAI.

    A class does not count for an image that neither has it nor is predicted to have it.
    Where only one of both has it, the distance is the diagonal of the image, so that
    nothing is gained by predicting nothing. Class 0, the background, is left out.

    Args:
        masks: True class of each voxel, (N, D, H, W) integers, or (N, H, W).
        predicted: Predicted class of each voxel, integers of the same shape.
        spacing: Distances between voxels along (D, H, W), for results in millimetres;
            by default results are in voxels.

    Returns:
        "surface distance", the mean distance from one surface to the other, in both
        directions, and "hausdorff 95", the larger of the two 95th percentiles, averaged
        over classes, then over images.

    Raises:
        ImportError: If MONAI is not installed (`lightly-dira[volumes]`).

    Examples:
        >>> import torch
        >>> from lightly_dira.evaluation.scores import surface_scores
        >>> mask = torch.zeros(1, 8, 8, 8, dtype=torch.long)
        >>> mask[:, 2:6, 2:6, 2:6] = 1
        >>> surface_scores(mask, mask.roll(1, dims=1))["hausdorff 95"]
        1.0
    """
    with extra("volumes"):
        from monai.metrics.hausdorff_distance import compute_hausdorff_distance
        from monai.metrics.surface_distance import compute_average_surface_distance
    masks, predicted = _classes_of("surface_scores", masks, predicted)
    between = [1.0] * (masks.ndim - 1) if spacing is None else [*map(float, spacing)]
    worst = (torch.tensor(masks.shape[1:]) * torch.tensor(between)).norm()
    classes = int(max(masks.max(), predicted.max(), torch.tensor(1))) + 1
    found: dict[str, list[Tensor]] = {"surface distance": [], "hausdorff 95": []}
    for pair in zip(masks, predicted, strict=True):
        truth, guess = (F.one_hot(m.long(), classes).movedim(-1, 0)[None] for m in pair)
        held = torch.stack([m.flatten(2).any(dim=2)[0, 1:] for m in (truth, guess)])
        common: dict[str, Any] = dict(include_background=False, spacing=between)
        with warnings.catch_warnings():
            # Of classes that one of the two lacks, which are seen to below.
            warnings.simplefilter("ignore")
            distances = (
                compute_average_surface_distance(
                    guess, truth, symmetric=True, **common
                ),
                compute_hausdorff_distance(guess, truth, percentile=95, **common),
            )
        for kept, values in zip(found.values(), distances, strict=True):
            values = torch.where(held.all(dim=0), values[0].cpu(), worst)
            kept.append(torch.where(held.any(dim=0), values, torch.nan).nanmean())
    return {name: float(torch.stack(kept).nanmean()) for name, kept in found.items()}
