"""Draws and blocks of batches, against NumPy and loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from lightly_dira.transforms.batch_blocks import Blocks, Chosen, move_pixels


@pytest.mark.parametrize("sizes", [(9, 12), (5, 7, 6)])
def test_blocks_lie_where_slices_of_numpy_do(sizes: tuple[int, ...]) -> None:
    random = np.random.default_rng(0)
    lengths = random.integers(1, 5, (3, 4, len(sizes)))
    starts = random.integers(0, np.subtract(sizes, lengths), endpoint=True)
    blocks = Blocks(torch.from_numpy(starts), torch.from_numpy(lengths))
    places = blocks.positions(blocks.numbers([(1, 4)] * len(sizes)), sizes).numpy()
    inside = [axis.numpy() for axis in blocks.inside(sizes)]
    whole = np.arange(np.prod(sizes)).reshape(sizes)
    for of in np.ndindex(3, 4):
        area = tuple(map(slice, starts[of], starts[of] + lengths[of]))
        expected = whole[area].ravel()
        assert places[of][: expected.size].tolist() == expected.tolist()
        # Small blocks begin again, as all have as many numbers as the largest.
        assert len(places[of]) == 4 ** len(sizes)
        assert set(places[of]) == set(expected)
        cells = np.ix_(*(axis[of] for axis in inside))
        assert whole[cells].ravel().tolist() == expected.tolist()


@pytest.mark.parametrize("rows", [None, [0, 2]])
@pytest.mark.parametrize("some", [False, True])
def test_pixels_move_as_in_a_loop(rows: list[int] | None, some: bool) -> None:
    """All values are those from before, and of blocks at one place the last counts."""
    torch.manual_seed(0)
    images = torch.rand(3, 2, 6, 7)
    chosen = range(3) if rows is None else rows
    shape = len(chosen), 4, 30
    places, sources = (torch.rand(*shape[:2], 42).argsort(2)[..., :30] for _ in "12")
    exist = torch.rand(shape[:2]) < 0.5 if some else None
    expected, before = images.clone().flatten(2), images.clone().flatten(2)
    for number, image in enumerate(chosen):
        for block in range(4):
            if exist is None or exist[number, block]:
                to, of = places[number, block], sources[number, block]
                expected[image, :, to] = before[image, :, of]
    move_pixels(Chosen(images, rows, None), places, sources, exist)
    assert images.flatten(2).equal(expected)
    assert not expected.equal(before)


def test_integers_are_uniform_and_both_ends_are_drawn() -> None:
    chosen = Chosen(torch.empty(50, 1, 8, 8), None, torch.Generator().manual_seed(0))
    low, high = torch.tensor([3, 7]), torch.tensor([6, 7])
    drawn = chosen.integers(low, high, 200, 2)
    assert drawn.shape == (50, 200, 2)
    assert (drawn[..., 1] == 7).all()
    counts = drawn[..., 0].flatten().bincount(minlength=7)
    assert counts[:3].sum() == 0
    assert stats.chisquare(counts[3:]).pvalue > 1e-4
