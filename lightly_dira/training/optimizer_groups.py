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


def without_gradients(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Keeps a step of an optimiser from a module, also after a closure has run.

    Args:
        module: Whose gradients are dropped.
        args: What `Optimizer.step` is called with, the optimiser first.
        kwargs: The same, by name.

    Returns:
        What to call it with instead, if there is a closure.
    """

    def drop() -> None:
        for parameter in module.parameters():
            parameter.grad = None

    drop()
    closures = [value for value in (*args[1:], *kwargs.values()) if callable(value)]
    if not closures:
        return None

    def then_dropped(*arguments: Any) -> Any:
        loss = closures[0](*arguments)
        drop()
        return loss

    def replaced(value: Any) -> Any:
        return then_dropped if value is closures[0] else value

    return tuple(map(replaced, args)), {k: replaced(v) for k, v in kwargs.items()}


def check_state_knows(
    head: nn.Module, optimizer: Optimizer, state: dict[str, Any]
) -> None:
    """Tells of the head where PyTorch would only count parameters.

    Raises:
        ValueError: If an optimiser's state lacks just the head's parameters.
    """
    then, now = (
        [len(group["params"]) for group in groups]
        for groups in (state["param_groups"], optimizer.param_groups)
    )
    own = len(list(head.parameters()))
    if len(then) == len(now) and sum(then) == sum(now) - own:
        raise ValueError(
            "DiRA: this optimiser's state was written without DiRA: it does not "
            "know the restoration head. To go on from it, load it before "
            "wrapping; to resume a DiRA run, load what that run saved."
        )
