"""Fewer and fewer labels: nested, stratified parts of a training set."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

FRACTIONS = (0.01, 0.05, 0.10, 0.25, 0.50, 1.0)


def label_fractions(
    labels: NDArray[Any] | Sequence[Any],
    fractions: Iterable[float] = FRACTIONS,
    *,
    patients: NDArray[Any] | Sequence[Any] | None = None,
    seed: int = 0,
) -> dict[float, NDArray[np.int64]]:
    """Chooses which images keep their labels.

    Every part lies inside the larger ones. It holds each class in its proportion,
    rounded up so that no class is lost, and all images of its patients if patients are
    given. An image, or a patient, with several findings counts for the rarest one.

    Args:
        labels: A class for each image, (N,), or 0 or 1 for each finding, (N, L). If
            there is no label to stratify by, pass the same number for all images.
        fractions: Parts of the whole, each above 0 and at most 1.
        patients: A name for each image's patient, (N,).
        seed: Seed of the choice.

    Returns:
        For each fraction, the indices of the chosen images in rising order.

    Raises:
        ValueError: If a fraction is out of range, or labels and patients differ in
            number.

    Examples:
        >>> from lightly_dira.evaluation.label_fractions import label_fractions
        >>> parts = label_fractions([0] * 50 + [1] * 50, [0.1, 0.5])
        >>> {fraction: len(part) for fraction, part in parts.items()}
        {0.1: 10, 0.5: 50}
        >>> set(parts[0.1]) <= set(parts[0.5])
        True
    """
    fractions = list(fractions)
    if not all(0 < fraction <= 1 for fraction in fractions):
        raise ValueError(
            "label_fractions: fractions must be above 0 and at most 1, got "
            f"{fractions}."
        )
    strata = strata_of(np.asarray(labels))
    groups = np.arange(len(strata)) if patients is None else np.asarray(patients)
    if len(groups) != len(strata):
        raise ValueError(
            f"label_fractions: {len(strata)} labels need as many patients, got "
            f"{len(groups)}."
        )
    _, group_of = np.unique(groups, return_inverse=True)
    sizes = np.bincount(group_of)
    # Strata are numbered from the rarest.
    stratum_of = np.full(len(sizes), strata.max(initial=0))
    np.minimum.at(stratum_of, group_of, strata)

    order = np.random.default_rng(seed).permutation(len(sizes))
    parts: dict[float, list[NDArray[Any]]] = {fraction: [] for fraction in fractions}
    for stratum in np.unique(stratum_of):
        members = order[stratum_of[order] == stratum]
        # Images in the groups before each; groups are added until a part is full.
        before = np.cumsum(sizes[members]) - sizes[members]
        whole = sizes[members].sum()
        for fraction, part in parts.items():
            part.append(members[before < math.ceil(round(fraction * whole, 9))])
    return {
        fraction: np.flatnonzero(np.isin(group_of, np.concatenate(part)))
        for fraction, part in parts.items()
    }


def strata_of(labels: NDArray[Any]) -> NDArray[np.int64]:
    """Numbers each image's stratum: its class or rarest finding, from the rarest."""
    if labels.ndim == 1:
        _, classes, counts = np.unique(labels, return_inverse=True, return_counts=True)
        rarity: NDArray[np.int64] = counts.argsort(kind="stable").argsort()[classes]
        return rarity
    if labels.ndim != 2:
        raise ValueError(
            f"label_fractions: labels must be (N,) or (N, L), got {labels.shape}."
        )
    none = labels.sum(axis=1, keepdims=True) == 0
    having = np.concatenate([labels > 0, none], axis=1)
    rarest_first = having.sum(axis=0).argsort(kind="stable")
    stratum: NDArray[np.int64] = having[:, rarest_first].argmax(axis=1)
    return stratum
