"""Steps that make a view of a batch, and what each of them does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from lightly_dira.transforms.alignment import name_of
from lightly_dira.transforms.fixed_scaling import counts_in_bytes
from lightly_dira.transforms.kinds import is_of_library, kind_of, parts_in_order
from lightly_dira.transforms.step_images import OF_BYTES

# Kinds of steps that views and targets go through together.
MOVE_BOTH = ("geometric", "conversion")


class BatchStep(NamedTuple):
    """A step, and its kind."""

    call: Callable[[Tensor], Tensor]
    kind: str


def steps_of(transform: Any, stated: Mapping[Any, str]) -> list[BatchStep]:
    """Returns the steps of a view's transform, in order."""
    parts = parts_in_order(transform)
    if parts is not None:
        return [step for part in parts for step in steps_of(part, stated)]
    kind = kind_of(transform, stated)
    if kind == "conversion" and is_of_library(type(transform)):
        return []  # pixels are floats throughout
    if kind not in ("geometric", "photometric", "conversion", "normalisation"):
        raise ValueError(
            f"DiRABatchTransform: what {name_of(transform)} does to a batch is not "
            f"known, or several things at once ({kind}). Say what it does, "
            f'kinds={{{name_of(transform)!r}: "geometric"}} or "photometric", or give '
            "its parts one after the other."
        )
    return [BatchStep(transform, kind)]


def check_numbers_of(steps: Sequence[BatchStep]) -> None:
    """Raises a ValueError if a step's colours are of bytes, or of each channel.

    A colour would have to fill views and targets together.
    """
    is_apart = False
    for step in steps:
        if counts_in_bytes(step.call):
            raise ValueError(f"DiRABatchTransform: {name_of(step.call)} {OF_BYTES}")
        fill = getattr(step.call, "fill", None)
        if is_apart and not isinstance(fill, (int, float, type(None))):
            raise ValueError(
                f"DiRABatchTransform: {name_of(step.call)} fills with {fill}, but "
                "moves channels of view and target together. Give one number as "
                "`fill`, or put the step before those that change pixels."
            )
        is_apart |= step.kind not in MOVE_BOTH
