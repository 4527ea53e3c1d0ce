"""The recipe that the README shows, as the studies run it."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.optim import Optimizer

from lightly_dira import DiRA, DiRALoss
from lightly_dira.features import FeaturePyramid
from lightly_dira.models import light_head

# Part of the encoder's cost that its head may have; parts of views with curves.
HEAD_COST, CURVED = 0.25, 0.5


def recipe(backbone: nn.Module, optimizer: Optimizer, **options: Any) -> DiRA:
    """Restores by a light head, with a larger weight and without an adversary."""
    features = FeaturePyramid(backbone)
    head = light_head(features, cost=HEAD_COST)
    return DiRA(
        backbone,
        optimizer,
        features=features,
        head=head.to(next(backbone.parameters()).device),
        loss=DiRALoss(restorative_weight=100.0),
        adversarial_start=None,
        **options,
    )
