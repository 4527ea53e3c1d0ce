from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightly.models import utils

from lightly_dira.models import fill_masked_patches
from lightly_dira.models.masked_images import _patchify, _unpatchify


@given(
    grid=st.lists(st.integers(1, 3), min_size=2, max_size=3),
    patch=st.lists(st.integers(1, 4), min_size=3, max_size=3),
    channels=st.integers(1, 3),
    prefix=st.integers(0, 3),
    normalized=st.booleans(),
    seed=st.integers(0, 1000),
)
@settings(deadline=None, max_examples=60)
def test_a_perfect_prediction_gives_the_clean_image(
    grid, patch, channels, prefix, normalized, seed
) -> None:
    """And any other changes masked patches only."""
    torch.manual_seed(seed)
    patch = patch[: len(grid)]
    sides = [many * own for many, own in zip(grid, patch, strict=True)]
    images = torch.rand(2, channels, *sides, dtype=torch.float64)
    patches = _patchify(images, grid, patch)
    assert torch.equal(_unpatchify(patches, grid, patch), images)
    count = patches.shape[1]
    idx_mask = torch.rand(2, count).argsort(dim=1)[:, : (count + 1) // 2] + prefix
    target = utils.get_at_index(patches, idx_mask - prefix)
    if normalized and target.shape[2] > 1:
        target = utils.normalize_mean_var(target)
    else:
        normalized = False
    options = dict(prefix_tokens=prefix, normalized=normalized)
    filled = fill_masked_patches(images, target, idx_mask, patch, **options)
    torch.testing.assert_close(filled, images, rtol=0, atol=1e-12)
    other = torch.rand_like(target, requires_grad=True)
    filled = fill_masked_patches(images, other, idx_mask, patch, **options)
    changed = (_patchify(filled, grid, patch) != patches).any(dim=2)
    visible = torch.ones(2, count, dtype=torch.bool)
    visible.scatter_(1, idx_mask - prefix, False)
    assert not changed[visible].any(), "exactly the clean pixels"
    filled.sum().backward()
    assert other.grad is not None
    assert bool((other.grad != 0).any()) or normalized


def test_the_order_is_that_of_lightly() -> None:
    images = torch.rand(2, 3, 24, 24)
    patches = utils.patchify(images, 8)
    assert torch.equal(_patchify(images, (3, 3), (8, 8)), patches)
    assert torch.equal(_unpatchify(patches, (3, 3), (8, 8)), images)
    predictions, idx_mask = torch.rand(2, 2, 192), torch.tensor([[1, 9], [5, 2]])
    expected = utils.unpatchify(
        utils.set_at_index(patches, idx_mask - 1, predictions), 8
    )
    filled = fill_masked_patches(images, predictions, idx_mask, 8)
    assert torch.equal(filled, expected)


def test_predictions_of_half_precision() -> None:
    images = torch.rand(1, 1, 8, 8)
    predictions = torch.rand(1, 1, 16, dtype=torch.bfloat16)
    filled = fill_masked_patches(images, predictions, torch.tensor([[1]]), 4)
    assert filled.dtype == torch.float32
    assert torch.equal(filled[:, :, 4:], images[:, :, 4:])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(patch_size=5), r"do not consist of patches of \(5, 5\)"),
        (dict(patch_size=(4, 4, 4)), "do not consist of patches"),
        (dict(predictions=torch.rand(1, 2, 48)), r"need predictions \(1, 1, 48\)"),
        (dict(idx_mask=torch.tensor([[0]])), "from 1 to 4, got 0 to 0. Say how many"),
        (dict(idx_mask=torch.tensor([[5]])), "from 1 to 4, got 5 to 5"),
    ],
)
def test_errors(change, message) -> None:
    arguments = dict(
        images=torch.rand(1, 3, 8, 8),
        predictions=torch.rand(1, 1, 48),
        idx_mask=torch.tensor([[1]]),
        patch_size=4,
    )
    with pytest.raises(ValueError, match=message):
        fill_masked_patches(**arguments | change)
