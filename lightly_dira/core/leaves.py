"""What a value was computed from."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import Parameter


def leaves_of(value: Tensor) -> list[Parameter]:
    """Returns the parameters that a value depends on."""
    found: list[Parameter] = []
    nodes: list[Any] = [value.grad_fn]
    known = {None}
    while nodes:
        node = nodes.pop()
        if node in known:
            continue
        known.add(node)
        leaf = getattr(node, "variable", None)
        if isinstance(leaf, Parameter):
            found.append(leaf)
        nodes.extend(before for before, _ in node.next_functions)
    return found
