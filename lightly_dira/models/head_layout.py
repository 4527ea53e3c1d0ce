"""How a decoder fits an encoder: what its maps become, and how many blocks follow."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch


def by_axis(
    strides: Sequence[int | Sequence[int]], spatial_dims: int
) -> list[tuple[int, ...]]:
    """Returns the strides of each map along each axis."""
    return [
        (stride,) * spatial_dims if isinstance(stride, int) else tuple(stride)
        for stride in strides
    ]


def doublings(
    strides: Sequence[tuple[int, ...]],
) -> tuple[list[tuple[int, ...]], tuple[float, ...]]:
    """How often each map but the coarsest is doubled, along each axis, to be a skip.

    Each skip must be finer than the one before, along one axis at least. If a map is
    already finer along some axis, its other axes may stay as they are. Otherwise, it is
    doubled along all axes.

    Returns:
        The numbers, finest map to coarsest, and the strides of the last skip.
    """
    counts = []
    *finer, coarsest = strides
    reached = tuple(map(float, coarsest))
    for stride in reversed(finer):
        halved = [math.log2(r / s) >= 0.5 for r, s in zip(reached, stride, strict=True)]
        reached = tuple(
            max(1.0, min(s, r / 2 if half or not any(halved) else r))
            for s, r, half in zip(stride, reached, halved, strict=True)
        )
        pairs = zip(stride, reached, strict=True)
        counts.append(tuple(round(math.log2(s / r)) for s, r in pairs))
    return counts[::-1], reached


def next_size(
    sides: Sequence[int], output_size: Sequence[int] | None, left: int
) -> torch.Size:
    """Returns the size of a block's output if no map determines it.

    Args:
        sides: Of its input.
        output_size: Of the image; by default every block doubles the size.
        left: Blocks that follow.
    """
    if output_size is None:
        return torch.Size(2 * side for side in sides)
    # Half of an odd side, rounded up, doubles to one position more.
    return torch.Size(
        max(side, min(2 * side, math.ceil(full / 2**left)))
        for side, full in zip(sides, output_size, strict=True)
    )
