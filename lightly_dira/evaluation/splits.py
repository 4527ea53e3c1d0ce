"""Drawing train, validation and test splits, by patient."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def draw_splits(
    groups: NDArray[Any], seed: int, *, val: float = 0.1, test: float = 0.2
) -> NDArray[Any]:
    """Draws a split for each group."""
    names, group_of = np.unique(groups, return_inverse=True)
    order = np.random.default_rng(seed).permutation(len(names))
    drawn = np.full(len(names), "train", dtype=object)
    held_out = round((val + test) * len(names))
    drawn[order[:held_out]] = "val"
    drawn[order[: round(test * len(names))]] = "test"
    return drawn[group_of]
