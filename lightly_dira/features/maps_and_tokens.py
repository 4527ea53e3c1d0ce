"""Reading a tensor as a feature map: channels first, channels last or tokens."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

# Number of images in the dry pass.
BATCH = 2
# Strides of a volume along two axes differ by at most this many doublings.
_MOST_UNEQUAL = 4
# At most this many class, distillation and register tokens join those of the image.
_MOST_EXTRA_TOKENS = 9


class DroppedTokensError(RuntimeError):
    """Some of the image's tokens are missing from a map."""


class Level(NamedTuple):
    """One feature map: which output of which module it is, and how it is laid out.

    Attributes:
        key: Name of the module, and the tensor's index among its outputs in one pass.
        alias: Another key of the very same tensor: that of the innermost module.
        name: The module's name, with the number where it outputs several.
        channels: Channels of the map.
        stride: Pixels of the image, along each side, per position of the map; a tuple
            if it differs by side.
        layout: "channels first", "channels last" or "tokens".
        before: Number of class and register tokens before those of the image.
        after: The same, after those of the image.
        once: Whether its module outputs one tensor in a pass.
        known: Sides of an image, in pixels, and those of its map, in positions.
    """

    key: tuple[str, int]
    alias: tuple[str, int]
    name: str
    channels: int
    stride: int | tuple[int, ...]
    layout: str
    before: int
    after: int
    once: bool
    known: tuple[tuple[int, ...], tuple[int, ...]]

    def strides(self, dimensions: int) -> tuple[int, ...]:
        """Returns the stride along each side."""
        stride = self.stride
        return (stride,) * dimensions if isinstance(stride, int) else stride

    def as_map(self, output: Tensor, size: Sequence[int]) -> Tensor:
        """Returns the output as (B, C, h, w) or (B, C, d, h, w), without a copy.

        Args:
            output: What the module has output.
            size: (H, W) or (D, H, W) of the images.

        Raises:
            DroppedTokensError: If tokens of the image are missing.
            RuntimeError: If the output is not this map of an image of this size.
        """
        if self.layout == "tokens" and output.ndim == 3:
            tokens = output[:, self.before : output.shape[1] - self.after]
            grid = _grid(tokens.shape[1], tuple(size), self.known)
            found = tokens.movedim(-1, 1)
            if grid is not None:
                found = found.reshape(len(tokens), -1, *grid)
        else:
            found = output.movedim(-1, 1) if self.layout == "channels last" else output
        expected = [
            side / stride
            for side, stride in zip(size, self.strides(len(size)), strict=True)
        ]
        sides = found.shape[2:]
        if (found.shape[1:2], len(sides)) != ((self.channels,), len(size)) or any(
            abs(side - wanted) > max(1.5, 0.25 * wanted)
            for side, wanted in zip(sides, expected, strict=True)
        ):
            positions = " x ".join(str(round(side)) for side in expected)
            dropped = self.layout == "tokens" and found.shape[1] == self.channels
            raise (DroppedTokensError if dropped else RuntimeError)(
                f"DiRA: {self.name} output {tuple(output.shape)} for an image of "
                f"{tuple(size)} pixels, expected {self.channels} channels "
                f"({self.layout}) at about {positions} positions. In training the "
                "backbone must do what it does in evaluation. A pass that drops tokens "
                "cannot be restored: pass one view whole, and name it as `target_view` "
                "or let DiRATransform(target_view=None) choose. If none drops any, say "
                "of which size views are: FeaturePyramid(backbone, input_size=...)."
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
    entered_octave: int | None = None  # of the module's input


def images_in(shape: torch.Size, size: tuple[int, ...]) -> list[Map]:
    """Reads (B, C, h, w) or (B, h, w, C), whichever fits better; a cube as both.

    Volumes have another side, d, before h.
    """
    if len(shape) != len(size) + 2 or shape[0] != BATCH:
        return []
    readings = [
        Map(layout, channels, tuple(sides), octave)
        for layout, channels, sides in (
            ("channels first", shape[1], shape[2:]),
            ("channels last", shape[-1], shape[1:-1]),
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
    """Reads (B, N, C) as the image's positions, row by row, and a few extra tokens.

    Args:
        count: The number of tokens, N.
        changed: The tokens that change most when one pixel changes; empty if all of
            them change alike.
        pixel: That pixel's coordinates, (y, x).
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
            # All extra tokens come first; or last, if the pixel is found exactly there.
            for before in (extra, 0) if tolerance == 0 else (extra,):
                found = Map("tokens", 0, grid, octave, before, extra - before)
                if not changed or is_at_pixel(
                    found, changed[:1], pixel, size, tolerance
                ):
                    return found
    return None


def is_at_pixel(
    tokens: Map,
    changed: Sequence[int],
    pixel: Sequence[int],
    size: tuple[int, ...],
    tolerance: int = 1,
) -> bool:
    """Whether one of the changed tokens lies at the changed pixel.

    With overlapping patches, a change may also reach the next position.
    """
    place = [
        p * n // side for p, n, side in zip(pixel, tokens.sides, size, strict=True)
    ]
    for index in changed:
        number = index - tokens.before
        if not 0 <= number < math.prod(tokens.sides):
            continue
        found = np.unravel_index(number, tokens.sides)
        distances = (abs(int(a) - b) for a, b in zip(found, place, strict=True))
        if max(distances) <= tolerance:
            return True
    return False


def _octave(sides: Sequence[int], size: tuple[int, ...]) -> int | None:
    """How often the image's sides were halved, or None if this is not a map of it.

    Convolutions without padding cut some pixels off; this does not change the result.
    """
    if len(size) == 3:
        return _octave_of_volume(sides, size)
    if any(not 2 <= side <= full for side, full in zip(sides, size, strict=True)):
        return None
    # A square map of an image that is not square has been pooled.
    if (sides[0] == sides[1]) != (size[0] == size[1]):
        return None
    if _misfit(sides, size) > max(1, 0.1 * sides[0]):
        return None
    return round(math.log2(math.prod(size) / math.prod(sides)) / 2)


def _octave_of_volume(sides: Sequence[int], size: tuple[int, ...]) -> int | None:
    """How often the longest-halved side of a volume was halved.

    Strides may differ by axis there, as slices are often further apart than pixels.
    """
    if any(not 1 <= side <= full for side, full in zip(sides, size, strict=True)):
        return None
    halvings = [
        round(math.log2(full / side)) for side, full in zip(sides, size, strict=True)
    ]
    if max(halvings) - min(halvings) > _MOST_UNEQUAL or max(sides) == 1:
        return None
    # A cubic map of a volume that is not cubic has been pooled, unless patches say so.
    pooled = len(set(sides)) == 1 < len(set(size))
    if pooled and any(
        full != side * 2**times
        for side, full, times in zip(sides, size, halvings, strict=True)
    ):
        return None
    for side, full, times in zip(sides, size, halvings, strict=True):
        if abs(side - full / 2**times) > max(0.5, min(1.0, 0.25 * side), 0.1 * side):
            return None
    return max(halvings)


def _misfit(sides: Sequence[int], size: tuple[int, ...]) -> float:
    """By how many positions the sides miss the image's proportions."""
    return max(
        abs(sides[0] - side * size[0] / full)
        for side, full in zip(sides[1:], size[1:], strict=True)
    )


def _odd_stride(sides: Sequence[int], size: tuple[int, ...]) -> float:
    """How far the stride is from a power of two."""
    octaves = [math.log2(full / side) for side, full in zip(sides, size, strict=True)]
    return abs(octaves[0] - round(octaves[0]))


def stride_of(sides: Sequence[int], size: tuple[int, ...]) -> int | tuple[int, ...]:
    """Returns pixels per position, as one number if it is the same for every side."""
    if len(size) == 2:
        return round(size[0] / sides[0])
    strides = tuple(round(full / side) for side, full in zip(sides, size, strict=True))
    return strides[0] if len(set(strides)) == 1 else strides


@functools.lru_cache
def _grid(
    count: int,
    size: tuple[int, ...],
    known: tuple[tuple[int, ...], tuple[int, ...]],
) -> tuple[int, ...] | None:
    """Arranges tokens in a grid, or returns None if they are not all of the image.

    What is left of dropped tokens may fill a grid of other sides. Where the number is
    not known from an image of the same size, the sides are those that the stride of the
    known ones allows; those of a square are equal.
    """
    full, sides = known
    if size == full:
        return sides if count == math.prod(sides) else None
    choices = map(_sides_of, size, sides, full)
    grids = (grid for grid in itertools.product(*choices) if math.prod(grid) == count)
    square = len({*size}) == len({*sides}) == len({*full}) == 1
    return next((g for g in grids if len({*g}) == 1 or not square), None)


def _sides_of(side: int, known: int, full: int) -> range:
    """Returns how many positions a side may have, if another one's are known.

    Patches that did not fill that one were cut off or padded, or overlap, so that their
    stride is not known exactly.
    """
    off = 1 if full % known else 0
    return range(
        max(1, side * known // full - off), -(-side * (known + 2 * off) // full) + 1
    )
