"""What needs no encoder, and every encoder must beat."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Thumbnail(nn.Module):
    """Not an encoder: 8 x 8 (x 8) grey averages, which any encoder must beat."""

    def forward(self, images: Tensor) -> Tensor:
        volumes = images.ndim == 5
        pool = F.adaptive_avg_pool3d if volumes else F.adaptive_avg_pool2d
        return pool(images[:, :1], 8).flatten(start_dim=1)


class Histogram(nn.Module):
    """Not an encoder: 16 grey levels and how often they occur."""

    def forward(self, images: Tensor) -> Tensor:
        levels = (images[:, 0].flatten(start_dim=1) * 16).long().clamp(0, 15)
        return F.one_hot(levels, 16).float().mean(dim=1)


def position(images: Tensor) -> list[Tensor]:
    """Not an encoder: the position of a pixel, as bumps on a grid of 8 x 8 (x 8)."""
    dims = images.ndim - 2
    places = torch.arange(8**dims).reshape((8,) * dims)
    maps = F.one_hot(places).movedim(-1, 0).float()
    return [maps.expand(len(images), *maps.shape)]


# Baselines without an encoder, each evaluated by one protocol.
BASELINES = {"thumbnail": Thumbnail(), "histogram": Histogram(), "position": position}
BASELINE_PROTOCOLS = {"thumbnail": "linear", "histogram": "linear", "position": "dense"}
