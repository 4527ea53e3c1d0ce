"""Adds the head to an optimiser, and removes the discriminator from it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn
from torch.nn import Parameter
from torch.optim import Optimizer


def held_by(optimizer: Optimizer) -> set[int]:
    """Returns the ids of the parameters that an optimiser holds."""
    return {id(p) for group in optimizer.param_groups for p in group["params"]}


def check_can_be_followed(optimizer: object) -> None:
    """Checks that an optimiser has hooks, and can train a decoder.

    Raises:
        TypeError: If it does not; the error names the optimiser inside a wrapper.
    """
    name = type(optimizer).__name__
    try:
        assert isinstance(optimizer, Optimizer)
        optimizer.register_step_post_hook(lambda *_: None).remove()
        optimizer.register_load_state_dict_pre_hook(lambda *_: None).remove()
    except (AssertionError, AttributeError):
        inner = (
            n for n in _INNER if isinstance(getattr(optimizer, n, None), Optimizer)
        )
        found = next(inner, None)
        raise TypeError(
            f"DiRA: {name} wraps an optimiser whose steps DiRA can follow. Attach that "
            f"one and step the wrapper as before: `dira.attach(optimizer.{found})`."
            if found
            else f"DiRA: optimizer must be a torch.optim.Optimizer, got {name}."
        ) from None
    if name == "Muon" and type(optimizer).__module__.startswith("torch."):
        raise TypeError(
            "DiRA: Muon trains matrices only, but the restoration head has "
            "convolutions and biases. Give DiRA the optimiser beside it that trains "
            "the backbone's other parameters, as AdamW: `dira.attach(adamw)`."
        )


# Where wrappers of Lightning, accelerate, schedulefree and timm keep the optimiser.
_INNER = ("optimizer", "_base_optimizer", "base_optimizer", "base", "_optimizer")


def add_parameters(
    optimizer: Optimizer, module: nn.Module, *, beside: Iterable[Parameter]
) -> None:
    """Adds a module's parameters to existing groups of an optimiser.

    No group is added, so existing schedulers still fit. Weights go to a group that
    holds weights of `beside`, vectors (biases and norms) to one that holds some of its
    vectors, so that weight decay applies as intended. Among several it is the one with
    the largest learning rate, since a new module needs that (with layer-wise decay,
    that of the last layers), and then the one that holds most. A parameter that the
    optimiser already holds stays where it is.

    Args:
        optimizer: The optimiser to extend.
        module: The module whose parameters are added.
        beside: The parameters whose groups are extended.

    Raises:
        ValueError: If the optimiser does not hold any of `beside`.
    """
    beside_ids = {id(parameter) for parameter in beside}
    held = held_by(optimizer)
    if not beside_ids & held:
        raise ValueError(
            "DiRA: the optimiser holds no parameter of the backbone. Create it with "
            "the parameters of the model that contains the backbone "
            "(`model.parameters()`), and wrap that very backbone, not a copy."
        )

    def rank(group: dict[str, Any], *, vectors: bool) -> tuple[float, ...]:
        shared = [p for p in group["params"] if id(p) in beside_ids]
        alike = [p.numel() for p in shared if (p.ndim < 2) == vectors]
        # timm keeps the factors of layer-wise decay beside a common rate.
        rate = float(group.get("initial_lr", group.get("lr")) or 0)  # before warm-up
        rate *= group.get("lr_scale", 1.0)
        return bool(alike), bool(shared), rate, sum(alike), len(shared)

    for name, parameter in module.named_parameters():
        if id(parameter) in held:
            continue
        vectors = parameter.ndim < 2
        group = max(optimizer.param_groups, key=lambda g: rank(g, vectors=vectors))
        group["params"].append(parameter)
        if "param_names" in group:
            group["param_names"].append(f"dira.head.{name}")


def replace_parameters(
    optimizer: Optimizer, old: Mapping[str, Parameter], new: Mapping[str, Parameter]
) -> None:
    """Puts parameters, with their state, into the places of those they replace.

    A parameter that is no longer there is replaced by the one that has its name and
    shape, or removed.
    """
    left, held = {id(p) for p in new.values()}, held_by(optimizer)
    gone = {n: p for n, p in old.items() if id(p) not in left}
    pairs = {
        id(p): new[n]
        for n, p in gone.items()
        if n in new and new[n].shape == p.shape and id(new[n]) not in held
    }
    for group in optimizer.param_groups:
        for place, parameter in enumerate(group["params"]):
            if id(parameter) in pairs:
                successor = group["params"][place] = pairs[id(parameter)]
                if parameter in optimizer.state:
                    optimizer.state[successor] = optimizer.state.pop(parameter)
    _remove(optimizer, {id(p) for p in gone.values()})


def remove_parameters(optimizer: Optimizer, module: nn.Module) -> None:
    """Removes a module's parameters and their state from an optimiser."""
    _remove(optimizer, {id(parameter) for parameter in module.parameters()})


def _remove(optimizer: Optimizer, unwanted: set[int]) -> None:
    for group in optimizer.param_groups:
        keep = [id(p) not in unwanted for p in group["params"]]
        for key in ("params", "param_names"):
            if key in group:
                pairs = zip(group[key], keep, strict=True)
                # In place: LBFGS, for one, holds on to this list.
                group[key][:] = [value for value, kept in pairs if kept]
    for parameter in [p for p in optimizer.state if id(p) in unwanted]:
        del optimizer.state[parameter]


def without_gradients(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Keeps an optimiser from stepping a module, also after a closure has run.

    Args:
        module: The module whose gradients are dropped.
        args: What `Optimizer.step` is called with, the optimiser first.
        kwargs: Its keyword arguments.

    Returns:
        What to call `Optimizer.step` with instead; None if there is no closure.
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
    """Names the head in an error, where PyTorch would only count parameters.

    Raises:
        ValueError: If an optimiser's state lacks just the head's parameters.
    """
    then, now = (
        [len(group["params"]) for group in groups]
        for groups in (state["param_groups"], optimizer.param_groups)
    )
    own = len(list(head.parameters()))
    if own and len(then) == len(now) and sum(then) == sum(now) - own:
        raise ValueError(
            "DiRA: this optimiser's state was written without DiRA: it lacks the "
            "restoration head. To continue from it, load it before wrapping; to "
            "resume a DiRA run, load what that run saved."
        )


def check_not_replaced(
    head: set[int],
    critic: set[int],
    own: set[int],
    backbone: tuple[set[int], set[int]],
    held: set[int],
) -> None:
    """Checks that optimisers hold parameters of the present, and all of the head's.

    Args:
        head: Ids of the parameters of the head that the optimiser was given.
        critic: The same of the critic and its optimiser.
        own: Those that head and critic have now.
        backbone: Ids of the backbone's when the optimiser was attached, and now.
        held: Those that the optimiser holds.

    Raises:
        RuntimeError: If they hold parameters of the past, groups were written anew
            without the head's, or hold the critic's.
    """
    if critic & held:
        raise RuntimeError(_HOLDS_CRITIC)
    then, now = backbone
    replaced = head | critic != own or (then - now and now - then - held)
    if replaced or (now & held and not head <= held):
        raise RuntimeError(_REPLACED)


_HOLDS_CRITIC = (
    "DiRA: the optimiser holds parameters of the discriminator, which DiRA steps by an "
    "Adam of its own: they would be stepped twice, once against their loss. Leave "
    "`dira.discriminator` out of its groups."
)
_REPLACED = (
    "DiRA: parameters of the backbone, the head or the discriminator have been "
    "replaced since the optimiser was attached, as by load_state_dict(assign=True) or "
    "a new module, or left out as its groups were written anew: nothing would train "
    "them. Attach an optimiser that holds the "
    "backbone as it is now: `dira.attach(optimizer)`."
)
