"""A plot of transformed images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from lightly_dira.transforms.dira_views import DiRAViews


def draw_preview(
    columns: Sequence[DiRAViews], shown: Callable[[Tensor], Tensor]
) -> Any:
    """Plots clean targets and views.

    Args:
        columns: An example for each column.
        shown: Turns a view into an image (C, H, W) with values in [0, 1].

    Returns:
        A `matplotlib.figure.Figure`.
    """
    from matplotlib.figure import Figure

    n = len(columns)
    rows = ["clean target", *(f"view {i}" for i in range(len(columns[0])))]
    pictures = [[shown(p) for p in (v.target, *v)] for v in columns]
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
