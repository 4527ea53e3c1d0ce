"""Chooses the maps of a pyramid among all outputs of a dry pass."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn

from lightly_dira.features.maps_and_tokens import (
    BATCH,
    Level,
    Map,
    images_in,
    is_at_pixel,
    stride_of,
    tokens_in,
)

# Number of maps of a network that keeps one resolution, as in UNETR and DPT.
_DEPTHS = 4


class Output(NamedTuple):
    """A tensor that a module has output, and the shape of the module's input."""

    module: str
    number: int
    shape: torch.Size
    entered: torch.Size | None
    changed: tuple[int, ...]  # tokens that a pixel changes most, if they are few
    alias: tuple[str, int]  # of the inner module that first output this tensor


def levels_of(
    backbone: nn.Module,
    outputs: list[Output],
    size: tuple[int, ...],
    layers: Sequence[str] | None,
) -> list[Level]:
    """Chooses the maps of a pyramid, finest first, or takes those named."""
    maps = _read(outputs, size) if len(size) in (2, 3) else {}
    counts = Counter(output.module for output in outputs)
    if layers is not None:
        chosen = [_named(layer, maps, outputs) for layer in layers]
    else:
        chosen = _last_of_each_octave(maps)
        if len(chosen) < 2:
            # A U-Net of nested parts has coarser maps inside than it takes and outputs.
            chosen = _of_several_depths(maps, backbone, size) or _last_of_each_octave(
                maps, nested=True
            )
    if len(chosen) < 2:
        raise ValueError(
            "DiRA: a U-Net needs feature maps (B, C, H, W) of at least two "
            "resolutions, or of several equal blocks of one resolution, with tokens "
            f"row by row, but {type(backbone).__name__} has {len(chosen)}. Wrap the "
            "part of the model that has them. Modules and output shapes:\n"
            f"{table_of(outputs)}"
        )
    levels = [
        Level(
            (output.module, output.number),
            output.alias,
            f"{output.module}[{output.number}]"
            if counts[output.module] > 1
            else output.module,
            maps[output].channels,
            stride_of(maps[output].sides, size),
            maps[output].layout,
            maps[output].before,
            maps[output].after,
            counts[output.module] == 1,
            (tuple(size), maps[output].sides),
        )
        for output in chosen
    ]
    strides = [level.stride for level in levels]
    by_axis = zip(*(level.strides(len(size)) for level in levels), strict=True)
    if any(list(axis) != sorted(axis) for axis in by_axis):
        raise ValueError(
            "DiRA: expected `layers` from the finest map to the coarsest, got strides "
            f"{strides} for {layers}."
        )
    return levels


def pixel_of(size: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the coordinates of the pixel in which the images of the pass differ.

    For strides from 4 to 32, it lies well inside one position of the map.
    """
    places = [side * (i + 2) // 4 // 32 * 32 + 10 for i, side in enumerate(size)]
    return tuple(min(p, side - 1) for p, side in zip(places, size, strict=True))


def _read(outputs: list[Output], size: tuple[int, ...]) -> dict[Output, Map]:
    """Returns, in order, every output that is a map of the image, with its layout."""
    counts = {output.shape[1] for output in outputs if len(output.shape) == 3}
    images = {
        output: []
        if _is_attention(output.shape, counts)
        else images_in(output.shape, size)
        for output in outputs
    }
    grids = {readings[0].sides for readings in images.values() if readings}
    # A cube, such as (2, 96, 96, 96), is read with the layout of its neighbours.
    layouts: dict[str, Counter[str]] = defaultdict(Counter)
    for output, readings in images.items():
        if len(readings) == 1:
            layouts[_parent(output.module)][readings[0].layout] += 1
    tokens = _read_tokens(outputs, size, grids)
    maps: dict[Output, Map] = {}
    for output, readings in images.items():
        votes = layouts[_parent(output.module)]
        reading = max(readings, key=lambda image: votes[image.layout], default=None)
        if len(output.shape) == 3 and output.shape[1] in tokens:
            reading = tokens[output.shape[1]]._replace(channels=output.shape[2])
        if reading is None:
            continue
        entered = output.entered or torch.Size()
        before = next(iter(images_in(entered, size)), None)
        if len(entered) == 3:
            before = tokens.get(entered[1])
        octave = before.octave if before else None
        maps[output] = reading._replace(entered_octave=octave)
    # The backbone's own output repeats that of a module, unless it is a list of maps.
    listed = {reading.octave for output, reading in maps.items() if not output.module}
    return {o: maps[o] for o in maps if o.module or len(listed) > 1}


def _read_tokens(
    outputs: list[Output], size: tuple[int, ...], grids: set[tuple[int, ...]]
) -> dict[int, Map]:
    """Returns how the tokens of an image are laid out, by their number."""
    pixel = pixel_of(size)
    alike: dict[int, list[tuple[int, ...]]] = defaultdict(list)
    for output in outputs:
        if len(output.shape) == 3 and output.shape[0] == BATCH:
            alike[output.shape[1]].append(output.changed)
    found = {}
    for count, changes in alike.items():
        telling = [changed for changed in changes if changed]
        readings = (
            tokens_in(count, changed, pixel, size, grids) for changed in telling or [()]
        )
        reading = next((reading for reading in readings if reading), None)
        # In deeper layers, the change reaches other tokens, too. But if it is rarely
        # found at the changed pixel, the tokens have been reordered.
        if reading is not None:
            places = [is_at_pixel(reading, changed, pixel, size) for changed in telling]
            if 2 * sum(places) >= len(places):
                found[count] = reading
    return found


def _is_attention(shape: torch.Size, counts: set[int]) -> bool:
    """Whether a tensor holds a number for every pair of tokens."""
    return len(shape) == 4 and shape[2] == shape[3] and shape[2] in counts


def _last_of_each_octave(
    maps: dict[Output, Map], *, nested: bool = False
) -> list[Output]:
    spans: dict[str, set[tuple[int, int]]] = defaultdict(set)
    for output, reading in maps.items():
        if reading.entered_octave is not None:
            spans[output.module].add((reading.entered_octave, reading.octave))
    finished: dict[int, Output] = {}
    unfinished: dict[int, Output] = {}
    for output, reading in maps.items():
        path = output.module.split(".")
        around = [spans[".".join(path[: i + 1])] for i in range(len(path))]
        # Its size differs from those around it: an attention matrix or a pooled key.
        if not nested and any(
            span and not any(first <= reading.octave <= last for first, last in span)
            for span in around
        ):
            continue
        halving = any((reading.octave, reading.octave + 1) in s for s in around[:-1])
        (unfinished if halving else finished)[reading.octave] = output
    return [output for _, output in sorted({**unfinished, **finished}.items())]


def _of_several_depths(
    maps: dict[Output, Map], backbone: nn.Module, size: tuple[int, ...]
) -> list[Output]:
    """Chooses among the equal blocks of one container that hold most parameters."""
    rows: dict[tuple[str, type, int], dict[str, Output]] = defaultdict(dict)
    for output in maps:
        block = backbone.get_submodule(output.module)
        parameters = sum(parameter.numel() for parameter in block.parameters())
        row = rows[_parent(output.module), type(block), parameters]
        row.setdefault(output.module, output)
    repeated = {kind: list(row.values()) for kind, row in rows.items() if len(row) > 1}
    if not repeated:
        return []
    blocks = max(repeated.items(), key=lambda item: item[0][2] * len(item[1]))[1]
    stride = max(full // s for full, s in zip(size, maps[blocks[0]].sides, strict=True))
    count = min(_DEPTHS, len(blocks), stride.bit_length())
    return [blocks[round(len(blocks) * (i + 1) / count) - 1] for i in range(count)]


def _named(layer: str, maps: dict[Output, Map], outputs: list[Output]) -> Output:
    """Returns the last map of a module, or the one that `name[number]` names."""
    found = [
        output
        for output in maps
        if layer in (output.module, f"{output.module}[{output.number}]")
    ]
    if not found:
        raise ValueError(
            f"DiRA: no module {layer!r} of the backbone outputs a feature map "
            f"(B, C, H, W). Modules and output shapes:\n{table_of(outputs)}"
        )
    return found[-1]


def _parent(name: str) -> str:
    return name.rpartition(".")[0]


def table_of(outputs: list[Output]) -> str:
    """Lists modules and the shapes of their outputs, for errors."""
    return "\n".join(
        f"  {output.module or '(backbone)'}: {tuple(output.shape)}"
        for output in outputs
    )
