"""What an optimiser holds: the head joins it, the discriminator leaves it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.nn import Parameter
from torch.optim import Optimizer


def held_by(optimizer: Optimizer) -> set[int]:
    """Returns the ids of the parameters that an optimiser holds."""
    return {id(p) for group in optimizer.param_groups for p in group["params"]}


def add_parameters(
    optimizer: Optimizer, module: nn.Module, *, beside: Iterable[Parameter]
) -> None:
    """Adds a module's parameters to the groups that hold others already.

    No group is added, so schedulers made before go on to fit. Weights go to the group
    that holds most weights of the others, vectors (biases and norms) to the one that
    holds most vectors, so that weight decay applies as it was meant to. A parameter
    that the optimiser holds already stays where it is.

    Args:
        optimizer: The optimiser to extend.
        module: Whose parameters are added.
        beside: The parameters whose groups are extended.

    Raises:
        ValueError: If the optimiser holds none of them.
    """
    beside_ids = {id(parameter) for parameter in beside}
    held = held_by(optimizer)
    if not beside_ids & held:
        raise ValueError(
            "DiRA: the optimiser holds no parameter of the backbone. Make it of the "
            "model that contains the backbone (`model.parameters()`) and wrap that "
            "very backbone, not a copy."
        )

    def amount(group: dict[str, Any], *, vectors: bool) -> tuple[int, int]:
        shared = [p for p in group["params"] if id(p) in beside_ids]
        alike = [p.numel() for p in shared if (p.ndim < 2) == vectors]
        return sum(alike), len(shared)

    for name, parameter in module.named_parameters():
        if id(parameter) in held:
            continue
        vectors = parameter.ndim < 2
        group = max(optimizer.param_groups, key=lambda g: amount(g, vectors=vectors))
        group["params"].append(parameter)
        if "param_names" in group:
            group["param_names"].append(f"dira.head.{name}")


def remove_parameters(optimizer: Optimizer, module: nn.Module) -> None:
    """Takes a module's parameters, and what is known of them, out of an optimiser."""
    unwanted = {id(parameter) for parameter in module.parameters()}
    for group in optimizer.param_groups:
        keep = [id(p) not in unwanted for p in group["params"]]
        for key in ("params", "param_names"):
            if key in group:
                pairs = zip(group[key], keep, strict=True)
                # In place: LBFGS, for one, holds on to this list.
                group[key][:] = [value for value, kept in pairs if kept]
    for parameter in module.parameters():
        optimizer.state.pop(parameter, None)
