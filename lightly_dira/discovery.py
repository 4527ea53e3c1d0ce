"""Finding the feature maps of a backbone, by one dry pass and never by its name."""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

# Sides of the images of the dry pass, in pixels, tried in this order.
_SIZES = (64, 224, 32)


class Level(NamedTuple):
    """One feature map: the `call`-th output of `module` within a pass."""

    module: str
    call: int
    channels: int
    stride: int


class _Output(NamedTuple):
    """What one call of one module made of what."""

    module: str
    call: int
    input_shape: torch.Size | None
    shape: torch.Size


def find_levels(backbone: nn.Module, input_size: int | None = None) -> list[Level]:
    """Finds the last feature map of every resolution, finest first.

    Resolutions are powers of two of the image's. What a block that halves the
    resolution makes on its way down does not count where a finished map of the
    resolution exists: in a ResNet-50 the map at stride 4 is that of `layer1`, not an
    activation inside the first block of `layer2`.

    Args:
        backbone: The network to look into.
        input_size: Side of the images to try, in pixels; by default 64, 224 and 32.

    Raises:
        ValueError: If the backbone cannot be run on images or has fewer than two
            resolutions.
    """
    failures = []
    for size in (input_size,) if input_size else _SIZES:
        try:
            outputs = _dry_pass(backbone, size)
        except Exception as error:
            failures.append(f"{size} px: {error}")
            continue
        levels = _last_of_each_octave(outputs, size)
        if len(levels) < 2:
            table = "\n".join(
                f"  {output.module or '(backbone)'}: {tuple(output.shape)}"
                for output in outputs
            )
            raise ValueError(
                "DiRA: a U-Net needs feature maps of at least two resolutions, and "
                f"{len(levels)} came by in {type(backbone).__name__}. Wrap the part of "
                f"the model that has them. Modules and output shapes:\n{table}"
            )
        return levels
    raise ValueError(
        f"DiRA: {type(backbone).__name__} could not be run on a batch of square "
        "images to find its feature maps. Pass `input_size=` if it accepts one size "
        "only. Tried " + "; ".join(failures)
    )


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


def _dry_pass(backbone: nn.Module, size: int) -> list[_Output]:
    """Runs the backbone on black images and lists all calls in order of completion."""
    outputs: list[_Output] = []
    calls: Counter[str] = Counter()

    def note(name: str, module: nn.Module, args: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            inputs = (value.shape for value in args if isinstance(value, Tensor))
            outputs.append(_Output(name, calls[name], next(inputs, None), output.shape))
        calls[name] += 1

    weight = next((p for p in backbone.parameters() if p.ndim > 2), None)
    if weight is None:
        raise ValueError("it has no convolution")
    channels = (getattr(m, "in_channels", None) for m in backbone.modules())
    shape = (
        2,
        next((count for count in channels if isinstance(count, int)), 3),
        *[size] * (weight.ndim - 2),
    )
    images = torch.zeros(shape, dtype=weight.dtype, device=weight.device)
    handles = [
        module.register_forward_hook(lambda *hooked, name=name: note(name, *hooked))
        for name, module in backbone.named_modules()
    ]
    try:
        with evaluating(backbone), torch.no_grad(), same_randomness(weight.device):
            backbone(images)
    finally:
        for handle in handles:
            handle.remove()
    return outputs


def _last_of_each_octave(outputs: list[_Output], size: int) -> list[Level]:
    halving = {
        (output.module, _octave(output.input_shape, size))
        for output in outputs
        if output.input_shape is not None
        and _is_one_lower(output.input_shape, output.shape, size)
    }
    finished: dict[int, Level] = {}
    unfinished: dict[int, Level] = {}
    for output in outputs:
        octave = _octave(output.shape, size)
        if octave is None:
            continue
        stride = round(size / max(output.shape[2:]))
        level = Level(output.module, output.call, output.shape[1], stride)
        above = output.module.split(".")[:-1]
        ancestors = (".".join(above[: depth + 1]) for depth in range(len(above)))
        inside = any((ancestor, octave) in halving for ancestor in ancestors)
        (unfinished if inside else finished)[octave] = level
    return [level for _, level in sorted({**unfinished, **finished}.items())]


def _octave(shape: torch.Size, size: int) -> int | None:
    """How often the image's side was halved, or None for what is no feature map.

    Convolutions without padding shave pixels off and change nothing about it.
    """
    side = max(shape[2:], default=0)
    return round(math.log2(size / side)) if 2 <= side <= size else None


def _is_one_lower(before: torch.Size, after: torch.Size, size: int) -> bool:
    first, second = _octave(before, size), _octave(after, size)
    return first is not None and second is not None and second - first == 1
