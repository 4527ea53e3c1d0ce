"""Whole images from what masked image models predict: MAE, SimMIM and others."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lightly.models.utils import set_at_index
from torch import Tensor


def fill_masked_patches(
    images: Tensor,
    predictions: Tensor,
    idx_mask: Tensor,
    patch_size: int | Sequence[int],
    *,
    prefix_tokens: int = 1,
    normalized: bool = False,
) -> Tensor:
    """Puts predicted patches into the images, whose other patches stay as they are.

    Masked image models of Lightly (MAE [0], SimMIM, Pixio) predict the pixels of masked
    tokens only. An adversary needs whole images:

        restored = fill_masked_patches(images, predictions, idx_mask, patch_size)
        loss = adversary(loss, restored, images)

    Values of a patch are ordered as by `lightly.models.utils.patchify`, position by
    position with the channels last, patches row by row; those of volumes likewise.
    AIM [1] has no class token and predicts all patches, normalised:
    ``fill_masked_patches(images, predictions, idx, patch_size, prefix_tokens=0,
    normalized=True)`` with ``idx = torch.arange(num_patches).expand(len(images), -1)``.
    Pixio has ``prefix_tokens=vit.num_prefix_tokens`` and normalised targets.

    - [0]: Masked Autoencoders, 2021, https://arxiv.org/abs/2111.06377
    - [1]: AIM, 2024, https://arxiv.org/abs/2401.08541

    Args:
        images: Clean images, (B, C, H, W), or volumes, (B, C, D, H, W).
        predictions: Values of the masked patches, (B, M, patch values).
        idx_mask: The tokens that are masked, (B, M), as `random_token_mask` gives them.
        patch_size: Sides of a patch, in pixels.
        prefix_tokens: Tokens before those of the first patch, such as a class token.
        normalized: Whether the method's targets are patches of mean 0 and deviation 1
            (`normalize_mean_var`). Each prediction then gets the mean and the deviation
            of its own clean patch.

    Returns:
        Images like `images`, with gradients for the predictions. Visible patches are
        exactly the clean ones.

    Raises:
        ValueError: If the sides are no multiples of the patch's, predictions have
            another shape, or a masked token is no patch.

    Examples:
        >>> import torch
        >>> from lightly.models.utils import get_at_index, patchify
        >>> from lightly_dira.models import fill_masked_patches
        >>> images, idx_mask = torch.rand(2, 3, 32, 32), torch.tensor([[1, 4], [2, 3]])
        >>> perfect = get_at_index(patchify(images, 16), idx_mask - 1)
        >>> torch.equal(fill_masked_patches(images, perfect, idx_mask, 16), images)
        True
    """
    sides = images.shape[2:]
    if isinstance(patch_size, int):
        patch_size = (patch_size,) * len(sides)
    if len(patch_size) != len(sides) or any(
        side % own for side, own in zip(sides, patch_size, strict=False)
    ):
        raise ValueError(
            f"fill_masked_patches: images of {tuple(sides)} pixels do not consist of "
            f"patches of {tuple(patch_size)}."
        )
    grid = [side // own for side, own in zip(sides, patch_size, strict=True)]
    values = images.shape[1] * math.prod(patch_size)
    if predictions.shape != (*idx_mask.shape, values):
        raise ValueError(
            f"fill_masked_patches: {idx_mask.shape[1]} masked patches of {values} "
            f"values need predictions {(*idx_mask.shape, values)}, got "
            f"{tuple(predictions.shape)}."
        )
    places = idx_mask - prefix_tokens
    if images.device.type == "cpu" and places.numel():
        low, high = (int(place) for place in places.aminmax())
        if low < 0 or high >= math.prod(grid):
            raise ValueError(
                f"fill_masked_patches: masked tokens are those of patches, from "
                f"{prefix_tokens} to {prefix_tokens + math.prod(grid) - 1}, got "
                f"{low + prefix_tokens} to {high + prefix_tokens}. Say how many tokens "
                "come before the patches, prefix_tokens=..., and leave them unmasked."
            )
    patches = _patchify(images, grid, patch_size)
    if normalized:
        clean = patches.gather(1, places[..., None].expand(-1, -1, values))
        deviation = (clean.var(dim=-1, keepdim=True) + 1e-6).sqrt()
        predictions = predictions * deviation + clean.mean(dim=-1, keepdim=True)
    filled = set_at_index(patches, places, predictions.to(patches.dtype))
    return _unpatchify(filled, grid, patch_size)


def _patchify(images: Tensor, grid: Sequence[int], patch: Sequence[int]) -> Tensor:
    """Turns (B, C, ...) into patches (B, N, values), of images that need not be square.

    The order is that of Lightly's `patchify`.
    """
    dims = len(grid)
    pairs = [side for both in zip(grid, patch, strict=True) for side in both]
    split = images.reshape(*images.shape[:2], *pairs)
    # (B, C, grid, patch, grid, patch, ...) to (B, grid ..., patch ..., C).
    order = [0, *range(2, 2 + 2 * dims, 2), *range(3, 3 + 2 * dims, 2), 1]
    return split.permute(order).reshape(len(images), math.prod(grid), -1)


def _unpatchify(patches: Tensor, grid: Sequence[int], patch: Sequence[int]) -> Tensor:
    """Turns patches back into images."""
    dims = len(grid)
    split = patches.reshape(len(patches), *grid, *patch, -1)
    # (B, grid ..., patch ..., C) to (B, C, grid, patch, grid, patch, ...).
    order = [place for axis in range(1, 1 + dims) for place in (axis, axis + dims)]
    joined = split.permute(0, 1 + 2 * dims, *order)
    sides = [many * own for many, own in zip(grid, patch, strict=True)]
    return joined.reshape(len(patches), joined.shape[1], *sides)
