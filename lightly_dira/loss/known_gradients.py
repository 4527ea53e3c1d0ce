"""Values whose gradients are computed before the backward pass needs them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def mean_with_gradients(
    penalties: Tensor,
    leaves: Sequence[Tensor],
    sources: Sequence[Tensor],
    retain_graph: bool = False,
) -> Tensor:
    """Returns the mean penalty; `sources` receive its gradients by `leaves`."""
    mean = penalties.detach().mean()
    if not penalties.requires_grad:
        return mean
    # In half precision the gradients of a mean vanish and those of a sum overflow. Use
    # `backward`, as PyTorch's counters and hooks of modules ignore `autograd.grad`.
    images = penalties.shape[0] if penalties.ndim else 1
    scale = images / penalties.numel()
    whole = penalties.sum() / images
    inputs = [leaf for leaf in leaves if leaf.requires_grad]
    if inputs:
        whole.backward(inputs=inputs, retain_graph=retain_graph)  # type: ignore[no-untyped-call]
    used, slopes = [], []
    for leaf, source in zip(leaves, sources, strict=True):
        if leaf.grad is not None:
            used.append(source)
            slopes.append(leaf.grad.mul_(scale))
            leaf.grad = None
    known: Tensor = _Known.apply(mean, slopes, *used)
    return known


class _Known(torch.autograd.Function):
    """A value whose gradients have been taken already."""

    @staticmethod
    def forward(
        ctx: Any, value: Tensor, slopes: list[Tensor], *sources: Tensor
    ) -> Tensor:
        ctx.save_for_backward(*slopes)
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *(grad * slope for slope in ctx.saved_tensors)
