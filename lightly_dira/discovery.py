"""Finding the feature maps of a backbone, by one dry pass and never by its name."""

from __future__ import annotations

import contextlib
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

# Sides of the images of the dry pass, in pixels, tried in this order after those that
# the backbone states itself. Where height and width differ, every shape tells which
# of its axes are those of the image.
_SIZES = ((64, 96), (64, 64), (224, 224), (256, 256), (32, 32))
_BATCH = 2
# Class, distillation and register tokens that may precede those of the image.
_MOST_EXTRA_TOKENS = 16
# Maps of a network that keeps one resolution throughout, as in UNETR and DPT.
_DEPTHS = 4


class Level(NamedTuple):
    """One feature map: which of a module's outputs, and how it is laid out.

    Attributes:
        module: Name of the module.
        number: Which of the tensors that the module puts out in one pass.
        name: The module's name, with the number where it puts out several.
        channels: Channels of the map.
        stride: Pixels of the image, along each side, per position of the map.
        layout: "channels first", "channels last" or "tokens".
        extra_tokens: Class and register tokens in front of those of the image.
    """

    module: str
    number: int
    name: str
    channels: int
    stride: int
    layout: str
    extra_tokens: int

    def as_map(self, output: Tensor, size: Sequence[int]) -> Tensor:
        """Returns the output as (B, C, h, w), without a copy.

        Args:
            output: What the module has put out.
            size: (H, W) of the images.

        Raises:
            RuntimeError: If its tokens are none of an image of this size.
        """
        if self.layout == "channels first":
            return output
        if self.layout == "channels last":
            return output.movedim(-1, 1)
        tokens = output[:, self.extra_tokens :]
        count = tokens.shape[1]
        grids = ((h, count // h) for h in range(1, count + 1) if count % h == 0)
        expected = [side / self.stride for side in size]
        grid = min(grids, key=lambda g: abs(math.log(g[0] / g[1] * size[1] / size[0])))
        if any(abs(a - b) >= 1.5 for a, b in zip(grid, expected, strict=True)):
            raise RuntimeError(
                f"DiRA: {self.name} put out {count} tokens beside {self.extra_tokens} "
                f"of no place, expected about {round(math.prod(expected))} for an "
                f"image of {tuple(size)} pixels. A pass that drops tokens cannot be "
                "restored: give the target to a view that is seen whole."
            )
        return tokens.movedim(-1, 1).reshape(len(tokens), self.channels, *grid)


class _Map(NamedTuple):
    """How a tensor may be read as a map of the image."""

    layout: str
    channels: int
    sides: tuple[int, ...]
    octave: int  # how often the image's sides were halved
    extra_tokens: int = 0
    octave_before: int | None = None  # of what went into the module


class _Output(NamedTuple):
    """A tensor that a module has put out, and the shape of what went in."""

    module: str
    number: int
    shape: torch.Size
    entered: torch.Size | None
    learned: bool  # False for the image itself, before any parameter has met it


def find_levels(
    backbone: nn.Module,
    input_size: int | None = None,
    layers: Sequence[str] | None = None,
) -> list[Level]:
    """Finds the last feature map of every resolution, finest first.

    Resolutions are powers of two of the image's. What a block that halves the
    resolution makes on its way down does not count where a finished map of the
    resolution exists: in a ResNet-50 the map at stride 4 is that of `layer1`, not an
    activation inside the first block of `layer2`. Where a backbone keeps one
    resolution throughout, as a vision transformer does, the maps are those of four of
    its equal blocks, spread evenly over its depth, the earliest as the finest.

    Args:
        backbone: The network to look into.
        input_size: Side of the images to try, in pixels; by default what the backbone
            states, then a few usual ones.
        layers: Names of the modules whose last outputs are the maps, finest to
            coarsest; `name[i]` is the i-th tensor of a module with several.

    Raises:
        ValueError: If the backbone cannot be run on images or has no such maps.
    """
    dimensions, channels = first_convolution(backbone)
    sizes = [(input_size, input_size)] if input_size else _sizes_of(backbone)
    failures = {}
    for size in dict.fromkeys(size[:dimensions] for size in sizes):
        outputs: list[_Output] = []
        try:
            _dry_pass(backbone, (channels, *size), outputs)
        except Exception as error:
            failures[" x ".join(map(str, size))] = (error, outputs)
            continue
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
                "resolutions, or of several equal blocks of one resolution, and "
                f"{len(chosen)} came by in {type(backbone).__name__}. Wrap the part of "
                "the model that has them, or name it with `layers=`. Modules and "
                f"output shapes:\n{_table(outputs)}"
            )
        return [
            Level(
                output.module,
                output.number,
                f"{output.module}[{output.number}]"
                if counts[output.module] > 1
                else output.module,
                maps[output].channels,
                round(size[0] / maps[output].sides[0]),
                maps[output].layout,
                maps[output].extra_tokens,
            )
            for output in chosen
        ]
    tried = "; ".join(f"{size} px: {error}" for size, (error, _) in failures.items())
    longest = max((outputs for _, outputs in failures.values()), key=len)
    raise ValueError(
        f"DiRA: {type(backbone).__name__} could not be run on a batch of images to "
        "find its feature maps. Pass `input_size=` if it accepts one size only. Tried "
        f"{tried}. Modules and output shapes before that:\n{_table(longest)}"
    )


def first_convolution(backbone: nn.Module) -> tuple[int, int]:
    """Returns how many sides and channels the images have."""
    for module in backbone.modules():
        channels = getattr(module, "in_channels", None)
        weight = getattr(module, "weight", None)
        if isinstance(channels, int) and isinstance(weight, Tensor) and weight.ndim > 2:
            return min(weight.ndim - 2, 2), channels
    return 2, 3


@contextlib.contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Puts modules into evaluation mode, then each submodule back into its own."""
    modes = [(m, m.training) for module in modules for m in module.modules()]
    for module in modules:
        module.eval()
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


def _sizes_of(backbone: nn.Module) -> list[tuple[int, int]]:
    """Lists the image sizes to try, first those that modules state as attributes."""
    stated = []
    for module in backbone.modules():
        for name in ("image_size", "img_size"):
            size = getattr(module, name, None)
            if isinstance(size, int):
                stated.append((size, size))
            elif isinstance(size, (tuple, list)) and len(size) == 2:
                stated.append((int(size[0]), int(size[1])))
    return [*stated, *_SIZES]


def _dry_pass(
    backbone: nn.Module, shape: Sequence[int], outputs: list[_Output]
) -> None:
    """Runs the backbone on black images and lists all outputs as they come."""
    counts: Counter[str] = Counter()
    learned = False

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def note(name: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        nonlocal learned
        learned = learned or any(True for _ in module.parameters())
        entered = next(tensors_in([args, kwargs]), None)
        for tensor in tensors_in(output):
            before = None if entered is None else entered.shape
            outputs.append(_Output(name, counts[name], tensor.shape, before, learned))
            counts[name] += 1

    weight = next(backbone.parameters(), None)
    if weight is None:
        raise ValueError("it has no parameters")
    images = torch.zeros(_BATCH, *shape, dtype=weight.dtype, device=weight.device)
    handles = [
        module.register_forward_hook(
            lambda *hooked, name=name: note(name, *hooked), with_kwargs=True
        )
        for name, module in backbone.named_modules()
    ]
    try:
        with evaluating(backbone), torch.no_grad(), same_randomness(weight.device):
            backbone(images)
    finally:
        for handle in handles:
            handle.remove()


def _read(outputs: list[_Output], size: tuple[int, ...]) -> dict[_Output, _Map]:
    """Reads every output that is a map of the image as one, in order."""
    images = {o: _images_in(o.shape, size) for o in outputs if o.learned}
    grids = {readings[0].sides for readings in images.values() if readings}
    # A cube, such as (2, 96, 96, 96), is laid out as what its neighbours put out.
    layouts: dict[str, Counter[str]] = defaultdict(Counter)
    for output, readings in images.items():
        if len(readings) == 1:
            layouts[_parent(output.module)][readings[0].layout] += 1
    maps = {}
    for output, readings in images.items():
        votes = layouts[_parent(output.module)]
        reading = max(readings, key=lambda image: votes[image.layout], default=None)
        reading = reading or _tokens_in(output.shape, size, grids)
        before = output.entered and (
            next(iter(_images_in(output.entered, size)), None)
            or _tokens_in(output.entered, size, grids)
        )
        if reading is not None:
            octave_before = before.octave if before else None
            maps[output] = reading._replace(octave_before=octave_before)
    # What the backbone itself puts out is some module's output, unless it is a list.
    if (
        len({reading.octave for output, reading in maps.items() if not output.module})
        < 2
    ):
        maps = {o: reading for o, reading in maps.items() if o.module}
    return maps


def _images_in(shape: torch.Size, size: tuple[int, ...]) -> list[_Map]:
    """Reads (B, C, h, w) or (B, h, w, C), whichever fits better; a cube as both."""
    if len(shape) != 4 or shape[0] != _BATCH:
        return []
    readings = [
        _Map(layout, channels, tuple(sides), octave)
        for layout, channels, sides in (
            ("channels first", shape[1], shape[2:]),
            ("channels last", shape[3], shape[1:3]),
        )
        if (octave := _octave(sides, size)) is not None
    ]
    misfits = [_misfit(reading.sides, size) for reading in readings]
    best = min(misfits, default=0)
    return [r for r, misfit in zip(readings, misfits, strict=True) if misfit == best]


def _tokens_in(
    shape: torch.Size, size: tuple[int, ...], grids: set[tuple[int, ...]]
) -> _Map | None:
    """Reads (B, N, C): as many positions as some map has, and a few tokens more."""
    if len(shape) != 3 or shape[0] != _BATCH:
        return None
    patches = {
        tuple(side // stride for side in size) for stride in range(1, min(size) // 2)
    }
    for known in (grids, patches):
        extra = {grid: shape[1] - math.prod(grid) for grid in known}
        fitting = [g for g in known if 0 <= extra[g] <= _MOST_EXTRA_TOKENS]
        if fitting:
            grid = min(fitting, key=lambda g: extra[g])
            octave = _octave(grid, size)
            if octave is not None:
                return _Map("tokens", shape[2], grid, octave, extra[grid])
    return None


def _octave(sides: Sequence[int], size: tuple[int, ...]) -> int | None:
    """How often the image's sides were halved, or None for what is no map of it.

    Convolutions without padding shave pixels off and change nothing about it.
    """
    if any(not 2 <= side <= full for side, full in zip(sides, size, strict=True)):
        return None
    # A map as high as wide, of an image that is not, has been pooled.
    tolerance = 0 if size[0] == size[1] else max(0.5, 0.1 * sides[0])
    if _misfit(sides, size) > tolerance:
        return None
    return round(math.log2(math.prod(size) / math.prod(sides)) / 2)


def _misfit(sides: Sequence[int], size: tuple[int, ...]) -> float:
    """How much higher or lower, in positions, than the image's proportions ask."""
    return abs(sides[0] - sides[1] * size[0] / size[1])


def _last_of_each_octave(maps: dict[_Output, _Map]) -> list[_Output]:
    spans: dict[str, set[tuple[int, int]]] = defaultdict(set)
    for output, reading in maps.items():
        if reading.octave_before is not None:
            spans[output.module].add((reading.octave_before, reading.octave))
    finished: dict[int, _Output] = {}
    unfinished: dict[int, _Output] = {}
    for output, reading in maps.items():
        path = output.module.split(".")[:-1]
        around = [spans[".".join(path[: i + 1])] for i in range(len(path))]
        # An attention matrix or a pooled key: of another size than what surrounds it.
        if any(
            span and not any(first <= reading.octave <= last for first, last in span)
            for span in around
        ):
            continue
        halving = any((reading.octave, reading.octave + 1) in span for span in around)
        (unfinished if halving else finished)[reading.octave] = output
    return [output for _, output in sorted({**unfinished, **finished}.items())]


def _of_several_depths(
    maps: dict[_Output, _Map], backbone: nn.Module, size: tuple[int, ...]
) -> list[_Output]:
    """Chooses among those equal blocks, in one container, with most parameters."""
    rows: dict[tuple[str, type, int], dict[str, _Output]] = defaultdict(dict)
    for output in maps:
        block = backbone.get_submodule(output.module)
        parameters = sum(parameter.numel() for parameter in block.parameters())
        rows[_parent(output.module), type(block), parameters][output.module] = output
    repeated = {kind: list(row.values()) for kind, row in rows.items() if len(row) > 1}
    if not repeated:
        return []
    blocks = max(repeated.items(), key=lambda item: item[0][2] * len(item[1]))[1]
    stride = size[0] // maps[blocks[0]].sides[0]
    count = min(_DEPTHS, len(blocks), stride.bit_length())
    return [blocks[round(len(blocks) * (i + 1) / count) - 1] for i in range(count)]


def _named(layer: str, maps: dict[_Output, _Map], outputs: list[_Output]) -> _Output:
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
