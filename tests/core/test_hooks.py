"""Hooks end with their owner, and copies of what they are in have none."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from typing import NoReturn

import pytest
import torch
from torch import nn

from lightly_dira.core.hooks import Hook, HookSet


class Owner:
    def __init__(self) -> None:
        self.seen: list[str] = []
        self.hooks = HookSet()

    def watch(self, module: nn.Module, name: str) -> None:
        self.hooks.add(module.register_forward_hook(Hook(self.note, name)))

    def note(self, name: str, module: nn.Module, args: object, output: object) -> None:
        self.seen.append(name)


class NeverCopied(Owner):
    def __reduce_ex__(self, protocol: int) -> NoReturn:
        raise TypeError("copied along with what it watches")


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))]
)
def test_copies_call_nobody(copied) -> None:
    owner, module, x = NeverCopied(), nn.Linear(2, 2), torch.ones(1, 2)
    owner.watch(module, "first")
    twin = copied(module)
    assert torch.equal(twin(x), module(x))
    assert owner.seen == ["first"]


def test_an_owner_is_not_kept_alive() -> None:
    owner, module = Owner(), nn.Linear(2, 2)
    # Outside its set, so that the hook stays when its owner is gone.
    module.register_forward_hook(Hook(owner.note, "first"))
    gone = weakref.ref(owner)
    del owner
    gc.collect()
    assert gone() is None
    assert module(torch.ones(1, 2)).shape == (1, 2)


def test_a_set_ends_with_its_owner() -> None:
    owner, modules = Owner(), [nn.Linear(2, 2), nn.ReLU()]
    for module in modules:
        owner.watch(module, "any")
    assert len(owner.hooks) == 2
    del owner
    gc.collect()
    assert not any(module._forward_hooks for module in modules)


def test_a_copied_set_is_empty_and_takes_nothing_with_it() -> None:
    owner, module = Owner(), nn.Linear(2, 2)
    owner.watch(module, "first")
    twin = copy.deepcopy(owner)
    assert len(twin.hooks) == 0
    twin.hooks.clear()
    del twin
    gc.collect()
    module(torch.ones(1, 2))
    assert owner.seen == ["first"]
    owner.hooks.clear()
    module(torch.ones(1, 2))
    assert owner.seen == ["first"]
