"""Finds the feature maps of a backbone by one dry pass, never by its name."""

from __future__ import annotations

import contextlib
import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from lightly_dira.core.modes import evaluating
from lightly_dira.core.private_torch import buffers_of
from lightly_dira.core.randomness import same_randomness
from lightly_dira.core.tensors import tensors_in
from lightly_dira.features.levels import Output, levels_of, pixel_of, table_of
from lightly_dira.features.maps_and_tokens import BATCH, Level

# Sizes of the images of the dry pass, in pixels, tried in this order after those that
# the backbone states itself. If height and width differ, every shape shows which of
# its axes are those of the image.
_SIZES: dict[int, tuple[tuple[int, ...], ...]] = {
    1: ((64,), (224,)),
    2: ((64, 96), (64, 64), (224, 224), (256, 256), (32, 32)),
    3: ((32, 64, 96), (64, 64, 64), (96, 96, 96), (32, 32, 32)),
}
# How many tokens to look at, of those that change most when one pixel changes.
_WITNESSES = 5


def find_levels(
    backbone: nn.Module,
    input_size: int | tuple[int, ...] | None = None,
    layers: Sequence[str] | None = None,
) -> tuple[list[Level], tuple[int, ...], str]:
    """Finds the last feature map of every resolution, finest first.

    The strides of the resolutions are powers of two. An activation inside a block that
    halves the resolution counts only if no finished map of that resolution exists: in a
    ResNet-50 the map at stride 4 is that of `layer1`, not an activation inside the
    first block of `layer2`. If a backbone keeps one resolution throughout, as a vision
    transformer does, the maps come from four of its equal blocks, spread evenly over
    its depth. The earliest serves as the finest.

    Args:
        backbone: The network to look into.
        input_size: Side of the images to try, or (height, width), in pixels; by default
            what the backbone states, then a few usual ones.
        layers: Names of the modules whose last outputs are the maps, finest to
            coarsest; `name[i]` is the i-th tensor of a module with several.

    Returns:
        The maps, (C, H, W) of the images that the backbone was run on, and the name of
        the innermost module that received them first, and nothing else in the pass.

    Raises:
        ValueError: If the backbone cannot be run on images or has no such maps.
    """
    if isinstance(layers, str) or (layers is not None and len(layers) < 2):
        raise ValueError(
            "DiRA: a U-Net needs at least two feature maps, `layers=[finest, ..., "
            f"coarsest]`, got {layers!r}."
        )
    if any(isinstance(m, torch.jit.ScriptModule) for m in backbone.modules()):
        raise ValueError(
            f"DiRA: {type(backbone).__name__} is a ScriptModule or holds one: its maps "
            "cannot be seen from Python. Wrap the module that was traced or scripted."
        )
    dimensions, stated = first_convolution(backbone)
    if isinstance(input_size, int):
        input_size = (input_size,) * dimensions
    sizes = [*_stated_sizes(backbone, dimensions), *_SIZES[dimensions]]
    sizes = [tuple(input_size)] if input_size else sizes
    failures: dict[str, tuple[Exception, list[Output]]] = {}
    for channels, size in itertools.product(dict.fromkeys((stated, 3, 1)), sizes):
        shape = (channels, *size)
        outputs: list[Output] = []
        try:
            entry = _dry_pass(backbone, shape, outputs)
        except Exception as error:
            failures[str(shape)] = error, outputs
            continue
        return levels_of(backbone, outputs, shape[1:], layers), shape, entry
    if any(hasattr(p, "to_local") or not p.numel() for p in backbone.parameters()):
        raise ValueError(
            f"DiRA: the weights of {type(backbone).__name__} are sharded over "
            "processes, so it cannot be run on its own. Make DiRA first, then shard "
            "the model, create its optimiser and call `dira.attach(optimizer)`."
        )
    tried = "; ".join(f"{shape}: {error}" for shape, (error, _) in failures.items())
    longest = max((outputs for _, outputs in failures.values()), key=len)
    raise ValueError(
        f"DiRA: {type(backbone).__name__} could not be run on a batch of images to "
        "find its feature maps. If it accepts one size only, give "
        "`features=FeaturePyramid(backbone, input_size=...)`. Tried (C, H, W) = "
        f"{tried}. Modules and output shapes before the failure:\n"
        f"{table_of(longest)}"
    )


def first_convolution(backbone: nn.Module) -> tuple[int, int]:
    """Returns how many spatial dimensions and channels the images have."""
    for module in backbone.modules():
        channels = getattr(module, "in_channels", None)
        kernel = getattr(module, "kernel_size", None)
        if isinstance(channels, int) and isinstance(kernel, tuple):
            return len(kernel), channels
    return 2, 3


def _stated_sizes(backbone: nn.Module, dimensions: int) -> Iterator[tuple[int, ...]]:
    """Yields the image sizes that modules state as attributes."""
    for module in backbone.modules():
        for name in ("image_size", "img_size"):
            size = getattr(module, name, None)
            if isinstance(size, int):
                yield (size,) * dimensions
            elif isinstance(size, (tuple, list)) and len(size) == dimensions:
                yield tuple(map(int, size))


def _dry_pass(
    backbone: nn.Module, shape: tuple[int, ...], outputs: list[Output]
) -> str:
    """Runs the backbone on two images that differ in one pixel; lists all outputs.

    Returns the name of the module to watch for images.
    """
    counts: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    # Modules with parameters that receive the images before any of them has returned,
    # from the outside in, and how often each of them was called with images.
    receiving: Counter[str] = Counter()
    learned = again = False
    # The first output that each tensor was, which goes when the backbone drops it.
    first = WeakTensorKeyDictionary()

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def enter(name: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        nonlocal again
        calls[name] += 1
        entered = next(tensors_in([args, kwargs]), None)
        parameters = any(True for _ in module.parameters())
        if not parameters or entered is None or len(entered) != BATCH:
            return
        if entered.shape[2:] == shape[1:] and (not learned or name in receiving):
            receiving[name] += 1
            # Called for another image: only the outputs for the first one count.
            again = again or (name == [*receiving][-1] and receiving[name] > 1)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def note(name: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        nonlocal learned
        # Before any module with parameters, a tensor is the image, perhaps normalised.
        learned = learned or any(True for _ in module.parameters())
        traced = torch.is_grad_enabled()
        entered = next(tensors_in([args, kwargs]), None)
        before = None if entered is None else entered.shape
        for tensor in tensors_in(output):
            changed: tuple[int, ...] = ()
            if tensor.ndim == 3 and len(tensor) == BATCH:
                change = (tensor[0] - tensor[1]).detach().abs().sum(dim=-1)
                most = change.topk(min(_WITNESSES, len(change)))
                if most.values[:1] > 2 * change.median():
                    changed = tuple(most.indices.tolist())
            key = name, counts[name]
            same = first.setdefault(tensor, key)  # type: ignore[no-untyped-call]
            # Later, a branch without weights may still carry it: autograd knows.
            depends = learned and (tensor.requires_grad or not traced)
            if depends and not again:
                outputs.append(Output(*key, tensor.shape, before, changed, same))
            counts[name] += 1

    weight = next(backbone.parameters(), None)
    if weight is None:
        raise ValueError("it has no parameters")
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
        with (
            evaluating(backbone),
            _same_buffers(backbone),
            _traced(backbone),
            same_randomness(weight.device),
        ):
            image = torch.rand(shape, dtype=weight.dtype, device=weight.device)
            images = image.repeat(BATCH, *[1] * len(shape))
            images[1].movedim(0, -1)[pixel_of(shape[1:])] += 4
            backbone(images)
    finally:
        for handle in handles:
            handle.remove()
    # A layer that is also called with other tensors cannot be watched for images.
    alike = (name for name in reversed(receiving) if calls[name] == receiving[name])
    return next(alike, "")


@contextlib.contextmanager
def _traced(backbone: nn.Module) -> Iterator[None]:
    """Lets autograd note what depends on a weight, also a frozen one; keeps no value.

    Afterwards the same weights are frozen as before.
    """
    frozen = [p for p in backbone.parameters() if not p.requires_grad]
    frozen = [p for p in frozen if p.is_floating_point() and not p.is_inference()]
    for parameter in frozen:
        parameter.requires_grad_(True)
    try:
        with (
            torch.enable_grad(),
            torch.autograd.graph.saved_tensors_hooks(_nothing, _nothing),
        ):
            yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


def _nothing(_: Tensor) -> Tensor:
    """Stands in for a value that autograd would keep."""
    return torch.empty(0)


@contextlib.contextmanager
def _same_buffers(backbone: nn.Module) -> Iterator[None]:
    """Leaves buffers as they were: the same tensors, of the same size and values."""
    kept = {module: dict(buffers_of(module)) for module in backbone.modules()}
    values = {
        id(buffer): buffer.clone()
        for buffers in kept.values()
        for buffer in buffers.values()
        if buffer is not None
    }
    try:
        yield
    finally:
        for module, buffers in kept.items():
            held = buffers_of(module)
            for name in held.keys() - buffers:
                del held[name]
            for name, buffer in buffers.items():
                held[name] = buffer
                # A graph may wait for its backward pass: only write what has changed.
                if buffer is not None and not torch.equal(buffer, values[id(buffer)]):
                    with torch.no_grad():
                        buffer.resize_(values[id(buffer)].shape)
                        buffer.copy_(values[id(buffer)])
