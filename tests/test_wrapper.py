"""What both wrappers do with a loss."""

from __future__ import annotations

import pytest
import torch
from loops import make_views
from methods import SimSiam, tiny_backbone

from lightly_dira import DiRA, DiRALoss


@pytest.mark.parametrize("start", [0, 1])
def test_losses_of_one_element(start: int) -> None:
    """Found: SwAV's and VICRegL's, of shape (1,), were refused."""
    model = SimSiam(tiny_backbone(), 16)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    dira = DiRA(model.backbone, optimizer, restorative_start=start)
    views = make_views()
    loss = model.loss(*views).reshape(1)
    total = dira(loss, views)
    assert all(term.ndim == 0 for term in dira.components)
    assert total is loss if start else total.ndim == 0
    total.backward()


@pytest.mark.parametrize("balanced", [False, True])
def test_compiled_with_an_adversary(balanced: bool) -> None:
    """Found: with batches of several sizes, buffers were freed too early."""
    torch._dynamo.reset()
    backbone = tiny_backbone()
    optimizer = torch.optim.SGD(backbone.parameters(), lr=0.1)
    dira = DiRA(backbone, optimizer, loss=DiRALoss(balanced=balanced))
    compiled = torch.compile(dira, backend="aot_eager")
    for batch in (4, 3, 2):
        views = make_views(batch)
        compiled(backbone(views[0]).mean(), views).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert (dira.steps, dira.stage) == (3, "dira")
