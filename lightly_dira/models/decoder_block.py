"""A block of the decoder: enlarge, join the skip, convolve twice."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Layers(NamedTuple):
    """What differs between images and volumes."""

    convolution: Any
    transposed: Any
    batch_norm: Any
    convolve: Callable[..., Tensor]
    convolve_transposed: Callable[..., Tensor]
    channels_last: torch.memory_format


LAYERS = {
    2: Layers(
        nn.Conv2d,
        nn.ConvTranspose2d,
        nn.BatchNorm2d,
        F.conv2d,
        F.conv_transpose2d,
        torch.channels_last,
    ),
    3: Layers(
        nn.Conv3d,
        nn.ConvTranspose3d,
        nn.BatchNorm3d,
        F.conv3d,
        F.conv_transpose3d,
        torch.channels_last_3d,
    ),
}


class DecoderBlock(nn.Module):
    """Enlarges a map, joins the skip, then twice convolves, normalises and rectifies.

    Args:
        in_channels: Channels of the map to be enlarged.
        skip_channels: Channels of the encoder's map, 0 without one.
        out_channels: Channels of the output.
        spatial_dims: 2 for images, 3 for volumes.
    """

    def __init__(
        self,
        in_channels: int,
        skip_channels: int,
        out_channels: int,
        spatial_dims: int = 2,
    ) -> None:
        """Creates the two convolutions with their norms."""
        super().__init__()
        self.skip_channels = skip_channels
        self.conv1: Any = nn.Sequential(
            *convolution(in_channels + skip_channels, out_channels, spatial_dims)
        )
        self.conv2 = nn.Sequential(
            *convolution(out_channels, out_channels, spatial_dims)
        )
        self.register_buffer("spread", _SPREAD.clone(), persistent=False)
        self.spread: Tensor

    def forward(self, x: Tensor, skip: Tensor | None, size: Sequence[int]) -> Tensor:
        """Returns (B, out_channels, *size).

        Args:
            x: The map to be enlarged, (B, in_channels, ...).
            skip: The encoder's map of this size, or None.
            size: Sides of the output.
        """
        factors = [full / side for full, side in zip(size, x.shape[2:], strict=True)]
        # Both ways give the same up to rounding. Without gradients the plain one
        # reproduces other libraries' decoders to the last digit.
        doubles = set(factors) <= {1, 2} and 2 in factors
        few = len(x) * math.prod(x.shape[2:]) < _FEW[len(size)]
        if torch.is_grad_enabled() and doubles and not few:
            convolve, *rest = self.conv1
            weight, of_skip = convolve.weight.split([x.shape[1], self.skip_channels], 1)
            if skip is None and x.device.type == "cpu":
                # With few channels and many pixels, channels last is twice as fast.
                x = x.contiguous(memory_format=LAYERS[len(size)].channels_last)
            joined = convolve_enlarged(x, weight, self.spread, factors)
            if skip is not None:
                joined += LAYERS[len(size)].convolve(skip, of_skip, padding=1)
            for layer in rest:
                joined = layer(joined)
        else:
            x = resize(x, size)
            joined = self.conv1(x if skip is None else torch.cat([x, skip], dim=1))
        restored: Tensor = self.conv2(joined)
        return restored


# Positions of a map, over the batch, below which building the kernel costs more than
# its fewer products save (measured on a CPU, float32 and bfloat16).
_FEW = {2: 200, 3: 64}
# After doubling, each position has an equal neighbour: along the axis, every weight of
# a convolution of width 3 occurs twice in the kernel of the transposed convolution.
_SPREAD = torch.tensor([[0.0, 0, 1], [0, 1, 1], [1, 1, 0], [1, 0, 0]])


def convolve_enlarged(
    x: Tensor, weight: Tensor, spread: Tensor, factors: Sequence[float]
) -> Tensor:
    """Enlarges x (nearest neighbour) and convolves it, in one step of fewer products.

    That step is a transposed convolution of x. Along a doubled axis, it has width 4 and
    stride 2, and takes 2 products for each output where the plain way takes 3.

    Args:
        x: (B, C, ...).
        weight: Weight of a convolution of width 3, (C', C, 3, ...).
        spread: (4, 3), the places of each weight in the kernel of a doubled axis.
        factors: Enlargement of each axis, 1 or 2.
    """
    turned = spread.new_tensor([[0.0, 0, 1], [0, 1, 0], [1, 0, 0]])
    of_axes = [spread if factor == 2 else turned for factor in factors]
    # One product for all axes: per axis, they would be many tiny ones.
    places = functools.reduce(torch.kron, of_axes).to(weight.dtype)
    sides = [len(of_axis) for of_axis in of_axes]
    weight = weight.transpose(0, 1)
    weight = (weight.flatten(2) @ places.T).reshape(*weight.shape[:2], *sides)
    stride = [int(factor) for factor in factors]
    convolve = LAYERS[len(stride)].convolve_transposed
    return convolve(x, weight, stride=stride, padding=1)


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """Brings a map to these sides, by nearest neighbours."""
    size = torch.Size(size)
    return x if x.shape[2:] == size else F.interpolate(x, size=size, mode="nearest")


def convolution(
    in_channels: int, out_channels: int, spatial_dims: int
) -> list[nn.Module]:
    """Returns a convolution of width 3, BatchNorm and ReLU."""
    layers = LAYERS[spatial_dims]
    return [
        layers.convolution(in_channels, out_channels, 3, padding=1, bias=False),
        layers.batch_norm(out_channels),
        nn.ReLU(inplace=True),
    ]


def enlargement(
    in_channels: int, out_channels: int, doublings: Sequence[int]
) -> nn.Module:
    """Doubles the sides of a map as often as given, by kernels that do not overlap.

    Args:
        in_channels: Channels of the map.
        out_channels: Channels of the enlarged map.
        doublings: How often to double each side; if all are 0, the map stays as it
            is.
    """
    if not any(doublings):
        return nn.Identity()
    layers = LAYERS[len(doublings)]
    steps: list[nn.Module] = []
    for step in range(max(doublings)):
        width = tuple(2 if step < times else 1 for times in doublings)
        double = layers.transposed(
            in_channels, out_channels, width, stride=width, bias=False
        )
        steps += [double, layers.batch_norm(out_channels), nn.ReLU(inplace=True)]
        in_channels = out_channels
    return nn.Sequential(*steps)


def checkpoint_contexts(block: nn.Module) -> tuple[AbstractContextManager[None], Any]:
    """Returns contexts for the first and for further runs of a checkpointed block."""
    return nullcontext(), _StatisticsKept(block)


class _StatisticsKept:
    """Keeps running statistics unchanged: the first run has updated them already.

    Several backward passes through a block enter it one after the other.
    """

    def __init__(self, block: nn.Module) -> None:
        kinds = tuple(layers.batch_norm for layers in LAYERS.values())
        self.norms: list[Any] = [m for m in block.modules() if isinstance(m, kinds)]

    def __enter__(self) -> None:
        self.before = [(n.momentum, n.num_batches_tracked) for n in self.norms]
        for norm in self.norms:
            norm.momentum, norm.num_batches_tracked = 0.0, None

    def __exit__(self, *error: object) -> None:
        for norm, (momentum, count) in zip(self.norms, self.before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count
