"""Pictures of transformed images and volumes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torchvision.utils import make_grid

from lightly_dira.core.extras import extra
from lightly_dira.views import DiRAViews


class Pictures(Protocol):
    """Turns views and targets into images (C, H, W) with values in [0, 1]."""

    def picture(self, pixels: Tensor) -> Tensor:
        """Returns a target as an image."""

    def picture_of_view(self, view: Tensor) -> Tensor:
        """Returns a view as an image."""


def draw_preview(columns: Sequence[DiRAViews], pictures: Pictures) -> Any:
    """Plots clean targets and views.

    Args:
        columns: An example for each column.
        pictures: Makes images of views and of targets.

    Returns:
        A `matplotlib.figure.Figure`.
    """
    with extra("examples"):
        from matplotlib.figure import Figure

    n = len(columns)
    rows = ["clean target", *(f"view {i}" for i in range(len(columns[0])))]
    made = _pictures(columns, pictures)
    height, width = made[0][0].shape[1:]
    figure = Figure(
        figsize=(1.3 * n * width / height, 1.3 * len(rows)), layout="constrained"
    )
    grid = figure.subplots(len(rows), n, squeeze=False)
    for axes, column in zip(grid.T, made, strict=True):
        for axis, picture in zip(axes, column, strict=True):
            axis.imshow(picture.movedim(0, -1).numpy(), cmap="gray", vmin=0, vmax=1)
            axis.set(xticks=[], yticks=[])
    for axis, row in zip(grid[:, 0], rows, strict=True):
        axis.set_ylabel(row)
    return figure


def contact_sheet(columns: Sequence[DiRAViews], pictures: Pictures) -> Tensor:
    """Joins clean targets and views in one image (3, H, W); see `draw_preview`.

    Views of other sizes than the first one, such as small crops, are left out.
    """
    made = _pictures(columns, pictures)
    size = made[0][0].shape[1:]
    rows = [
        [picture.expand(3, -1, -1) for picture in row]
        for row in zip(*made, strict=True)
        if row[0].shape[1:] == size
    ]
    sheet: Tensor = make_grid(
        torch.stack([picture for row in rows for picture in row]), nrow=len(columns)
    )
    return sheet


def _pictures(columns: Sequence[DiRAViews], pictures: Pictures) -> list[list[Tensor]]:
    """Returns for each column its target and its views, grey or in three colours."""
    return [
        [
            picture.clamp(0, 1)[:3] if len(picture) > 2 else picture.clamp(0, 1)[:1]
            for picture in (
                pictures.picture(views.target),
                *map(pictures.picture_of_view, views),
            )
        ]
        for views in columns
    ]


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
