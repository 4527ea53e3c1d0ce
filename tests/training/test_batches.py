"""Which views a batch holds."""

from __future__ import annotations

import pytest
from loops import make_views

from lightly_dira.training.batches import different_views


def test_each_once() -> None:
    one, other = make_views(), make_views()
    batch = {"a": one, "b": [other, (one, "a name")]}
    found = different_views(batch, single=False)
    assert [id(views) for views in found] == [id(one), id(other)]
    assert different_views([one, one], single=True) == [one]


def test_one_tensor_is_of_one_of_them() -> None:
    with pytest.raises(ValueError, match=r"holds several `DiRAViews`.*batch\[name\]"):
        different_views([make_views(), make_views()], single=True)
