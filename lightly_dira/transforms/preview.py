"""Pictures of transformed images and volumes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from lightly_dira.core.extras import extra
from lightly_dira.views import DiRAViews


def draw_preview(
    columns: Sequence[DiRAViews],
    shown: Callable[[Tensor], Tensor],
    clean: Callable[[Tensor], Tensor],
) -> Any:
    """Plots clean targets and views.

    Args:
        columns: An example for each column.
        shown: Turns a view into an image (C, H, W) with values in [0, 1].
        clean: The same for a target.

    Returns:
        A `matplotlib.figure.Figure`.
    """
    with extra("examples"):
        from matplotlib.figure import Figure

    n = len(columns)
    rows = ["clean target", *(f"view {i}" for i in range(len(columns[0])))]
    pictures = [[clean(v.target), *map(shown, v)] for v in columns]
    height, width = pictures[0][0].shape[1:]
    figure = Figure(
        figsize=(1.3 * n * width / height, 1.3 * len(rows)), layout="constrained"
    )
    grid = figure.subplots(len(rows), n, squeeze=False)
    for axes, column in zip(grid.T, pictures, strict=True):
        for axis, picture in zip(axes, column, strict=True):
            colours = picture.clamp(0, 1)[:3] if len(picture) > 2 else picture[:1]
            axis.imshow(colours.movedim(0, -1).numpy(), cmap="gray", vmin=0, vmax=1)
            axis.set(xticks=[], yticks=[])
    for axis, row in zip(grid[:, 0], rows, strict=True):
        axis.set_ylabel(row)
    return figure


def orthogonal_slices(volumes: Tensor) -> Tensor:
    """Returns the three middle slices of volumes side by side, as images.

    Args:
        volumes: (B, C, D, H, W).

    Returns:
        (B, C, max(D, H), 2 W + H): across D, across H and across W, on black.
    """
    *_, d, h, w = volumes.shape
    slices: Sequence[Tensor] = (
        volumes[:, :, d // 2],
        volumes[:, :, :, h // 2],
        volumes[:, :, :, :, w // 2],
    )
    canvas = volumes.new_zeros((*volumes.shape[:2], max(d, h), 2 * w + h))
    left = 0
    for part in slices:
        rows, columns = part.shape[2:]
        top = (canvas.shape[2] - rows) // 2
        canvas[:, :, top : top + rows, left : left + columns] = part
        left += columns
    return canvas
