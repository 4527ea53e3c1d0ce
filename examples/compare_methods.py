"""Lightly's methods, each as a module with an encoder and a loss of two views.

They follow the examples in Lightly's documentation (https://docs.lightly.ai).
"""

from __future__ import annotations

import copy

import torch
from lightly.loss import BarlowTwinsLoss, NegativeCosineSimilarity, NTXentLoss
from lightly.models.modules import (
    BarlowTwinsProjectionHead,
    BYOLPredictionHead,
    BYOLProjectionHead,
    MoCoProjectionHead,
    SimSiamPredictionHead,
    SimSiamProjectionHead,
)
from lightly.models.utils import deactivate_requires_grad, update_momentum
from torch import Tensor, nn


class MoCo(nn.Module):
    """Momentum contrast; a longer queue and a higher momentum suit longer runs."""

    def __init__(
        self,
        backbone: nn.Module,
        features: int,
        *,
        queue: int = 4096,
        momentum: float = 0.99,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.projection_head = MoCoProjectionHead(features, features, 128)
        self.backbone_momentum = copy.deepcopy(self.backbone)
        self.projection_head_momentum = copy.deepcopy(self.projection_head)
        deactivate_requires_grad(self.backbone_momentum)
        deactivate_requires_grad(self.projection_head_momentum)
        self.momentum = momentum
        self.criterion = NTXentLoss(temperature=0.2, memory_bank_size=(queue, 128))

    def forward(self, x0: Tensor, x1: Tensor) -> Tensor:
        update_momentum(self.backbone, self.backbone_momentum, self.momentum)
        update_momentum(
            self.projection_head, self.projection_head_momentum, self.momentum
        )
        query = self.projection_head(self.backbone(x0).flatten(start_dim=1))
        with torch.no_grad():
            key = self.backbone_momentum(x1).flatten(start_dim=1)
            key = self.projection_head_momentum(key)
        return self.criterion(query, key)


class BarlowTwins(nn.Module):
    def __init__(
        self, backbone: nn.Module, features: int, *, width: int = 1024
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.projection_head = BarlowTwinsProjectionHead(features, width, width)
        self.criterion = BarlowTwinsLoss()

    def forward(self, x0: Tensor, x1: Tensor) -> Tensor:
        z0, z1 = (
            self.projection_head(self.backbone(x).flatten(start_dim=1))
            for x in (x0, x1)
        )
        return self.criterion(z0, z1)


class MeanBarlowTwins(BarlowTwins):
    """Averages the loss over dimensions: the sum is far larger than other losses."""

    def forward(self, x0: Tensor, x1: Tensor) -> Tensor:
        return super().forward(x0, x1) / self.projection_head.layers[-1].out_features


class SimSiam(nn.Module):
    def __init__(self, backbone: nn.Module, features: int, *, width: int = 512) -> None:
        super().__init__()
        self.backbone = backbone
        self.projection_head = SimSiamProjectionHead(features, width, width)
        self.prediction_head = SimSiamPredictionHead(width, width // 4, width)
        self.criterion = NegativeCosineSimilarity()

    def forward(self, x0: Tensor, x1: Tensor) -> Tensor:
        z0, z1 = (
            self.projection_head(self.backbone(x).flatten(start_dim=1))
            for x in (x0, x1)
        )
        p0, p1 = self.prediction_head(z0), self.prediction_head(z1)
        return 0.5 * (self.criterion(z0.detach(), p1) + self.criterion(z1.detach(), p0))


class BYOL(nn.Module):
    def __init__(
        self, backbone: nn.Module, features: int, *, momentum: float = 0.99
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.projection_head = BYOLProjectionHead(features, 512, 128)
        self.prediction_head = BYOLPredictionHead(128, 512, 128)
        self.backbone_momentum = copy.deepcopy(self.backbone)
        self.projection_head_momentum = copy.deepcopy(self.projection_head)
        deactivate_requires_grad(self.backbone_momentum)
        deactivate_requires_grad(self.projection_head_momentum)
        self.momentum = momentum
        self.criterion = NegativeCosineSimilarity()

    def forward(self, x0: Tensor, x1: Tensor) -> Tensor:
        update_momentum(self.backbone, self.backbone_momentum, self.momentum)
        update_momentum(
            self.projection_head, self.projection_head_momentum, self.momentum
        )
        p0, p1 = (
            self.prediction_head(
                self.projection_head(self.backbone(x).flatten(start_dim=1))
            )
            for x in (x0, x1)
        )
        with torch.no_grad():
            z0, z1 = (
                self.projection_head_momentum(
                    self.backbone_momentum(x).flatten(start_dim=1)
                )
                for x in (x0, x1)
            )
        return 0.5 * (self.criterion(p0, z1) + self.criterion(p1, z0))


METHODS = {
    method.__name__: method
    for method in (MoCo, BarlowTwins, MeanBarlowTwins, SimSiam, BYOL)
}
