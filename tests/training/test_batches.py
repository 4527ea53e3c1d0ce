"""Which views a batch holds."""

from __future__ import annotations

import pytest
import torch
from loops import make_views

from lightly_dira import DiRAViews
from lightly_dira.training.batches import different_views


def test_each_once() -> None:
    one, other = make_views(), make_views()
    batch = {"a": one, "b": [other, (one, "a name")]}
    found = different_views(batch, named=None)
    assert [id(views) for views in found] == [id(one), id(other)]
    assert different_views([one, one], named=one[0]) == [one]


def test_one_tensor_is_of_one_of_them() -> None:
    one = make_views()
    with pytest.raises(ValueError, match=r"holds several `DiRAViews`.*batch\[name\]"):
        different_views([one, make_views()], named=one[0])


def test_a_view_without_a_target_cannot_be_named() -> None:
    """Found: another view's target was restored from its maps, in silence."""
    views = DiRAViews(
        [torch.rand(2, 3, 16, 16) for _ in "12"], torch.rand(2, 1, 16, 16)
    )
    assert different_views(views, named=views[0]) == [views]
    with pytest.raises(ValueError, match=r"names view 1 .*; \[0\] have one"):
        different_views({"views": views}, named=views[1])
