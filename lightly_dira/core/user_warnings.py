"""Warnings that point at the user's line, not at a frame of a library."""

from __future__ import annotations

import os
import sys
import types
import warnings
from pathlib import Path

import torch

# Their frames stand between the user's line and the warning.
_LIBRARIES = ("torch", "pytorch_lightning", "lightning", "lightning_fabric", "lightly")
_OWN = str(Path(__file__).parents[1]) + os.sep


@torch.compiler.disable  # type: ignore[untyped-decorator]
def warn(message: str) -> None:
    """Warns at the innermost line outside PyTorch, Lightning and this package.

    Frames are known by their files, so that it does not matter how many of them a
    hook, a compiled module or a strategy puts in between.

    Args:
        message: What is wrong, and the cure.
    """
    places = tuple(filter(None, map(_place_of, _LIBRARIES))) + (_OWN,)
    frame: types.FrameType | None = sys._getframe(1)
    level = 2
    while frame is not None and _is_between(frame.f_code.co_filename, places):
        frame, level = frame.f_back, level + 1
    # A backward pass on an accelerator runs in a thread without any line of the user.
    warnings.warn(message, stacklevel=2 if frame is None else level)


def _place_of(library: str) -> str | None:
    file = getattr(sys.modules.get(library), "__file__", None)
    return None if file is None else os.path.dirname(file) + os.sep


def _is_between(file: str, places: tuple[str, ...]) -> bool:
    # Code made by `torch.fx` has such a name.
    return file.startswith((*places, "<eval_with_key>"))
