"""Recognising the layers of one network in another, whatever their names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor


def pair_names(
    source: Mapping[str, Tensor],
    target: Mapping[str, Tensor],
    *,
    into: str,
    whole: bool = False,
) -> dict[str, str]:
    """Pairs the names of two state dicts of one architecture.

    Names are the same behind some prefix, or else the layers are in the same order
    and agree in kind and shape. At the end of the target, a classifier (vectors and
    matrices) may be left without a pair.

    Args:
        source: Where the weights come from.
        target: Where they go.
        into: What to call the target in an error.
        whole: Whether all layers of the source must go somewhere, too, but for a
            classifier at its end.

    Returns:
        The source's name for each name of the target.

    Raises:
        ValueError: If layers are left over.
    """
    pairs = _by_order(source, target)
    for prefix in ("", *sorted(_prefixes(source))):
        alike = {
            new: prefix + new
            for new, value in target.items()
            if prefix + new in source and source[prefix + new].shape == value.shape
        }
        pairs = max(alike, pairs, key=len)
    left = _left_over(target, set(pairs))
    if left or not pairs:
        raise ValueError(_misfit(into, target, left, "the weights have", source))
    if whole:
        # Tokens and buffers that only training needs have no place elsewhere.
        left = [
            name
            for name in _left_over(source, set(pairs.values()))
            if _kind(name) == "weight"
        ]
        if left:
            raise ValueError(
                _misfit("The backbone", source, left, f"{into} has", target)
            )
    return pairs


def _by_order(
    source: Mapping[str, Tensor], target: Mapping[str, Tensor]
) -> dict[str, str]:
    """Pairs each name of the target with the next one of its kind and shape."""
    pairs = {}
    names = iter(source)
    old = next(names, None)
    for new, value in target.items():
        if old is None:
            break
        if _kind(old) == _kind(new) and source[old].shape == value.shape:
            pairs[new] = old
            old = next(names, None)
    return pairs


def _left_over(state: Mapping[str, Tensor], found: set[str]) -> list[str]:
    """Lists what was not found, but for the counters of BatchNorm and a classifier."""
    last = max((i for i, name in enumerate(state) if name in found), default=-1)
    return [
        name
        for i, (name, value) in enumerate(state.items())
        if name not in found
        and _kind(name) != "num_batches_tracked"
        and (i < last or value.ndim > 2)
    ]


def _misfit(
    owner: str,
    state: Mapping[str, Tensor],
    left: list[str],
    other_has: str,
    other: Mapping[str, Tensor],
) -> str:
    lacking = [f"{name} {tuple(state[name].shape)}" for name in left[:3]]
    if len(left) > len(lacking):
        lacking.append(f"{len(left) - len(lacking)} more")
    first = left[0] if left else ""
    instead = f"{tuple(other[first].shape)} for the first" if first in other else "none"
    return (
        f"{owner} has {', '.join(lacking)}, and {other_has} {instead}. Expected the "
        "same architecture, with as many input channels."
    )


def _kind(name: str) -> str:
    return name.rpartition(".")[2]


def _prefixes(names: Iterable[str]) -> set[str]:
    """Lists everything up to a dot of some name: "a." and "a.b." of "a.b.c"."""
    return {
        name[: i + 1]
        for name in names
        for i, letter in enumerate(name)
        if letter == "."
    }
