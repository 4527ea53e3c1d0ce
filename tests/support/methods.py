"""Lightly's own training loops, cut down, for the tests to make DiRA of."""

from __future__ import annotations

import copy

import torch
from lightly.loss import BarlowTwinsLoss, NegativeCosineSimilarity, NTXentLoss
from lightly.models.modules import (
    BarlowTwinsProjectionHead,
    MoCoProjectionHead,
    SimSiamPredictionHead,
    SimSiamProjectionHead,
)
from lightly.models.utils import deactivate_requires_grad, update_momentum
from torch import Tensor, nn

from lightly_dira import PatchDiscriminator


def tiny_backbone(
    width: int = 4, in_channels: int = 3, spatial_dims: int = 2
) -> nn.Sequential:
    """Feature maps at strides 2, 4 and 8, then a global pooling."""
    convolution, norm, pool = {
        2: (nn.Conv2d, nn.BatchNorm2d, nn.AdaptiveAvgPool2d),
        3: (nn.Conv3d, nn.BatchNorm3d, nn.AdaptiveAvgPool3d),
    }[spatial_dims]

    def stage(inputs: int, outputs: int) -> nn.Sequential:
        return nn.Sequential(
            convolution(inputs, outputs, 3, 2, 1), norm(outputs), nn.ReLU()
        )

    return nn.Sequential(
        stage(in_channels, width),
        stage(width, 2 * width),
        stage(2 * width, 4 * width),
        pool(1),
        nn.Flatten(),
    )


def tiny_critic(spatial_dims: int = 2) -> PatchDiscriminator:
    """Of few weights, as runs that are saved at every step would fill a disk."""
    return PatchDiscriminator(
        spatial_dims=spatial_dims, channels=(8, 16, 32), strides=(2, 2, 2)
    )


class MoCo(nn.Module):
    def __init__(
        self, backbone: nn.Module, features: int, *, width: int = 8, queue: int = 64
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.projection_head = MoCoProjectionHead(features, features, width)
        self.backbone_momentum = copy.deepcopy(self.backbone)
        self.projection_head_momentum = copy.deepcopy(self.projection_head)
        deactivate_requires_grad(self.backbone_momentum)
        deactivate_requires_grad(self.projection_head_momentum)
        self.criterion = NTXentLoss(temperature=0.2, memory_bank_size=(queue, width))

    def loss(self, x0: Tensor, x1: Tensor) -> Tensor:
        update_momentum(self.backbone, self.backbone_momentum, m=0.99)
        update_momentum(self.projection_head, self.projection_head_momentum, m=0.99)
        query = self.projection_head(self.backbone(x0).flatten(1))
        with torch.no_grad():
            key = self.projection_head_momentum(self.backbone_momentum(x1).flatten(1))
        return self.criterion(query, key)


class BarlowTwins(nn.Module):
    def __init__(self, backbone: nn.Module, features: int, *, width: int = 8) -> None:
        super().__init__()
        self.backbone = backbone
        self.projection_head = BarlowTwinsProjectionHead(features, features, width)
        self.criterion = BarlowTwinsLoss()

    def loss(self, x0: Tensor, x1: Tensor) -> Tensor:
        z0, z1 = (self.projection_head(self.backbone(x).flatten(1)) for x in (x0, x1))
        return self.criterion(z0, z1)


class SimSiam(nn.Module):
    def __init__(
        self, backbone: nn.Module, features: int, *, hidden: int = 8, width: int = 8
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.projection_head = SimSiamProjectionHead(features, hidden, width)
        self.prediction_head = SimSiamPredictionHead(width, width // 2, width)
        self.criterion = NegativeCosineSimilarity()

    def loss(self, x0: Tensor, x1: Tensor) -> Tensor:
        z0, z1 = (self.projection_head(self.backbone(x).flatten(1)) for x in (x0, x1))
        p0, p1 = self.prediction_head(z0), self.prediction_head(z1)
        return 0.5 * (self.criterion(z0.detach(), p1) + self.criterion(z1.detach(), p0))


METHODS = [MoCo, BarlowTwins, SimSiam]
