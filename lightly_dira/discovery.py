"""Finding the feature maps of a backbone, by one dry pass and never by its name."""

from __future__ import annotations

import contextlib
import itertools
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightly_dira.layouts import BATCH, Level, Map, images_in, in_place, tokens_in

# Sides of the images of the dry pass, in pixels, tried in this order after those that
# the backbone states itself. Where height and width differ, every shape tells which
# of its axes are those of the image.
_SIZES = ((64, 96), (64, 64), (224, 224), (256, 256), (32, 32))
# How many of the tokens that the change of a pixel changes most are looked at.
_WITNESSES = 5
# Maps of a network that keeps one resolution throughout, as in UNETR and DPT.
_DEPTHS = 4


class _Output(NamedTuple):
    """A tensor that a module has output, and the shape of what went in."""

    module: str
    number: int
    shape: torch.Size
    entered: torch.Size | None
    changed: tuple[int, ...]  # tokens that a pixel changes most, if it does so to few
    same: tuple[str, int]  # the module inside that output this very tensor first


def find_levels(
    backbone: nn.Module,
    input_size: int | tuple[int, int] | None = None,
    layers: Sequence[str] | None = None,
) -> tuple[list[Level], tuple[int, ...], str]:
    """Finds the last feature map of every resolution, finest first.

    Resolutions are powers of two of the image's. What a block that halves the
    resolution makes on its way down does not count where a finished map of the
    resolution exists: in a ResNet-50 the map at stride 4 is that of `layer1`, not an
    activation inside the first block of `layer2`. Where a backbone keeps one
    resolution throughout, as a vision transformer does, the maps are those of four of
    its equal blocks, spread evenly over its depth, the earliest as the finest.

    Args:
        backbone: The network to look into.
        input_size: Side of the images to try, or (height, width), in pixels; by default
            what the backbone states, then a few usual ones.
        layers: Names of the modules whose last outputs are the maps, finest to
            coarsest; `name[i]` is the i-th tensor of a module with several.

    Returns:
        The maps, (C, H, W) of the images that the backbone was run on, and the name of
        the innermost module that received them first, once in the pass.

    Raises:
        ValueError: If the backbone cannot be run on images or has no such maps.
    """
    if isinstance(layers, str) or (layers is not None and len(layers) < 2):
        raise ValueError(
            "DiRA: a U-Net needs at least two feature maps, `layers=[finest, ..., "
            f"coarsest]`, got {layers!r}."
        )
    if isinstance(input_size, int):
        input_size = input_size, input_size
    dimensions, stated = _first_convolution(backbone)
    sizes = [input_size] if input_size else [*_stated_sizes(backbone), *_SIZES]
    failures: dict[str, tuple[Exception, list[_Output]]] = {}
    for channels, size in itertools.product(dict.fromkeys((stated, 3, 1)), sizes):
        shape = (channels, *size[:dimensions])
        outputs: list[_Output] = []
        try:
            entry = _dry_pass(backbone, shape, outputs)
        except Exception as error:
            failures[str(shape)] = error, outputs
            continue
        return _levels(backbone, outputs, shape[1:], layers), shape, entry
    if any(hasattr(p, "to_local") or not p.numel() for p in backbone.parameters()):
        raise ValueError(
            f"DiRA: the weights of {type(backbone).__name__} are sharded over "
            "processes, so that it cannot be run by itself. Make DiRA first, then "
            "shard the model, make its optimiser and call `dira.attach(optimizer)`."
        )
    tried = "; ".join(f"{shape}: {error}" for shape, (error, _) in failures.items())
    longest = max((outputs for _, outputs in failures.values()), key=len)
    raise ValueError(
        f"DiRA: {type(backbone).__name__} could not be run on a batch of images to "
        "find its feature maps. Pass `input_size=` if it accepts one size only. Tried "
        f"(C, H, W) = {tried}. Modules and output shapes before that:\n"
        f"{_table(longest)}"
    )


def _levels(
    backbone: nn.Module,
    outputs: list[_Output],
    size: tuple[int, ...],
    layers: Sequence[str] | None,
) -> list[Level]:
    maps = _read(outputs, size) if len(size) == 2 else {}
    counts = Counter(output.module for output in outputs)
    if layers is not None:
        chosen = [_named(layer, maps, outputs) for layer in layers]
    else:
        chosen = _last_of_each_octave(maps)
        if len(chosen) < 2:
            chosen = _of_several_depths(maps, backbone, size) or chosen
    if len(chosen) < 2:
        raise ValueError(
            "DiRA: a U-Net needs feature maps (B, C, H, W) of at least two "
            "resolutions, or of several equal blocks of one resolution, with tokens "
            f"row by row, and {len(chosen)} came by in {type(backbone).__name__}. Wrap "
            "the part of the model that has them. Modules and output shapes:\n"
            f"{_table(outputs)}"
        )
    levels = [
        Level(
            (output.module, output.number),
            output.same,
            f"{output.module}[{output.number}]"
            if counts[output.module] > 1
            else output.module,
            maps[output].channels,
            round(size[0] / maps[output].sides[0]),
            maps[output].layout,
            maps[output].before,
            maps[output].after,
        )
        for output in chosen
    ]
    strides = [level.stride for level in levels]
    if strides != sorted(strides):
        raise ValueError(
            "DiRA: expected `layers` from the finest map to the coarsest, got strides "
            f"{strides} for {layers}."
        )
    return levels


def _first_convolution(backbone: nn.Module) -> tuple[int, int]:
    """Returns how many sides and channels the images have."""
    for module in backbone.modules():
        channels = getattr(module, "in_channels", None)
        kernel = getattr(module, "kernel_size", None)
        if isinstance(channels, int) and isinstance(kernel, tuple):
            return min(len(kernel), 2), channels
    return 2, 3


@contextlib.contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Puts modules into evaluation mode, then each submodule back into its own."""
    modes = [(m, m.training) for module in modules for m in module.modules()]
    # Not by `eval()`, which some modules extend by merging weights.
    for module, _ in modes:
        module.training = False
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextlib.contextmanager
def same_randomness(device: torch.device) -> Iterator[None]:
    """Leaves the random state of the CPU and of `device` as it was."""
    if device.type == "cpu":
        forked = torch.random.fork_rng(devices=[])
    else:
        forked = torch.random.fork_rng([device], device_type=device.type)
    with forked:
        yield


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yields the tensors in nested lists, tuples and dicts, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (Mapping, list, tuple)):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from tensors_in(item)


def _stated_sizes(backbone: nn.Module) -> Iterator[tuple[int, int]]:
    """Yields the image sizes that modules state as attributes."""
    for module in backbone.modules():
        for name in ("image_size", "img_size"):
            size = getattr(module, name, None)
            if isinstance(size, int):
                yield size, size
            elif isinstance(size, (tuple, list)) and len(size) == 2:
                yield int(size[0]), int(size[1])


def _pixel(size: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the place of the pixel that differs between the images of the pass.

    It is well inside its position of the map, for strides from 4 to 32.
    """
    places = [side * (i + 2) // 4 // 32 * 32 + 10 for i, side in enumerate(size)]
    return tuple(min(p, side - 1) for p, side in zip(places, size, strict=True))


def _dry_pass(
    backbone: nn.Module, shape: tuple[int, ...], outputs: list[_Output]
) -> str:
    """Runs the backbone on two images, equal but for a pixel, and lists all outputs.

    Returns the name of the module that is to be watched for images.
    """
    counts: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    # Modules, from the outside in, that had been called when the first one returned.
    receiving: list[str] = []
    returned = learned = False
    # By identity; the tensors are kept, since a freed one's identity is used again.
    first: dict[int, tuple[Tensor, tuple[str, int]]] = {}

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def enter(name: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        calls[name] += 1
        entered = next(tensors_in([args, kwargs]), None)
        if returned or entered is None or len(entered) != BATCH:
            return
        if entered.shape[2:] == shape[1:]:
            receiving.append(name)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def note(name: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        nonlocal learned, returned
        returned = True
        # Before any parameter has met it, a tensor is the image, however normalised.
        learned = learned or any(True for _ in module.parameters())
        entered = next(tensors_in([args, kwargs]), None)
        before = None if entered is None else entered.shape
        for tensor in tensors_in(output):
            changed: tuple[int, ...] = ()
            if tensor.ndim == 3 and len(tensor) == BATCH:
                change = (tensor[0] - tensor[1]).abs().sum(dim=-1)
                most = change.topk(min(_WITNESSES, len(change)))
                if most.values[:1] > 2 * change.median():
                    changed = tuple(most.indices.tolist())
            key = name, counts[name]
            same = first.setdefault(id(tensor), (tensor, key))[1]
            if learned:
                outputs.append(_Output(*key, tensor.shape, before, changed, same))
            counts[name] += 1

    weight = next(backbone.parameters(), None)
    if weight is None:
        raise ValueError("it has no parameters")
    buffers = [(buffer, buffer.clone()) for buffer in backbone.buffers()]
    handles = [
        module.register_forward_hook(
            lambda *hooked, name=name: note(name, *hooked), with_kwargs=True
        )
        for name, module in backbone.named_modules()
    ]
    handles += [
        module.register_forward_pre_hook(
            lambda *hooked, name=name: enter(name, *hooked), with_kwargs=True
        )
        for name, module in backbone.named_modules()
    ]
    try:
        with evaluating(backbone), torch.no_grad(), same_randomness(weight.device):
            image = torch.rand(shape, dtype=weight.dtype, device=weight.device)
            images = image.repeat(BATCH, *[1] * len(shape))
            images[1].movedim(0, -1)[_pixel(shape[1:])] += 4
            backbone(images)
    finally:
        for handle in handles:
            handle.remove()
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)
    return next((name for name in reversed(receiving) if calls[name] == 1), "")


def _read(outputs: list[_Output], size: tuple[int, ...]) -> dict[_Output, Map]:
    """Reads every output that is a map of the image as one, in order."""
    counts = {output.shape[1] for output in outputs if len(output.shape) == 3}
    images = {
        output: []
        if _is_attention(output.shape, counts)
        else images_in(output.shape, size)
        for output in outputs
    }
    grids = {readings[0].sides for readings in images.values() if readings}
    # A cube, such as (2, 96, 96, 96), is laid out as what its neighbours put out.
    layouts: dict[str, Counter[str]] = defaultdict(Counter)
    for output, readings in images.items():
        if len(readings) == 1:
            layouts[_parent(output.module)][readings[0].layout] += 1
    tokens = _read_tokens(outputs, size, grids)
    maps: dict[_Output, Map] = {}
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
    # What the backbone itself puts out is some module's output, unless it is a list.
    listed = {reading.octave for output, reading in maps.items() if not output.module}
    return {o: maps[o] for o in maps if o.module or len(listed) > 1}


def _read_tokens(
    outputs: list[_Output], size: tuple[int, ...], grids: set[tuple[int, ...]]
) -> dict[int, Map]:
    """Reads the tokens of an image, by their number."""
    pixel = _pixel(size)
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
        # Deeper, a change comes to other tokens, too; but if it seldom is where the
        # pixel was changed, tokens have been put into another order.
        if reading is not None:
            places = [in_place(reading, changed, pixel, size) for changed in telling]
            if 2 * sum(places) >= len(places):
                found[count] = reading
    return found


def _is_attention(shape: torch.Size, counts: set[int]) -> bool:
    """Whether a tensor holds a number for every pair of tokens."""
    return len(shape) == 4 and shape[2] == shape[3] and shape[2] in counts


def _last_of_each_octave(maps: dict[_Output, Map]) -> list[_Output]:
    spans: dict[str, set[tuple[int, int]]] = defaultdict(set)
    for output, reading in maps.items():
        if reading.entered_octave is not None:
            spans[output.module].add((reading.entered_octave, reading.octave))
    finished: dict[int, _Output] = {}
    unfinished: dict[int, _Output] = {}
    for output, reading in maps.items():
        path = output.module.split(".")
        around = [spans[".".join(path[: i + 1])] for i in range(len(path))]
        # An attention matrix or a pooled key: of another size than what surrounds it.
        if any(
            span and not any(first <= reading.octave <= last for first, last in span)
            for span in around
        ):
            continue
        halving = any((reading.octave, reading.octave + 1) in s for s in around[:-1])
        (unfinished if halving else finished)[reading.octave] = output
    return [output for _, output in sorted({**unfinished, **finished}.items())]


def _of_several_depths(
    maps: dict[_Output, Map], backbone: nn.Module, size: tuple[int, ...]
) -> list[_Output]:
    """Chooses among those equal blocks, in one container, with most parameters."""
    rows: dict[tuple[str, type, int], dict[str, _Output]] = defaultdict(dict)
    for output in maps:
        block = backbone.get_submodule(output.module)
        parameters = sum(parameter.numel() for parameter in block.parameters())
        row = rows[_parent(output.module), type(block), parameters]
        row.setdefault(output.module, output)
    repeated = {kind: list(row.values()) for kind, row in rows.items() if len(row) > 1}
    if not repeated:
        return []
    blocks = max(repeated.items(), key=lambda item: item[0][2] * len(item[1]))[1]
    stride = size[0] // maps[blocks[0]].sides[0]
    count = min(_DEPTHS, len(blocks), stride.bit_length())
    return [blocks[round(len(blocks) * (i + 1) / count) - 1] for i in range(count)]


def _named(layer: str, maps: dict[_Output, Map], outputs: list[_Output]) -> _Output:
    """Returns the last map of a module, or that with the number, `name[number]`."""
    found = [
        output
        for output in maps
        if layer in (output.module, f"{output.module}[{output.number}]")
    ]
    if not found:
        raise ValueError(
            f"DiRA: no module {layer!r} of the backbone puts out a feature map "
            f"(B, C, H, W). Modules and output shapes:\n{_table(outputs)}"
        )
    return found[-1]


def _parent(name: str) -> str:
    return name.rpartition(".")[0]


def _table(outputs: list[_Output]) -> str:
    return "\n".join(
        f"  {output.module or '(backbone)'}: {tuple(output.shape)}"
        for output in outputs
    )
