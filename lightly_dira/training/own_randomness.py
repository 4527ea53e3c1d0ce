"""The states of what draws random numbers besides the global generators.

Data loaders, samplers, data sets and transforms may hold generators of their own:
`DataLoader(generator=)`, MONAI's `R`, albumentations' `seed=`, `np.random.default_rng`.
"""

from __future__ import annotations

import copy
import functools
import itertools
import random
import types
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler

_Generator = (
    torch.Generator | np.random.Generator | np.random.RandomState | random.Random
)
_GENERATORS = (
    torch.Generator,
    np.random.Generator,
    np.random.BitGenerator,
    np.random.RandomState,
    random.Random,
)
_GLOBAL = (
    torch.default_generator,
    np.random.get_state.__self__,  # type: ignore[attr-defined]
    random.random.__self__,  # type: ignore[attr-defined]
)
# Values without parts that could draw.
_PLAIN = (str, bytes, int, float, complex, type(None), Tensor, np.ndarray, type)
# Data sets hold long lists of samples: the first show what they are made of.
_FEW, _MOST_ITEMS, _MOST_OBJECTS = 16, 1_000, 50_000


class OwnRandomness:
    """Finds what draws or counts in data loaders, and keeps its state.

    - generators, wherever they are reached by attributes, containers (their first 1,000
      items), partial functions, methods, defaults or closures
    - numbers that samplers keep, such as an epoch, alone or in short containers; their
      `state_dict`, if they have one. PyTorch's own count nothing but the epoch, so that
      their batch size is that of the resumed run; of others every number is a count

    Not found are generators in global variables of the user's code, what has no state
    (`random.SystemRandom`), and those in copies that workers hold. Workers that are
    started for each epoch copy what is kept here; persistent ones do not.

    Args:
        loaders: Data loaders, or other iterables.
    """

    def __init__(self, loaders: Iterable[Any]) -> None:
        """Looks for them."""
        self._generators: dict[str, Any] = {}
        self._samplers: dict[str, Any] = {}
        for number, loader in enumerate(loaders):
            own = [getattr(loader, kind, None) for kind in ("sampler", "batch_sampler")]
            for name, value in _walk(f"loader {number}", loader):
                if isinstance(value, _GENERATORS):
                    self._generators[name] = value
                elif isinstance(value, Sampler) or any(value is each for each in own):
                    self._samplers[name] = value

    def state(self) -> dict[str, Any]:
        """Returns the state, as tensors and plain numbers."""
        stateful = self._stateful()
        counting = {n: s for n, s in self._samplers.items() if n not in stateful}
        return {
            "generators": {n: _state_of(g) for n, g in self._generators.items()},
            "samplers": {n: _counts_of(s) for n, s in counting.items()},
            "states": {n: copy.deepcopy(s.state_dict()) for n, s in stateful.items()},
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restores what `state` returned; what is no longer there is ignored."""
        stateful = self._stateful()
        for name, sampler in self._samplers.items():
            if name in stateful:
                if name in state["states"]:
                    sampler.load_state_dict(state["states"][name])
                continue
            for key, value in state["samplers"].get(name, {}).items():
                if _may_count(sampler, key):
                    setattr(sampler, key, value)
        for name, generator in self._generators.items():
            if name in state["generators"]:
                _set_state(generator, state["generators"][name])

    def _stateful(self) -> dict[str, Any]:
        """Returns the samplers that save and load a state by themselves."""
        methods = ("state_dict", "load_state_dict")
        return {
            name: sampler
            for name, sampler in self._samplers.items()
            if all(hasattr(sampler, method) for method in methods)
        }


def _walk(name: str, root: Any) -> Iterator[tuple[str, Any]]:
    """Yields an object and all that it is made of, with their names."""
    known = {id(value) for value in _GLOBAL}
    queue = deque([(name, root)])
    while queue and len(known) < _MOST_OBJECTS:
        name, value = queue.popleft()
        if isinstance(value, _PLAIN) or id(value) in known:
            continue
        if isinstance(value, random.SystemRandom):
            continue
        known.add(id(value))
        yield name, value
        if not isinstance(value, _GENERATORS):
            queue.extend((f"{name}.{part}", item) for part, item in _parts_of(value))


def _parts_of(value: Any) -> Iterator[tuple[object, Any]]:
    if isinstance(value, Mapping):
        yield from itertools.islice(value.items(), _MOST_ITEMS)
    elif isinstance(value, (list, tuple, set, frozenset, deque)):
        yield from enumerate(itertools.islice(value, _MOST_ITEMS))
    elif isinstance(value, functools.partial):
        yield from (("func", value.func), ("args", value.args), ("kw", value.keywords))
    elif isinstance(value, (types.MethodType, types.BuiltinFunctionType)):
        yield "self", value.__self__
    elif isinstance(value, types.FunctionType):
        yield from (("defaults", value.__defaults__), ("kw", value.__kwdefaults__))
        for number, cell in enumerate(value.__closure__ or ()):
            yield f"closure {number}", _contents_of(cell)
    elif not isinstance(value, types.ModuleType):
        yield from getattr(value, "__dict__", {}).items()
        # MONAI's random transforms share one until they are seeded.
        for kind in type(value).__mro__:
            for part, item in vars(kind).items():
                if isinstance(item, types.MemberDescriptorType):  # of `__slots__`
                    yield part, getattr(value, part, None)
                elif isinstance(item, _GENERATORS):
                    yield f"{kind.__qualname__}.{part}", item


def _contents_of(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # still empty
        return None


def _may_count(sampler: Any, name: str) -> bool:
    """Whether a number of a sampler may change; of PyTorch's own, only the epoch."""
    is_pytorchs = type(sampler).__module__.startswith("torch.utils.data.")
    return name == "epoch" or not is_pytorchs


def _counts_of(sampler: Any) -> dict[str, Any]:
    own = getattr(sampler, "__dict__", {}).items()
    return {
        name: copy.deepcopy(value)
        for name, value in own
        if _is_count(value) and _may_count(sampler, name)
    }


def _is_count(value: Any) -> bool:
    if isinstance(value, Mapping):
        value = [*value, *value.values()] if len(value) < _FEW else None
    if isinstance(value, (list, tuple)) and len(value) < _FEW:
        return all(map(_is_count, value))
    return isinstance(value, (int, float, str))


def _state_of(generator: _Generator) -> Any:
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    if isinstance(generator, np.random.Generator):
        return _plain(generator.bit_generator.state)
    if isinstance(generator, np.random.BitGenerator):
        return _plain(generator.state)
    if isinstance(generator, np.random.RandomState):
        return _plain(generator.get_state(legacy=False))
    return generator.getstate()


def _set_state(generator: _Generator, state: Any) -> None:
    if isinstance(generator, torch.Generator):
        generator.set_state(state.cpu())
    elif isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    elif isinstance(generator, np.random.BitGenerator):
        generator.state = state
    elif isinstance(generator, np.random.RandomState):
        generator.set_state(state)
    else:
        generator.setstate(state)


def _plain(value: Any) -> Any:
    """Returns a state with lists in place of arrays, and plain numbers."""
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value
