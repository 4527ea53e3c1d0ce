"""Encoders and heads whose weights are none that they start with, also in a folder."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models import resnet18

from lightly_dira import DiRA, DiRALoss, DiRAViews, RestorationHead
from lightly_dira.features.pyramid import FeaturePyramid
from lightly_dira.weights import save_pretrained


def trained(model: nn.Module) -> nn.Module:
    """Moves every weight and statistic away from where it starts."""
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(0.5, 1.5) if tensor.ndim == 1 else tensor.mul_(1.1)
    return model


def u_net(backbone: nn.Module) -> tuple[nn.Module, RestorationHead]:
    head = DiRA(backbone).head
    return trained(backbone).eval(), trained(head).eval()


@torch.no_grad()
def restore(backbone: nn.Module, head: RestorationHead, images: Tensor) -> Tensor:
    return head(FeaturePyramid(backbone)(images), images.shape[2:])


def save(folder: Path, **options: object) -> DiRA:
    backbone = resnet18()
    optimizer = torch.optim.SGD(backbone.parameters(), lr=0.1)
    loss = DiRALoss(restorative_weight=100.0)
    dira = DiRA(backbone, optimizer, loss=loss, adversarial_start=None)
    views = DiRAViews(torch.rand(2, 2, 3, 64, 64), torch.rand(2, 1, 64, 64))
    x0, x1 = views
    dira((backbone(x0) - backbone(x1)).square().mean(), views).backward()
    optimizer.step()
    save_pretrained(folder, backbone, dira, **options)
    return dira
