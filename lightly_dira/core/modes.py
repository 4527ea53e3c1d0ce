"""Puts modules into evaluation mode, and back into their previous modes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn


@contextlib.contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Puts modules into evaluation mode, then restores the mode of each submodule."""
    modes = [(m, m.training) for module in modules for m in module.modules()]
    # Not by `eval()`, which some modules override to merge weights.
    for module, _ in modes:
        module.training = False
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
