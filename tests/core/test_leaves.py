"""The parameters that a value was computed from."""

from __future__ import annotations

import torch
from torch import nn

from lightly_dira.core.leaves import leaves_of


def test_leaves() -> None:
    first, second, third = (nn.Parameter(torch.ones(2)) for _ in range(3))
    value = (first * second.detach() + third).sum() + torch.ones(2, requires_grad=True)
    assert set(map(id, leaves_of(value))) == {id(first), id(third)}
    assert leaves_of(torch.zeros(())) == []
