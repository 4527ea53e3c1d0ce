"""What PyTorch keeps private does what this library takes it for."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, get_worker_info

from lightly_dira.core import private_torch


class Seeds(Dataset):
    """Tells which worker it is in: each new set of workers has another seed."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> int:
        return get_worker_info().seed


def test_a_backward_pass_is_known_from_inside() -> None:
    weight, seen = torch.ones(2, requires_grad=True), []
    weight.register_hook(lambda gradient: seen.append(private_torch.in_backward()))
    assert not private_torch.in_backward()
    weight.sum().backward()
    assert seen == [True]
    assert not private_torch.in_backward()


def test_a_function_is_called_at_the_end_of_the_pass() -> None:
    """When all gradients are there, and in this pass only."""
    first, second = (torch.ones(2, requires_grad=True) for _ in range(2))
    seen = []

    def look(gradient: torch.Tensor) -> None:
        private_torch.after_backward(lambda: seen.append((first.grad, second.grad)))

    product = first * second
    handle = product.register_hook(look)
    product.sum().backward()
    ((one, other),) = seen
    assert one.equal(torch.ones(2))
    assert other.equal(torch.ones(2))
    handle.remove()
    (first * second).sum().backward()
    assert len(seen) == 1


@pytest.mark.parametrize("kept", [True, False])
def test_a_graph_that_is_kept(kept: bool) -> None:
    weight, seen = torch.ones(2, requires_grad=True), []
    weight.register_hook(lambda gradient: seen.append(private_torch.keeps_graph()))
    weight.exp().sum().backward(retain_graph=kept)
    unknown = private_torch._keeps_graph is None
    assert seen == [kept or unknown]


def test_persistent_workers_are_started_anew() -> None:
    options = dict(num_workers=1, multiprocessing_context="fork")
    loader = DataLoader(Seeds(), persistent_workers=True, **options)
    first, second = ([int(seed) for seed in loader] for _ in range(2))
    assert first == second
    private_torch.drop_workers(loader)
    assert [int(seed) for seed in loader] != second


def test_a_function_that_is_gone_names_the_cure() -> None:
    with pytest.raises(RuntimeError, match=r"no longer has `gone`.*Install a newer"):
        private_torch._private(torch, "gone")


def test_changes_are_counted_where_they_can_be() -> None:
    """Tensors of inference mode do not know them, and are left out."""
    weight = torch.ones(2)
    with torch.inference_mode():
        unknown = torch.ones(2)
    (before,) = private_torch.changes_of(weight, None, unknown)
    weight.mul_(2)
    weight[0] = 3
    assert private_torch.changes_of(None, weight) == (before + 2,)


def test_children_of_a_copy_are_its_own() -> None:
    """But what they hold is that of the module."""
    module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    twin = private_torch.with_own_children(module)
    assert twin[1].running_mean is module[1].running_mean
    twin[0] = nn.Identity()
    assert isinstance(module[0], nn.Linear)
    x = torch.rand(3, 2)
    assert torch.equal(twin(x), module[1](x))
