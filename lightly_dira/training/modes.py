"""Putting modules into evaluation mode, and back into what they were in."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn


@contextlib.contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Puts modules into evaluation mode, then each submodule back into its own."""
    modes = [(m, m.training) for module in modules for m in module.modules()]
    # Not by `eval()`, which some modules extend by merging weights.
    for module, _ in modes:
        module.training = False
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
