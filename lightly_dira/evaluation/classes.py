"""What labels and masks hold: classes, or findings."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def check_labels(who: str, labels: Any) -> None:
    """Raises a ValueError unless labels are whole numbers from 0 on.

    Args:
        who: Who asks, for the error.
        labels: A class of each image, (N,), or its findings, 0 or 1, (N, L).
    """
    values = np.asarray(labels)
    if values.dtype.kind not in "biuf":
        raise ValueError(
            f"{who}: labels must be numbers, got {values.reshape(-1)[:1]}. "
            "Number the classes: `names, labels = numpy.unique(words, "
            "return_inverse=True)`, with label_names=tuple(names)."
        )
    most = 1 if values.ndim > 1 else np.iinfo(np.int64).max
    # NaN is neither.
    right = (values >= 0) & (values <= most) & (values == np.floor(values))
    if not right.all():
        place = np.argwhere(~right)[0]
        what = "0 or 1 for each finding" if values.ndim > 1 else "classes from 0 on"
        raise ValueError(
            f"{who}: labels are {what}, got {values[tuple(place)]} of image "
            f"{place[0]}. Leave out images whose label is not known (`subset`), or "
            "decide: probabilities by `labels > 0.5`; CheXpert's -1 by `read_table("
            "uncertain=...)`."
        )


def whole(classes: NDArray[Any]) -> NDArray[Any]:
    """Returns classes of a mask without the rounding errors of files that scale them.

    Where values are further from whole numbers, all are left as they are.
    """
    rounded = np.round(classes)
    return rounded if np.allclose(classes, rounded, rtol=0, atol=1e-4) else classes


def checked(classes: NDArray[Any], number: int) -> NDArray[Any]:
    """Returns the classes of the mask of an image.

    Raises:
        ValueError: If it holds what is no class.
    """
    classes = whole(classes)
    wrong = classes[(classes < 0) | (classes >= 255) | (classes != np.trunc(classes))]
    if wrong.size:
        raise ValueError(
            f"LabelledImages: the mask of image {number} holds {wrong.flat[0]}, but "
            "its values are classes: 0, 1, 2 and so on, below 255. White masks: "
            "`masks > 0`; probabilities: `masks > 0.5`."
        )
    return classes


def foreground_of(mask: NDArray[Any], path: object) -> NDArray[Any]:
    """Returns where the mask of a file is not black.

    Raises:
        ValueError: If it holds several values beside black: they may be classes, edges
            that were resized, or the noise of JPEG.
    """
    if mask.ndim == 3:  # a number for each colour
        mask = mask.astype(np.int64) @ [1 << 32, 1 << 16, 1]
    values = np.unique(mask)
    if len(values[values != 0]) > 1 or values[0] < 0:
        raise ValueError(
            f"LabelledImages: the mask {path} holds {len(values)} values from "
            f"{values[0]} to {values[-1]}, expected black and one other. Of classes "
            "give arrays, `masks=[read_image(path) for path in paths]`. Grey edges, or "
            "the noise of JPEG: threshold the masks, and save them as PNG."
        )
    return np.asarray(mask > 0)
