"""Training steps of Lightly's methods, bare and with DiRA, as in examples/pytorch."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import methods
import torch
import torchvision
from torch import nn

from lightly_dira import DiRA, DiRAViews

FULL = nullcontext()  # no autocast

METHODS = {
    "MoCo": partial(methods.MoCo, width=128, queue=65536),
    "Barlow Twins": partial(methods.BarlowTwins, width=2048),
    "SimSiam": partial(methods.SimSiam, hidden=512, width=128),
}


def make_step(
    method: str = "MoCo", resnet: str = "resnet50", *, dira: bool, **options: object
) -> Callable[[DiRAViews], None]:
    """Returns one step of a plain loop, on the views of a batch."""
    torch.manual_seed(0)
    encoder = getattr(torchvision.models, resnet)()
    backbone = nn.Sequential(*list(encoder.children())[:-1])
    model = METHODS[method](backbone, encoder.fc.in_features)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.03, momentum=0.9, weight_decay=1e-4
    )
    join = DiRA(model.backbone, optimizer, **options) if dira else None

    def step(views: DiRAViews, precision: AbstractContextManager = FULL) -> None:
        with precision:
            loss = model.loss(*views)
            if join is not None:
                loss = join(loss, views)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    step.dira = join
    return step


def make_batch(batch_size: int = 8, size: int = 224) -> DiRAViews:
    generator = torch.Generator().manual_seed(0)
    views = torch.rand(2, batch_size, 1, size, size, generator=generator)
    target = torch.rand(batch_size, 1, size, size, generator=generator)
    return DiRAViews(
        [view.expand(-1, 3, -1, -1).contiguous() for view in views], target
    )
