"""Weakly supervised localisation: does a classifier look where the finding is?"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.ops import box_convert, box_iou

from lightly_dira.core.extras import extra
from lightly_dira.data.resizing import resize_boxes
from lightly_dira.evaluation.labelled import LabelledImages, Samples
from lightly_dira.features.pyramid import FeaturePyramid

with extra("evaluation"):
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
    from scipy import ndimage

OVERLAPS = (0.1, 0.25, 0.5)


def class_activation_maps(
    model: nn.Module, images: Tensor, label: int, *, layer: nn.Module | None = None
) -> NDArray[np.float32]:
    """Shows which pixels speak for a class, by Grad-CAM [0].

    - [0]: Grad-CAM, 2017, https://arxiv.org/abs/1610.02391

    Args:
        model: Any network of images that outputs logits, such as `Classifier`.
        images: (B, C, H, W).
        label: Number of the class or finding.
        layer: Module whose maps are weighted; by default the one with the coarsest
            maps.

    Returns:
        Maps (B, H, W) in [0, 1].

    Examples:
        >>> import torch, torchvision
        >>> from lightly_dira.evaluation.localisation import class_activation_maps
        >>> model = torchvision.models.resnet18(num_classes=2)
        >>> class_activation_maps(model, torch.rand(2, 3, 64, 64), 1).shape
        (2, 64, 64)
    """
    if layer is None:
        pyramid = FeaturePyramid(getattr(model, "backbone", model))
        layer = pyramid.backbone.get_submodule(pyramid.layers[-1].partition("[")[0])
    # On a copy: Grad-CAM adds hooks and switches the model to evaluation mode.
    model, layer = copy.deepcopy((model, layer))
    with GradCAM(model.requires_grad_(True), [layer]) as grad_cam:
        targets = [ClassifierOutputTarget(label)] * len(images)
        maps: NDArray[np.float32] = grad_cam(images, targets)
    return maps


def localisation_scores(
    maps: NDArray[Any],
    boxes: Sequence[NDArray[Any]],
    *,
    threshold: float = 0.5,
    overlaps: Sequence[float] = OVERLAPS,
) -> dict[str, float]:
    """Compares heat maps with boxes.

    The pointing game [0] is won if a map's highest pixel lies in a box of its image.
    The overlap [1] is that of a box around the map's highest region: the pixels of at
    least `threshold` times the maximum that are connected to the highest pixel.

    - [0]: Excitation backpropagation, 2016, https://arxiv.org/abs/1608.00507
    - [1]: ChestX-ray8, 2017, https://arxiv.org/abs/1705.02315

    Args:
        maps: (N, H, W), not negative.
        boxes: For each image its boxes (K, 4), K at least 1: left, top, width and
            height in the map's pixels.
        threshold: Fraction of a map's maximum that its region must reach, in (0, 1].
        overlaps: Intersections over union that count as a hit.

    Returns:
        - "pointing": the fraction of the images that win the pointing game.
        - "iou": mean intersection over union with the best box of each image.
        - "iou>=0.1" and so on: the fraction of images at or above each overlap.

    Raises:
        ValueError: If maps and boxes differ in number, or an image has no box.

    Examples:
        >>> import numpy as np
        >>> from lightly_dira.evaluation.localisation import localisation_scores
        >>> heat = np.zeros((1, 8, 8))
        >>> heat[0, 2:4, 2:6] = 1
        >>> localisation_scores(heat, [np.array([[2, 2, 4, 4]])], overlaps=[0.5])
        {'pointing': 1.0, 'iou': 0.5, 'iou>=0.5': 1.0}
    """
    if len(maps) != len(boxes) or not all(map(len, boxes)):
        raise ValueError(
            f"localisation_scores: {len(maps)} maps need boxes of as many images, at "
            f"least one each, got {[len(b) for b in boxes]}."
        )
    pointed, unions = [], []
    for heat, own in zip(maps, boxes, strict=True):
        peak = np.unravel_index(heat.argmax(), heat.shape)
        y, x = peak[0] + 0.5, peak[1] + 0.5
        left, top, width, height = np.asarray(own, dtype=float).T
        inside = (left <= x) & (x < left + width) & (top <= y) & (y < top + height)
        if not heat.any():  # it points nowhere
            pointed.append(False)
            unions.append(0.0)
            continue
        pointed.append(inside.any())
        regions, _ = ndimage.label(heat >= threshold * heat.max())
        rows, columns = ndimage.find_objects(regions)[regions[peak] - 1]
        region = [[columns.start, rows.start, columns.stop, rows.stop]]
        wanted = box_convert(torch.as_tensor(own, dtype=torch.float64), "xywh", "xyxy")
        overlaps_of = box_iou(wanted, torch.tensor(region, dtype=torch.float64))
        unions.append(float(overlaps_of.max()))
    hits = {
        f"iou>={overlap}": np.mean(np.array(unions) >= overlap) for overlap in overlaps
    }
    scores = {"pointing": np.mean(pointed), "iou": np.mean(unions), **hits}
    return {name: float(value) for name, value in scores.items()}


def score_localisation(
    model: nn.Module,
    data: LabelledImages,
    size: int,
    *,
    channels: int = 3,
    layer: nn.Module | None = None,
) -> dict[str, float]:
    """Compares what a classifier looks at with the boxes of what it should see.

    Every image gets a map for each kind of finding that its boxes frame, as in
    ChestX-ray8 [0].

    - [0]: ChestX-ray8, 2017, https://arxiv.org/abs/1705.02315

    Args:
        model: Any network of images that outputs logits in the order of
            `data.label_names`, such as `Classifier`.
        data: Images with boxes and box labels; images without boxes are left out.
        size: Side to which images are resized, in pixels.
        channels: Channels of the network's input.
        layer: As in `class_activation_maps`.

    Returns:
        The scores of `localisation_scores`, and "boxed", the number of maps.

    Raises:
        ValueError: If no image has a box of a finding that the labels name, or a box
            leaves its image.
    """
    kinds = [np.asarray(own).astype(str) for own in data.box_labels or ()]
    device = next(model.parameters()).device
    maps, boxes = [], []
    for label, name in enumerate(data.label_names):
        chosen = [index for index, own in enumerate(kinds) if (own == name).any()]
        if not chosen:
            continue
        part = data.subset(chosen)
        loader = DataLoader(Samples(part, size, channels=channels), batch_size=16)
        maps += [
            class_activation_maps(model, images.to(device), label, layer=layer)
            for images, _ in loader
        ]
        for index, number in enumerate(chosen):
            assert part.boxes is not None
            own = np.asarray(part.boxes[index], dtype=float)[kinds[number] == name]
            sides = part.pixels(index).shape[:2]
            # Boxes in tables are rounded.
            if ((own[:, :2] + own[:, 2:]) > np.array(sides[::-1]) + 1).any():
                raise ValueError(
                    f"score_localisation: a box of {part.names[index]} leaves its "
                    f"image of {sides[1]} x {sides[0]} pixels: {own.tolist()}. If "
                    "images were resized, resize their boxes, "
                    "`lightly_dira.data.resizing.resize_boxes`."
                )
            boxes.append(resize_boxes(own, sides, (size, size)))
    if not boxes:
        raise ValueError(
            "score_localisation: no image has a box of a finding that is among the "
            f"labels, {', '.join(data.label_names)}."
        )
    scores = localisation_scores(np.concatenate(maps), boxes)
    return scores | {"boxed": float(len(boxes))}
