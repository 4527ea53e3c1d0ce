"""Recognising the layers of one network in another, whatever their names."""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Iterable, Mapping

from torch import Tensor

# Only training needs these, and counts or fills them in again.
_DISPENSABLE = ("num_batches_tracked", "mask_token")
# What compiling and checkpointing a part of a network put into names.
_WRAPPED = re.compile(r"(?<![^.])(?:_orig_mod|_checkpoint_wrapped_module)\.")


def pair_names(
    source: Mapping[str, Tensor], target: Mapping[str, Tensor], *, into: str
) -> dict[str, str]:
    """Pairs the names of two state dicts of one architecture.

    Names must be equal, or equal after a prefix of the source or of the target. Or they
    differ in their first part only and layers come in the same order, as in
    `nn.Sequential(*resnet.children())`. On either side a classifier may be left over: a
    module of vectors and matrices in which nothing is paired, before or behind all that
    is. Where parts were compiled does not matter.

    Args:
        source: Where the weights come from.
        target: Where they go.
        into: What to call the target in an error.

    Returns:
        The source's name for each name of the target.

    Raises:
        ValueError: If anything else is left over, or several prefixes fit.
    """
    ours, theirs = (
        {_WRAPPED.sub("", name): name for name in state} for state in (source, target)
    )
    pairs = _pair(
        {plain: source[name] for plain, name in ours.items()},
        {plain: target[name] for plain, name in theirs.items()},
        into=into,
    )
    return {theirs[new]: ours[old] for new, old in pairs.items()}


def _pair(
    source: Mapping[str, Tensor], target: Mapping[str, Tensor], *, into: str
) -> dict[str, str]:
    prefixes = [(prefix, "") for prefix in _prefixes(source)]
    prefixes += [("", prefix) for prefix in _prefixes(target)]
    candidates = {
        pair: _behind(*pair, source, target) for pair in [("", ""), *prefixes]
    }
    complete = {
        pair: pairs
        for pair, pairs in candidates.items()
        if pairs and not any(_left_over(source, target, pairs, *pair))
    }
    if ("", "") in complete:
        return complete["", ""]
    if len(complete) > 1:
        names = " and ".join(repr(old or new) for old, new in complete)
        raise ValueError(
            f"The weights fit {into} behind {names}. Pass the part that you mean."
        )
    if complete:
        return complete.popitem()[1]
    for pair in itertools.product({"", _trunk(source)}, {"", _trunk(target)}):
        by_order = _by_order(*pair, source, target)
        candidates[pair] = max(by_order, candidates.get(pair, {}), key=len)
    (old, new), pairs = max(candidates.items(), key=lambda item: len(item[1]))
    here, there = _left_over(source, target, pairs, old, new)
    if pairs and not here and not there:
        return pairs
    raise ValueError(
        f"The weights do not fit. {into} has {_listed(there, target, source)}; they "
        f"have {_listed(here, source, target)}. Expected the same architecture, with "
        "as many input channels."
    )


def _behind(
    old: str, new: str, source: Mapping[str, Tensor], target: Mapping[str, Tensor]
) -> dict[str, str]:
    """Pairs names that are equal once a prefix of source or target is removed."""
    pairs: dict[str, str] = {}
    start = [old + name.removeprefix(new) for name in list(target)[:9]]
    if not any(name in source for name in start):
        return pairs
    for name, value in target.items():
        other = old + name.removeprefix(new)
        fits = name.startswith(new) and other in source
        if fits and source[other].shape == value.shape:
            pairs[name] = other
    return pairs


def _by_order(
    old: str, new: str, source: Mapping[str, Tensor], target: Mapping[str, Tensor]
) -> dict[str, str]:
    """Pairs each name with the next one that differs in its first part only."""
    pairs = {}
    names = iter(source)
    ours = next(names, None)
    for theirs, value in target.items():
        if ours is None:
            break
        _, _, rest = ours.removeprefix(old).partition(".")
        _, _, other = theirs.removeprefix(new).partition(".")
        if rest == other and source[ours].shape == value.shape:
            pairs[theirs] = ours
            ours = next(names, None)
    return pairs


def _left_over(
    source: Mapping[str, Tensor],
    target: Mapping[str, Tensor],
    pairs: Mapping[str, str],
    old: str,
    new: str,
) -> tuple[list[str], list[str]]:
    """Lists the names in source and target without a pair, except classifiers.

    What the target has between paired layers is no classifier: it may be all of its
    blocks. (Files may hold names in another order, such as the alphabet's.)
    """
    places = [place for place, name in enumerate(target) if name in pairs]
    between = [*target][places[0] : places[-1]] if places else []
    return (
        _unpaired(source, set(pairs.values()), old),
        _unpaired(target, {*pairs}, new, between=between),
    )


def _unpaired(
    state: Mapping[str, Tensor],
    paired: set[str],
    prefix: str,
    between: Iterable[str] = (),
) -> list[str]:
    def first(name: str) -> str:
        return name.removeprefix(prefix).partition(".")[0]

    # Such as "head.fc" beside "head.norm", which encoders without classifier also have.
    last = [*state, ""][len(state) - 1].rpartition(".")[0]
    shared = {first(name) for name in paired}

    def module(name: str) -> str:
        at_end = name.rpartition(".")[0] == last and first(name) in shared
        return last if at_end else first(name)

    left = [
        name
        for name in state
        if name not in paired and name.rpartition(".")[2] not in _DISPENSABLE
    ]
    classifiers = {module(name) for name in left if state[name].ndim == 2}
    classifiers -= {module(name) for name in left if state[name].ndim > 2}
    classifiers -= {module(name) for name in (*paired, *between)}
    return [name for name in left if module(name) not in classifiers]


def _listed(
    names: list[str], state: Mapping[str, Tensor], other: Mapping[str, Tensor]
) -> str:
    if not names:
        return "nothing more"
    first = f"{names[0]} {tuple(state[names[0]].shape)}"
    if names[0] in other:
        first += f" (here {tuple(other[names[0]].shape)})"
    return first + (f" and {len(names) - 1} more" if len(names) > 1 else "") + " alone"


def _prefixes(names: Iterable[str]) -> list[str]:
    """Lists all beginnings of names up to a dot: "a." and "a.b." of "a.b.c"."""
    found = (
        name[: i + 1]
        for name in names
        for i, letter in enumerate(name)
        if letter == "."
    )
    return list(dict.fromkeys(found))


def _trunk(names: Collection[str]) -> str:
    """Returns the longest prefix, up to a dot, of all names."""
    if not names:
        return ""
    first, last = min(names).split("."), max(names).split(".")
    pairs = zip(first, last, strict=False)
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)
    return "".join(f"{part}." for part, _ in same)
