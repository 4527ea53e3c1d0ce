"""Gradients that are taken beforehand equal those of autograd."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightly_dira.loss.known_gradients import mean_with_gradients


def leaf_of(value: Tensor) -> Tensor:
    return value.detach().requires_grad_()


@pytest.mark.parametrize("shape", [(3, 1, 4, 4), (3,), ()])
def test_equal_those_of_autograd(shape: tuple[int, ...]) -> None:
    """In value and gradient, by images and by weights, whatever it is multiplied by."""
    torch.manual_seed(0)
    images = torch.rand(shape, dtype=torch.float64, requires_grad=True)
    weight = torch.rand((), dtype=torch.float64, requires_grad=True)
    expected = (images * weight).exp().mean()
    by_hand = torch.autograd.grad(3 * expected, [images, weight])
    leaves = [leaf_of(images), leaf_of(weight)]
    penalties = (leaves[0] * leaves[1]).exp()
    mean = mean_with_gradients(penalties, leaves, [images, weight])
    torch.testing.assert_close(mean, expected)
    assert images.grad is None
    (3 * mean).backward()
    assert all(leaf.grad is None for leaf in leaves)
    for source, gradient in zip((images, weight), by_hand, strict=True):
        torch.testing.assert_close(source.grad, gradient)


def test_a_leaf_that_takes_no_part() -> None:
    weight, frozen = torch.ones(2, requires_grad=True), torch.ones(2)
    unused = torch.ones(2, requires_grad=True)
    leaves = [leaf_of(weight), frozen, leaf_of(unused)]
    mean = mean_with_gradients(leaves[0] * frozen, leaves, [weight, frozen, unused])
    mean.backward()
    assert weight.grad.equal(torch.full((2,), 0.5))
    assert unused.grad is None
    assert not mean_with_gradients(frozen, [frozen], [frozen]).requires_grad


def test_a_graph_for_a_second_value() -> None:
    """The passes of one image serve two penalties, the first of which keeps it."""
    weight = torch.tensor([1.0, 2.0], requires_grad=True)
    leaf = leaf_of(weight)
    squares = leaf.square()
    first = mean_with_gradients(squares, [leaf], [weight], retain_graph=True)
    second = mean_with_gradients(-3 * squares, [leaf], [weight])
    (first + second).backward()
    torch.testing.assert_close(weight.grad, -2 * weight.detach())


@pytest.mark.parametrize(("brightness", "plain"), [(0.002, "mean"), (2.0, "sum")])
def test_half_precision_loses_nothing(brightness: float, plain: str) -> None:
    """The shares of a mean vanish, and sums overflow: `plain` ways lose much."""
    torch.manual_seed(0)
    images = (brightness * torch.rand(8, 1, 128, 128)).half()
    weight = torch.ones((), dtype=torch.half, requires_grad=True)
    expected = images.double().mean()
    (lost,) = torch.autograd.grad(getattr(images * weight, plain)(), weight)
    lost = lost / images.numel() if plain == "sum" else lost
    assert abs(lost / expected - 1) > 0.1
    leaf = leaf_of(weight)
    mean_with_gradients(images * leaf, [leaf], [weight]).backward()
    assert weight.grad.item() == pytest.approx(expected.item(), rel=2e-3)
