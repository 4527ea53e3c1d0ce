"""Training steps of Lightly's methods, bare and with DiRA, as in examples/pytorch."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
import torchvision
from lightly.loss import BarlowTwinsLoss, NegativeCosineSimilarity, NTXentLoss
from lightly.models.modules import (
    BarlowTwinsProjectionHead,
    MoCoProjectionHead,
    SimSiamPredictionHead,
    SimSiamProjectionHead,
)
from lightly.models.utils import deactivate_requires_grad, update_momentum
from torch import Tensor, nn

from lightly_dira import DiRA, DiRAViews


class MoCo(nn.Module):
    def __init__(self, resnet: nn.Module) -> None:
        super().__init__()
        self.backbone = nn.Sequential(*list(resnet.children())[:-1])
        width = resnet.fc.in_features
        self.projection_head = MoCoProjectionHead(width, width, 128)
        self.backbone_momentum = copy.deepcopy(self.backbone)
        self.projection_head_momentum = copy.deepcopy(self.projection_head)
        deactivate_requires_grad(self.backbone_momentum)
        deactivate_requires_grad(self.projection_head_momentum)
        self.criterion = NTXentLoss(temperature=0.2, memory_bank_size=(65536, 128))

    def loss(self, x_query: Tensor, x_key: Tensor) -> Tensor:
        update_momentum(self.backbone, self.backbone_momentum, m=0.999)
        update_momentum(self.projection_head, self.projection_head_momentum, m=0.999)
        query = self.projection_head(self.backbone(x_query).flatten(start_dim=1))
        with torch.no_grad():
            key = self.backbone_momentum(x_key).flatten(start_dim=1)
            key = self.projection_head_momentum(key)
        return self.criterion(query, key)


class BarlowTwins(nn.Module):
    def __init__(self, resnet: nn.Module) -> None:
        super().__init__()
        self.backbone = nn.Sequential(*list(resnet.children())[:-1])
        width = resnet.fc.in_features
        self.projection_head = BarlowTwinsProjectionHead(width, 2048, 2048)
        self.criterion = BarlowTwinsLoss()

    def loss(self, x0: Tensor, x1: Tensor) -> Tensor:
        z0, z1 = (
            self.projection_head(self.backbone(x).flatten(start_dim=1))
            for x in (x0, x1)
        )
        return self.criterion(z0, z1)


class SimSiam(nn.Module):
    def __init__(self, resnet: nn.Module) -> None:
        super().__init__()
        self.backbone = nn.Sequential(*list(resnet.children())[:-1])
        width = resnet.fc.in_features
        self.projection_head = SimSiamProjectionHead(width, 512, 128)
        self.prediction_head = SimSiamPredictionHead(128, 64, 128)
        self.criterion = NegativeCosineSimilarity()

    def loss(self, x0: Tensor, x1: Tensor) -> Tensor:
        z0, z1 = (
            self.projection_head(self.backbone(x).flatten(start_dim=1))
            for x in (x0, x1)
        )
        p0, p1 = self.prediction_head(z0), self.prediction_head(z1)
        return 0.5 * (self.criterion(z0.detach(), p1) + self.criterion(z1.detach(), p0))


METHODS = {"MoCo": MoCo, "Barlow Twins": BarlowTwins, "SimSiam": SimSiam}


def make_step(
    method: str = "MoCo", resnet: str = "resnet50", *, dira: bool, **options: object
) -> Callable[[DiRAViews], None]:
    """Returns one step of a plain loop, on the views of a batch."""
    torch.manual_seed(0)
    model = METHODS[method](getattr(torchvision.models, resnet)())
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.03, momentum=0.9, weight_decay=1e-4
    )
    join = DiRA(model.backbone, optimizer, **options) if dira else None

    def step(views: DiRAViews) -> None:
        loss = model.loss(*views)
        if join is not None:
            loss = join(loss, views)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def make_batch(batch_size: int = 8, size: int = 224) -> DiRAViews:
    generator = torch.Generator().manual_seed(0)
    views = torch.rand(2, batch_size, 1, size, size, generator=generator)
    target = torch.rand(batch_size, 1, size, size, generator=generator)
    return DiRAViews(
        [view.expand(-1, 3, -1, -1).contiguous() for view in views], target
    )
