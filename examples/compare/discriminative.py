"""Methods to compare: Lightly's, each a module with an encoder and a loss of two views.

After the examples in Lightly's documentation (https://docs.lightly.ai).
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


class Method(nn.Module):
    """An encoder with a projection head."""

    def __init__(self, backbone: nn.Module, projection_head: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.projection_head = projection_head

    def project(self, x: Tensor) -> Tensor:
        return self.projection_head(self.backbone(x).flatten(start_dim=1))


class MomentumMethod(Method):
    """The same, with a twin of both that follows them slowly."""

    def __init__(
        self, backbone: nn.Module, projection_head: nn.Module, momentum: float
    ) -> None:
        super().__init__(backbone, projection_head)
        self.backbone_momentum = copy.deepcopy(backbone)
        self.projection_head_momentum = copy.deepcopy(projection_head)
        deactivate_requires_grad(self.backbone_momentum)
        deactivate_requires_grad(self.projection_head_momentum)
        self.momentum = momentum

    def update_momentum(self) -> None:
        update_momentum(self.backbone, self.backbone_momentum, self.momentum)
        update_momentum(
            self.projection_head, self.projection_head_momentum, self.momentum
        )

    @torch.no_grad()
    def project_momentum(self, x: Tensor) -> Tensor:
        y = self.backbone_momentum(x).flatten(start_dim=1)
        return self.projection_head_momentum(y)


class MoCo(MomentumMethod):
    """Momentum contrast; a longer queue and momentum suit longer runs."""

    def __init__(
        self,
        backbone: nn.Module,
        features: int,
        *,
        queue: int = 4096,
        momentum: float = 0.99,
    ) -> None:
        super().__init__(
            backbone, MoCoProjectionHead(features, features, 128), momentum
        )
        self.criterion = NTXentLoss(temperature=0.2, memory_bank_size=(queue, 128))

    def forward(self, x0: Tensor, x1: Tensor) -> Tensor:
        self.update_momentum()
        return self.criterion(self.project(x0), self.project_momentum(x1))


class BarlowTwins(Method):
    def __init__(
        self, backbone: nn.Module, features: int, *, width: int = 1024
    ) -> None:
        super().__init__(backbone, BarlowTwinsProjectionHead(features, width, width))
        self.criterion = BarlowTwinsLoss()

    def forward(self, x0: Tensor, x1: Tensor) -> Tensor:
        return self.criterion(self.project(x0), self.project(x1))


class MeanBarlowTwins(BarlowTwins):
    """With its loss, a sum over dimensions, as a mean: of the size of the others."""

    def forward(self, x0: Tensor, x1: Tensor) -> Tensor:
        return super().forward(x0, x1) / self.projection_head.layers[-1].out_features


class SimSiam(Method):
    def __init__(self, backbone: nn.Module, features: int, *, width: int = 512) -> None:
        super().__init__(backbone, SimSiamProjectionHead(features, width, width))
        self.prediction_head = SimSiamPredictionHead(width, width // 4, width)
        self.criterion = NegativeCosineSimilarity()

    def forward(self, x0: Tensor, x1: Tensor) -> Tensor:
        z0, z1 = self.project(x0), self.project(x1)
        p0, p1 = self.prediction_head(z0), self.prediction_head(z1)
        return 0.5 * (self.criterion(z0.detach(), p1) + self.criterion(z1.detach(), p0))


class BYOL(MomentumMethod):
    def __init__(
        self, backbone: nn.Module, features: int, *, momentum: float = 0.99
    ) -> None:
        super().__init__(backbone, BYOLProjectionHead(features, 512, 128), momentum)
        self.prediction_head = BYOLPredictionHead(128, 512, 128)
        self.criterion = NegativeCosineSimilarity()

    def forward(self, x0: Tensor, x1: Tensor) -> Tensor:
        self.update_momentum()
        p0, p1 = (self.prediction_head(self.project(x)) for x in (x0, x1))
        z0, z1 = self.project_momentum(x0), self.project_momentum(x1)
        return 0.5 * (self.criterion(p0, z1) + self.criterion(p1, z0))


METHODS = {
    method.__name__: method
    for method in (MoCo, BarlowTwins, MeanBarlowTwins, SimSiam, BYOL)
}
