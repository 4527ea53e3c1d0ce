"""Drawing train, validation and test splits, by patient and in proportion."""

from __future__ import annotations

import itertools
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightly_dira.core.extras import extra
from lightly_dira.evaluation.label_fractions import strata_of

with extra("evaluation"):
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

# Parts that are drawn, of which some are held out.
_PARTS = 10


def draw_splits(
    groups: NDArray[Any],
    seed: int,
    *,
    labels: NDArray[Any] | None = None,
    val: float = 0.1,
    test: float = 0.2,
) -> NDArray[Any]:
    """Draws a split for each image, by scikit-learn's stratified parts.

    Args:
        groups: A name for each image, (N,): those of one name get the same split.
        seed: Seed of the draw.
        labels: A class for each image, (N,), or 0 or 1 for each finding, (N, L). Splits
            hold the classes in their proportions, as far as groups allow, and those
            that are held out hold every class if parts of a tenth can.
        val: Part for validation, in tenths.
        test: Part for testing, in tenths.
    """
    known: Any = np.zeros(len(groups), int) if labels is None else labels
    strata = strata_of(np.asarray(known))
    names, group_of = np.unique(groups, return_inverse=True)
    parts = min(_PARTS, len(names))
    drawn = np.full(len(groups), "train", dtype=object)
    if parts < 2:
        return drawn
    # The same for images that are patients of their own, and many times faster.
    alone = len(names) == len(groups)
    kind = StratifiedKFold if alone else StratifiedGroupKFold
    # Classes of fewer images than parts cannot be spread over them.
    spread = strata if np.bincount(strata).max() >= parts else np.zeros_like(strata)
    folds = kind(parts, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)
        found = folds.split(strata, spread, None if alone else group_of)
        left = [part for _, part in found]
    counts = np.array(
        [np.bincount(strata[part], minlength=strata.max() + 1) for part in left]
    )
    whole = counts.sum(axis=0)
    tested = round(test * parts)
    for name, count in (
        ("test", tested),
        ("val", round((val + test) * parts) - tested),
    ):
        chosen = min(
            itertools.combinations(range(len(left)), count),
            key=lambda numbers: _distance(counts, [*numbers], whole),
        )
        for number in chosen:
            drawn[left[number]] = name
        left = [part for number, part in enumerate(left) if number not in chosen]
        counts = np.delete(counts, chosen, axis=0)
    return drawn


def _distance(
    counts: NDArray[Any], chosen: list[int], whole: NDArray[Any]
) -> tuple[int, int, float]:
    """Returns how many classes the rest and the chosen parts lack, and the difference.

    That is how far the proportions and the size of the chosen parts are off.

    Args:
        counts: Images of each class, in each part that is left, (parts, classes).
        chosen: Numbers of parts.
        whole: Images of each class.
    """
    own = counts[chosen].sum(axis=0)
    rest = counts.sum(axis=0) - own
    off = np.abs(own / max(1, own.sum()) - whole / whole.sum()).sum()
    off += abs(own.sum() / counts.sum() - len(chosen) / len(counts))
    return int((rest == 0).sum()), int((own == 0).sum()), round(float(off), 9)
