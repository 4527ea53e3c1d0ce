"""Packages that are installed on request: `pip install lightly-dira[...]`."""

from __future__ import annotations

import importlib
from typing import Any


def optional(module: str, *, extra: str) -> Any:
    """Imports a module, or says what to install for it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"This needs {module.partition('.')[0]}: pip install lightly-dira[{extra}]"
        ) from error
