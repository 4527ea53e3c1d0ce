"""Reading a tensor as a feature map: channels first, channels last or tokens."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

# Images in the dry pass that shapes are read of.
BATCH = 2
# Class, distillation and register tokens that may be among those of the image.
_MOST_EXTRA_TOKENS = 9


class DroppedTokensError(RuntimeError):
    """A map of tokens that does not hold all of the image's."""


class Level(NamedTuple):
    """One feature map: which of a module's outputs, and how it is laid out.

    Attributes:
        key: Name of the module, and which of the tensors that it outputs in one pass.
        same: Another key of the very same tensor: that of the innermost module.
        name: The module's name, with the number where it outputs several.
        channels: Channels of the map.
        stride: Pixels of the image, along each side, per position of the map.
        layout: "channels first", "channels last" or "tokens".
        before: Class and register tokens in front of those of the image.
        after: The same, behind them.
        once: Whether its module outputs one tensor in a pass.
    """

    key: tuple[str, int]
    same: tuple[str, int]
    name: str
    channels: int
    stride: int
    layout: str
    before: int
    after: int
    once: bool

    def as_map(self, output: Tensor, size: Sequence[int]) -> Tensor:
        """Returns the output as (B, C, h, w), without a copy.

        Args:
            output: What the module has output.
            size: (H, W) of the images.

        Raises:
            DroppedTokensError: If tokens of the image are missing.
            RuntimeError: If it is not such a map of an image of this size.
        """
        if self.layout == "tokens" and output.ndim == 3:
            tokens = output[:, self.before : output.shape[1] - self.after]
            grid = _grid(tokens.shape[1], size[0] / size[1])
            found = tokens.movedim(-1, 1).reshape(len(tokens), -1, *grid)
        else:
            found = output.movedim(-1, 1) if self.layout == "channels last" else output
        expected = [side / self.stride for side in size]
        if found.shape[1:2] != (self.channels,) or any(
            abs(side - wanted) > max(1.5, 0.25 * wanted)
            for side, wanted in zip(found.shape[2:], expected, strict=True)
        ):
            h, w = (round(side) for side in expected)
            dropped = self.layout == "tokens" and found.shape[1] == self.channels
            raise (DroppedTokensError if dropped else RuntimeError)(
                f"DiRA: {self.name} output {tuple(output.shape)} for an image of "
                f"{tuple(size)} pixels, expected {self.channels} channels "
                f"({self.layout}) at about {h} x {w} positions. In training the "
                "backbone must do what it does in evaluation. A pass that drops tokens "
                "cannot be restored: pass one view whole, and leave the choice to "
                "DiRATransform(target_view=None) or name that view."
            )
        return found


class Map(NamedTuple):
    """How a tensor may be read as a map of the image."""

    layout: str
    channels: int
    sides: tuple[int, ...]
    octave: int  # how often the image's sides were halved
    before: int = 0
    after: int = 0
    entered_octave: int | None = None  # of what went into the module


def images_in(shape: torch.Size, size: tuple[int, ...]) -> list[Map]:
    """Reads (B, C, h, w) or (B, h, w, C), whichever fits better; a cube as both."""
    if len(shape) != 4 or shape[0] != BATCH:
        return []
    readings = [
        Map(layout, channels, tuple(sides), octave)
        for layout, channels, sides in (
            ("channels first", shape[1], shape[2:]),
            ("channels last", shape[3], shape[1:3]),
        )
        if (octave := _octave(sides, size)) is not None
    ]
    misfits = [_misfit(r.sides, size) + _odd_stride(r.sides, size) for r in readings]
    best = min(misfits, default=0)
    return [r for r, misfit in zip(readings, misfits, strict=True) if misfit == best]


def tokens_in(
    count: int,
    changed: Sequence[int],
    pixel: Sequence[int],
    size: tuple[int, ...],
    grids: Iterable[tuple[int, ...]],
) -> Map | None:
    """Reads (B, N, C): the positions of the image, row by row, and a few tokens more.

    Args:
        count: The number of tokens, N.
        changed: The tokens that a change of one pixel changes most; none where it
            changes all of them alike.
        pixel: That pixel's place, (y, x).
        size: (H, W) of the images.
        grids: Sides of other maps, (h, w).
    """
    strides = range(1, min(size) // 2 + 1)
    patches = [tuple(side // stride for side in size) for stride in strides]
    extras = {grid: count - math.prod(grid) for grid in [*grids, *patches]}
    fitting = [
        (grid, octave, extra)
        for grid, extra in sorted(extras.items(), key=lambda item: item[1])
        if (octave := _octave(grid, size)) is not None
        and 0 <= extra <= _MOST_EXTRA_TOKENS
    ]
    for tolerance in (0, 1):
        for grid, octave, extra in fitting:
            # In front, all of them; or else, where that is certain, behind.
            for before in (extra, 0) if tolerance == 0 else (extra,):
                found = Map("tokens", 0, grid, octave, before, extra - before)
                if not changed or in_place(found, changed[:1], pixel, size, tolerance):
                    return found
    return None


def in_place(
    tokens: Map,
    changed: Sequence[int],
    pixel: Sequence[int],
    size: tuple[int, ...],
    tolerance: int = 1,
) -> bool:
    """Whether one of the changed tokens is where the changed pixel is.

    Overlapping patches may carry a change on to the next position.
    """
    place = [
        p * n // side for p, n, side in zip(pixel, tokens.sides, size, strict=True)
    ]
    for index in changed:
        found = divmod(index - tokens.before, tokens.sides[1])
        distances = (abs(a - b) for a, b in zip(found, place, strict=True))
        if max(distances) <= tolerance:
            return True
    return False


def _octave(sides: Sequence[int], size: tuple[int, ...]) -> int | None:
    """How often the image's sides were halved, or None for what is no map of it.

    Convolutions without padding shave pixels off and change nothing about it.
    """
    if any(not 2 <= side <= full for side, full in zip(sides, size, strict=True)):
        return None
    # A map as high as wide, of an image that is not, has been pooled.
    if (sides[0] == sides[1]) != (size[0] == size[1]):
        return None
    if _misfit(sides, size) > max(1, 0.1 * sides[0]):
        return None
    return round(math.log2(math.prod(size) / math.prod(sides)) / 2)


def _misfit(sides: Sequence[int], size: tuple[int, ...]) -> float:
    """How much higher or lower, in positions, than the image's proportions ask."""
    return abs(sides[0] - sides[1] * size[0] / size[1])


def _odd_stride(sides: Sequence[int], size: tuple[int, ...]) -> float:
    """How far the stride is from a power of two."""
    octave = math.log2(size[0] / sides[0])
    return abs(octave - round(octave))


@functools.lru_cache
def _grid(count: int, proportion: float) -> tuple[int, int]:
    """Lays tokens out as (h, w), as near as can be to the image's proportion."""
    heights = (height for height in range(1, count + 1) if count % height == 0)
    height = min(heights, key=lambda h: abs(math.log(h * h / count / proportion)))
    return height, count // height
