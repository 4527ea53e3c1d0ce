"""Checks for weights that would load but be wrong, and for damaged files."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping

from torch import Tensor, nn

from lightly_dira.core.extras import extra
from lightly_dira.core.user_warnings import warn
from lightly_dira.weights.names import pair_names


def load_weights(backbone: nn.Module, weights: Mapping[str, Tensor]) -> list[str]:
    """Loads weights under other names, and returns the names that were used."""
    pairs = pair_names(weights, backbone.state_dict(), into=type(backbone).__name__)
    state = {new: weights[old] for new, old in pairs.items()}
    # Its own state dict also holds versions, which MNASNet asks for.
    own = backbone.state_dict()
    check_values(state, own)
    own.update(state)
    backbone.load_state_dict(own)
    return list(pairs.values())


@contextlib.contextmanager
def reading(path: str | os.PathLike[str]) -> Iterator[None]:
    """Adds the file's path to errors of safetensors."""
    with extra("safetensors"):
        from safetensors import SafetensorError
    try:
        yield
    except SafetensorError as error:
        raise ValueError(
            f"{path} is not a file of safetensors, or is damaged ({error}). Copy it "
            "again, or take another."
        ) from error


def check_values(weights: Mapping[str, Tensor], model: Mapping[str, Tensor]) -> None:
    """Looks for weights that would load but be wrong.

    Raises:
        ValueError: If weights are not finite, or are integers in place of floats.
    """
    rounded = set()
    for name, value in weights.items():
        wanted = model[name].dtype if name in model else value.dtype
        if value.is_floating_point() and not value.isfinite().all():
            raise ValueError(
                f"The weights hold NaN or infinity in {name}: the run that wrote them "
                "had diverged. Take an earlier checkpoint."
            )
        if value.is_floating_point() != wanted.is_floating_point:
            raise ValueError(
                f"The weights {name} are {value.dtype}, but the model's {wanted}. They "
                "were quantised or belong to something else."
            )
        if value.is_floating_point() and value.dtype.itemsize < wanted.itemsize:
            rounded.add(str(value.dtype))
    if rounded:
        warn(
            f"The weights were stored as {', '.join(sorted(rounded))}, rounded from "
            "the precision of training; the model keeps its own precision."
        )
