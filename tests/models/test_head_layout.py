"""How often maps are doubled, and how large the output of a block is."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightly_dira.models.head_layout import by_axis, doublings, next_size


@given(octaves=st.lists(st.integers(0, 5), min_size=2, max_size=5))
def test_maps_of_squares_are_doubled_as_little_as_suffices(octaves: list[int]) -> None:
    """Each becomes at least twice as fine as the one before it, if pixels allow it."""
    strides = [2**octave for octave in sorted(octaves)]
    counts, reached = doublings(by_axis(strides, 2))
    before, expected = strides[-1], []
    for stride in reversed(strides[:-1]):
        wanted = max(1, before / 2)
        count = next(c for c in range(9) if stride / 2**c <= wanted)
        before = stride / 2**count
        expected.insert(0, (count, count))
    assert counts == expected
    assert reached == (before, before)


@pytest.mark.parametrize(
    ("strides", "counts", "reached"),
    [
        # nnU-Net's first stages keep the slices of a volume.
        ([(1, 2, 2), (1, 4, 4), (2, 8, 8)], [(0, 0, 0), (0, 0, 0)], (1, 2, 2)),
        # A map that is finer along one axis may stay as it is along others.
        ([(4, 4), (4, 8), (4, 16)], [(0, 0), (0, 0)], (4, 4)),
        # One that is finer along none is doubled along all.
        ([(2, 16, 16)] * 3, [(1, 2, 2), (1, 1, 1)], (1, 4, 4)),
    ],
)
def test_axes_of_different_strides(strides, counts, reached) -> None:
    assert doublings(strides) == (counts, reached)


@given(
    size=st.lists(st.integers(1, 300), min_size=2, max_size=3),
    blocks=st.integers(1, 6),
)
def test_blocks_without_maps_end_at_the_image(size: list[int], blocks: int) -> None:
    """From its side, halved and rounded up, each block goes back one halving."""
    sides = [math.ceil(side / 2**blocks) for side in size]
    for left in reversed(range(blocks)):
        sides = next_size(sides, size, left)
        assert list(sides) == [math.ceil(side / 2**left) for side in size]
    assert list(sides) == size


def test_a_block_neither_shrinks_nor_more_than_doubles() -> None:
    assert next_size((9, 9), (8, 40), 0) == (9, 18)
    assert next_size((3, 5), None, 4) == (6, 10)
