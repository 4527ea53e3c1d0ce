"""How each distortion changes images of a batch in place, on their device."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lightly_dira.transforms.albumentations_steps import ElasticInPlane
from lightly_dira.transforms.batch_blocks import Blocks, Chosen, move_pixels
from lightly_dira.transforms.grey_curves import (
    POINTS,
    STEPS,
    NonLinearIntensity,
    cubic,
)
from lightly_dira.transforms.paintings import InPainting, OutPainting, Painting
from lightly_dira.transforms.shuffling import TRIES, PatchShuffling, PixelShuffling


def _paint(painting: Painting, chosen: Chosen) -> None:
    """Fills blocks, or all but blocks."""
    sizes, count = chosen.sizes, painting.count
    starts, lengths = [], []
    for size, (low, high) in zip(sizes, painting.limits(sizes), strict=True):
        margin = min(round(painting.margin * size), (size - 1) // 2)
        length = chosen.integers(low, high, count).clamp(max=size - 2 * margin)
        lengths.append(length)
        starts.append(chosen.integers(margin, size - margin - length, count))
    # A block is there if none before it was the last.
    goes_on = (chosen.uniform(count) >= painting.stop).roll(1, dims=1)
    goes_on[:, 0] = True
    there = goes_on.cumprod(dim=1)[..., None]
    blocks = Blocks(torch.stack(starts, -1), torch.stack(lengths, -1))
    first, *rest = (axis.float() for axis in blocks.inside(sizes))
    axes = "dhw"[-len(sizes) :]
    operands = ",".join(f"bk{axis}" for axis in axes)
    covered = torch.einsum(f"{operands}->b{axes}", first * there, *rest)[:, None]
    inside = isinstance(painting, InPainting)
    kept = (covered == 0 if inside else covered > 0).float()
    if painting.fill == "black":
        for images, own in chosen.with_own(kept):
            images.mul_(own)
        return
    noise = chosen.uniform(chosen.channels, *sizes)
    for images, own, values in chosen.with_own(kept, noise):
        images.mul_(own).add_((1 - own) * values)


def _exchange_blocks(shuffling: PatchShuffling, chosen: Chosen) -> None:
    """Exchanges pairs of blocks, of which no two overlap."""
    sizes, count = chosen.sizes, shuffling.count
    limits = shuffling.limits(sizes)
    lengths = _lengths(chosen, limits, count)
    # Of each axis the places that a block may try, (B, pairs, 2, tries).
    tries = [
        chosen.integers(0, size - length[..., None, None], count, 2, TRIES).int()
        for size, length in zip(sizes, lengths.unbind(-1), strict=True)
    ]
    starts = torch.zeros_like(tries[0][..., : len(sizes)])
    exist = torch.zeros_like(starts[..., 0], dtype=torch.bool)
    for pair, member in itertools.product(range(count), range(2)):
        known = slice(None), slice(pair + 1)
        meets = exist[known].flatten(1)[:, None]
        for axis, its in enumerate(tries):
            place = its[:, pair, member, :, None]
            length = lengths[:, :, axis].int()
            known_starts = starts[known][..., axis].flatten(1)[:, None]
            theirs = length[known].repeat_interleave(2, dim=1)[:, None]
            past = place - known_starts
            meets = meets & (past < theirs) & (past > -length[:, pair, None, None])
        free = ~meets.any(dim=2)
        found = free.byte().argmax(dim=1, keepdim=True)
        own = [its[:, pair, member].gather(1, found) for its in tries]
        starts[:, pair, member] = torch.cat(own, dim=1)
        exist[:, pair, member] = free.any(dim=1)
        if member:
            # Where the second finds no place, the first one is given up.
            exist[:, pair] = exist[:, pair].all(dim=1, keepdim=True)
    blocks = Blocks(starts.flatten(1, 2), lengths.repeat_interleave(2, dim=1))
    places = blocks.positions(blocks.numbers(limits), sizes)
    others = places.view(-1, count, 2, places.shape[2]).flip(2).flatten(1, 2)
    move_pixels(chosen, places, others, exist.flatten(1))


def _shuffle_pixels(shuffling: PixelShuffling, chosen: Chosen) -> None:
    """Shuffles the pixels in each block; of blocks that overlap the last one counts."""
    sizes, count = chosen.sizes, shuffling.count
    limits = shuffling.limits(sizes)
    lengths = _lengths(chosen, limits, count)
    starts = [
        chosen.integers(0, size - length, count)
        for size, length in zip(sizes, lengths.unbind(-1), strict=True)
    ]
    blocks = Blocks(torch.stack(starts, -1), lengths)
    numbers = blocks.numbers(limits)
    # The order of random keys; those past a block's last pixel come last.
    keys = chosen.uniform(*numbers.shape[1:])
    past = torch.arange(numbers.shape[2], device=keys.device) >= blocks.volumes
    shuffled = keys.masked_fill_(past, 2).argsort(dim=2).gather(2, numbers)
    places, sources = (blocks.positions(n, sizes) for n in (numbers, shuffled))
    move_pixels(chosen, places, sources)


def _lengths(chosen: Chosen, limits: Sequence[tuple[int, int]], count: int) -> Tensor:
    """Draws the sides of blocks, (B, count, axes)."""
    return torch.stack([chosen.integers(*axis, count) for axis in limits], dim=-1)


def _map_greys(curve: NonLinearIntensity, chosen: Chosen) -> None:
    """Maps each image through a curve of its own."""
    low, high = chosen.uniform(2, 2, 1).sort(dim=2).values.unbind(dim=2)
    falls = chosen.uniform(1) < curve.inverted
    t = torch.linspace(0, 1, POINTS, device=chosen.device)
    x, y = cubic(t, low, high).unbind(dim=1)
    y = torch.where(falls, 1 - y, y)
    # Resampled to even steps, so that no pixel has to be searched for.
    even = torch.linspace(0, 1, STEPS + 1, device=chosen.device).expand(len(x), -1)
    right = torch.searchsorted(x.contiguous(), even.contiguous()).clamp(1, POINTS - 1)
    (x0, x1), (y0, y1) = ((c.gather(1, right - 1), c.gather(1, right)) for c in (x, y))
    part = (even - x0) / (x1 - x0).clamp_min(1e-12)
    tables = torch.lerp(y0, y1, part.clamp(0, 1))
    for images, table in chosen.with_own(tables):
        places = images.flatten(1).float().clamp(0, 1) * STEPS
        below = places.long().clamp(max=STEPS - 1)
        left, right = (table.gather(1, below + i) for i in range(2))
        images.copy_(torch.lerp(left, right, places - below).view_as(images))


def _deform(elastic: ElasticInPlane, chosen: Chosen) -> None:
    """Moves pixels by smoothed noise, the same in all slices."""
    height, width = chosen.sizes[-2:]
    # In 64 bits, which autocast leaves alone.
    noise = elastic.alpha * (2 * chosen.uniform(2, height, width).double() - 1)
    down, across = (
        _smoothing(size, elastic.sigma, chosen.device) for size in (height, width)
    )
    # In units of `grid_sample`: from -1, the first pixel, to 1, the last.
    right, below = (down @ noise @ across.T).float().unbind(dim=1)
    rows, columns = (
        torch.linspace(-1, 1, size, device=chosen.device) for size in (height, width)
    )
    right = columns + right * (2 / max(1, width - 1))
    below = rows[:, None] + below * (2 / max(1, height - 1))
    for images, grid in chosen.with_own(torch.stack([right, below], dim=-1)):
        planes = images.flatten(1, -3)
        moved = F.grid_sample(
            planes,
            grid.to(planes.dtype),
            padding_mode="reflection",
            align_corners=True,
        )
        images.copy_(moved.view_as(images))


def _smoothing(size: int, sigma: float, device: torch.device) -> Tensor:
    """Returns the matrix that smooths along an axis by a Gaussian, with mirrors."""
    reach = round(4 * sigma)
    offset = torch.arange(-reach, reach + 1, device=device)
    weight = torch.softmax(-0.5 * (offset.double() / sigma).square(), dim=0)
    period = 2 * max(1, size - 1)
    place = (torch.arange(size, device=device)[:, None] + offset) % period
    place = torch.minimum(place, period - place).clamp(max=size - 1)
    matrix = torch.zeros(size, size, dtype=torch.float64, device=device)
    return matrix.scatter_add_(1, place, weight.expand(size, -1).contiguous())


KERNELS: dict[type, Callable[[Any, Chosen], None]] = {
    InPainting: _paint,
    OutPainting: _paint,
    PatchShuffling: _exchange_blocks,
    PixelShuffling: _shuffle_pixels,
    NonLinearIntensity: _map_greys,
    ElasticInPlane: _deform,
}
