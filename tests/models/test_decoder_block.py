"""The two ways of a block: one result, chosen by the number of positions."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lightly_dira.models import decoder_block
from lightly_dira.models.decoder_block import DecoderBlock


def plain(block: DecoderBlock, x: Tensor, skip: Tensor | None, size) -> Tensor:
    x = F.interpolate(x, size=size, mode="nearest")
    return block.conv2(block.conv1(x if skip is None else torch.cat([x, skip], dim=1)))


@pytest.mark.parametrize("skip_channels", [0, 3])
@pytest.mark.parametrize("factors", [(2, 2), (1, 2), (2, 2, 2), (2, 1, 2), (1, 2, 1)])
def test_the_same_to_the_last_digits(factors, skip_channels: int, monkeypatch) -> None:
    """In float64, in value and in every gradient."""
    monkeypatch.setattr(decoder_block, "_FEW", {2: 0, 3: 0})
    torch.manual_seed(0)
    dims = len(factors)
    block = DecoderBlock(5, skip_channels, 4, dims).double()
    sides = (3, 4, 5)[:dims]
    size = tuple(side * factor for side, factor in zip(sides, factors, strict=True))
    x = torch.rand(2, 5, *sides, dtype=torch.float64, requires_grad=True)
    skip = None
    if skip_channels:
        skip = torch.rand(2, 3, *size, dtype=torch.float64, requires_grad=True)
    inputs = [*block.parameters(), x, *([] if skip is None else [skip])]
    results = []
    for run in (block, lambda *args: plain(block, *args)):
        out = run(x, skip, size)
        gradients = torch.autograd.grad((out * out.detach().cos()).sum(), inputs)
        results.append([out.detach(), *gradients])
    for fast, expected in zip(*results, strict=True):
        torch.testing.assert_close(fast, expected, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("dims", [2, 3])
def test_few_positions_take_the_plain_way(dims: int, monkeypatch) -> None:
    """The number is of the whole batch."""
    taken = []
    enlarge = decoder_block.convolve_enlarged
    monkeypatch.setattr(
        decoder_block,
        "convolve_enlarged",
        lambda *args: taken.append(len(args[0])) or enlarge(*args),
    )
    block = DecoderBlock(2, 0, 2, dims)
    for batch in (1, 60):
        x = torch.rand(batch, 2, *(2,) * dims)
        block(x, None, (4,) * dims)
        assert (batch * math.prod(x.shape[2:]) >= 200) == (batch == 60)
    assert taken == [60]
