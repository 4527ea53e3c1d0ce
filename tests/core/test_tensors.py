"""Tensors are found in what modules get and return."""

from __future__ import annotations

from collections import OrderedDict, namedtuple

import torch
from torch.utils._pytree import tree_leaves

from lightly_dira.core.tensors import image_in, only_image_in, tensors_in

Output = namedtuple("Output", "logits states")


def test_in_order_however_deep() -> None:
    a, b, c, d = (torch.rand(2) for _ in range(4))
    value = OrderedDict(z=[a, "text", None], y=Output(b, {"x": (c, 1.5)}), x=[[[d]]])
    found = list(tensors_in(value))
    expected = [leaf for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor)]
    assert (
        list(map(id, found)) == list(map(id, expected)) == list(map(id, (a, b, c, d)))
    )


def test_the_image_is_the_first_of_floats() -> None:
    """Neither a mask of integers nor a tensor of other dimensions."""
    mask, tokens = torch.zeros(1, 1, 4, 4, dtype=torch.int64), torch.rand(1, 4, 4)
    image, volume = torch.rand(1, 3, 4, 4), torch.rand(1, 1, 4, 4, 4)
    given = [(mask, tokens), {"volume": volume, "image": image}, image.clone()]
    assert image_in(given, 4) is image
    assert image_in(given, 5) is volume
    assert image_in([mask, tokens], 4) is None


def test_one_image_of_a_call_is_none_of_several() -> None:
    image, other = torch.rand(2, 1, 3, 4, 4)
    mask = torch.zeros(1, 1, 4, 4, dtype=torch.int64)
    assert only_image_in([image, {"mask": mask}], 4) is image
    assert only_image_in([image, other], 4) is None
    assert only_image_in([], 4) is None
