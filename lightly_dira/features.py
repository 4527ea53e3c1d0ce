"""Seeing a backbone's feature maps while somebody else's loop runs it.

The only place in this library that leaves hooks in modules.
"""

from __future__ import annotations

import contextlib
import weakref
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from lightly_dira.discovery import find_levels, tensors_in

# Passes to remember until the first batch has shown how many there are per batch.
_MOST_PASSES = 32
# Mean squared difference of standardised images, from 0 (equal) to 2 (unrelated).
_SAME_IMAGE = 0.01


@dataclass(eq=False)
class _Pass:
    """One pass of the backbone: what went in and the maps that came by."""

    images: Tensor
    training: bool
    maps: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    outputs: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class _Route:
    """Which of a batch's passes, and which part of its rows, saw the target's view."""

    passes: int
    training: bool
    index: int
    part: int = 0
    parts: int = 1
    by_value: bool = False
    target_view: int = 0


class Hook:
    """A hook that holds its owner weakly and turns inert in every copy.

    Backbones and optimisers can so be copied, pickled and saved as if they had no hook;
    what is copied or loaded carries a callable of the standard library that does
    nothing. Where the backbone is compiled, the hook is left to Python: traced, its
    books would be part of what a graph was compiled for.
    """

    def __init__(self, method: Callable[..., None], *args: object) -> None:
        self.method = weakref.WeakMethod(method)
        self.args = args

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def __call__(self, *hooked: Any) -> None:
        """Calls the owner's method, while there is an owner."""
        method = self.method()
        if method is not None:
            method(*self.args, *hooked)

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (contextlib.nullcontext(), "__exit__")


class FeaturePyramid:
    """Finds a backbone's feature maps and captures them as they come by.

    On construction one dry pass finds, for every resolution, the last feature map
    that any module of the backbone puts out. It runs in evaluation mode: neither
    weights, nor BatchNorm statistics, nor the random state change.

    There are two ways to the maps: calling the pyramid runs the backbone; `take`
    hands out what was captured while somebody else ran it with gradients on.

    Attributes:
        backbone: The network that is watched.
        layers: Names of the modules whose outputs are the maps, finest to coarsest.
        channels: Channels of the maps.
        strides: Pixels of the image, along each side, per position of the map.
        image_shape: (C, H, W) of the images of the dry pass.
        capturing: Whether passes of the backbone are captured for `take`.

    Examples:
        >>> import torch, torchvision
        >>> from lightly_dira.features import FeaturePyramid
        >>> FeaturePyramid(torchvision.models.resnet18())
        FeaturePyramid(
          level  module            channels  stride
              0  relu                    64       2
              1  layer1                  64       4
              2  layer2                 128       8
              3  layer3                 256      16
              4  layer4                 512      32
        )
    """

    def __init__(
        self,
        backbone: nn.Module,
        *,
        input_size: int | tuple[int, int] | None = None,
        layers: Sequence[str] | None = None,
    ) -> None:
        """Looks for the maps.

        Args:
            backbone: Any network of images that has feature maps inside.
            input_size: Side of the images of the dry pass, or (height, width), in
                pixels, for backbones that accept no other size. By default those that
                the backbone states (`image_size`, `img_size`) and a few usual ones are
                tried.
            layers: Names of the modules to take instead of those found, finest map to
                coarsest, as `layers` and the table show them.

        Raises:
            ValueError: If the backbone cannot be run on images or has no such maps.
        """
        # The hooks belong into the network, not around what `torch.compile` made.
        backbone = getattr(backbone, "_orig_mod", backbone)
        self.backbone = backbone
        levels, self.image_shape = find_levels(backbone, input_size, layers)
        self._levels = levels
        self.layers = [level.name for level in levels]
        self.channels = [level.channels for level in levels]
        self.strides = [level.stride for level in levels]
        self.capturing = True
        self._wanted = {(level.module, level.number) for level in levels}
        self._running: _Pass | None = None
        self._passes: deque[_Pass] = deque(maxlen=_MOST_PASSES)
        self._seen = 0
        self._route: _Route | None = None
        self._own_pass = False
        self._watched: dict[str, nn.Module] = {}
        self._handles = [
            backbone.register_forward_pre_hook(
                Hook(self._enter), with_kwargs=True, prepend=True
            )
        ]
        weakref.finalize(self, _remove, self._handles)
        self._watch()

    def __call__(self, images: Tensor) -> list[Tensor]:
        """Runs the backbone and returns its maps, finest to coarsest.

        Args:
            images: (B, C, H, W), as the backbone takes them.
        """
        kept = self._running
        self._own_pass = True
        try:
            self.backbone(images)
            run = self._running
            assert run is not None
            return self._maps(run, slice(None))
        finally:
            self._own_pass, self._running = False, kept

    def take(self, view: Tensor, target_view: int = 0) -> list[Tensor]:
        """Returns the maps of the pass that saw `view`, and forgets all passes.

        The tensor itself is recognised at once. Where the loop made another of it
        (moved, concatenated, normalised), the first batch's inputs are compared with
        it by value, as standardised images; later batches follow the same route as
        long as they come in the same number of passes of the same shape, so that no
        later batch waits for the device.

        Args:
            view: The view that carries the target, (B, C, H, W).
            target_view: Its index: another one takes another route.

        Returns:
            A list of (B, C_i, H_i, W_i), finest to coarsest.

        Raises:
            RuntimeError: If the backbone has not seen the view since the last call.
        """
        passes, seen = list(self._passes), self._seen
        self.forget()
        if not passes:
            raise RuntimeError(
                "DiRA: the backbone has made no pass with gradients since DiRA was "
                "last called or the optimiser last stepped, so there is nothing to "
                "decode. Run the model on the batch, with gradients on and in the "
                "mode it trains in, then call `loss = dira(loss, batch)`, once per "
                "batch. Wrap the very module that the loop calls, not one that "
                "shares its layers, call it and not a method of it (such as "
                "`forward_features`), wrap it before its first compiled pass, and make "
                "the wrapper anew for a copied model: a copy of it captures nothing."
            )
        if self._route is not None and self._route.target_view != target_view:
            self._route = None
        route = replace(self._find_route(passes, seen, view), target_view=target_view)
        self._follow(route)
        run = passes[route.index]
        rows = slice(route.part * len(view), (route.part + 1) * len(view))
        return self._maps(run, rows)

    def forget(self) -> None:
        """Drops every captured map."""
        self._passes.clear()
        self._running = None
        self._seen = 0

    def __repr__(self) -> str:
        """Shows level, module, channels and stride of every map."""
        width = max(16, *map(len, self.layers))
        rows = [f"  level  {'module':{width}}  channels  stride"]
        for number, level in enumerate(self._levels):
            rows.append(
                f"  {number:5}  {level.name:{width}}  {level.channels:8}  "
                f"{level.stride:6}"
            )
        return "\n".join(["FeaturePyramid(", *rows, ")"])

    def _watch(self) -> None:
        """Hooks the modules of the maps, also those that came in place of others."""
        for name in dict.fromkeys(level.module for level in self._levels):
            module = self.backbone.get_submodule(name)
            if self._watched.get(name) is not module:
                self._watched[name] = module
                hook = Hook(self._note, name)
                self._handles.append(module.register_forward_hook(hook))

    def _enter(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        self._watch()
        self._running = None
        # Once it has trained in training mode, passes in evaluation are no training.
        known_mode = self._route is None or module.training >= self._route.training
        wanted = self.capturing and torch.is_grad_enabled() and known_mode
        if not (wanted or self._own_pass):
            return
        values = tensors_in([args, kwargs])
        images = next(
            (v for v in values if v.ndim == 4 and v.is_floating_point()), None
        )
        if images is None:
            return
        self._running = _Pass(images, module.training)
        if not self._own_pass:
            self._passes.append(self._running)
            self._seen += 1

    def _note(self, name: str, module: nn.Module, args: Any, output: Any) -> None:
        run = self._running
        if run is None:
            return
        for tensor in tensors_in(output):
            key = name, run.outputs[name]
            run.outputs[name] += 1
            if key in self._wanted:
                run.maps[key] = tensor

    def _maps(self, run: _Pass, rows: slice) -> list[Tensor]:
        size = run.images.shape[2:]
        missing = [
            level.name
            for level in self._levels
            if (level.module, level.number) not in run.maps
        ]
        if missing:
            raise RuntimeError(
                f"DiRA: {', '.join(missing)} put nothing out in this pass, unlike in "
                "the dry pass. Wrap a compiled backbone before its first pass (or call "
                "`torch._dynamo.reset()`), and choose other `layers` where training "
                "skips some."
            )
        return [
            level.as_map(run.maps[level.module, level.number][rows], size)
            for level in self._levels
        ]

    def _follow(self, route: _Route) -> None:
        if route != self._route:
            self._route = route
            self._passes = deque(maxlen=route.passes)

    def _find_route(self, passes: list[_Pass], seen: int, view: Tensor) -> _Route:
        for index, run in enumerate(passes):
            if run.images is view:
                return _Route(seen, run.training, index)
        route = self._route
        if route is not None and route.by_value and route.passes == seen:
            images = passes[route.index].images
            same_size = images.shape[2:] == view.shape[2:]
            if same_size and len(images) == route.parts * len(view):
                return route
        return _match(passes, seen, view)


def _remove(handles: Sequence[torch.utils.hooks.RemovableHandle]) -> None:
    for handle in handles:
        handle.remove()


def _match(passes: list[_Pass], seen: int, view: Tensor) -> _Route:
    """Compares the view with the inputs of all passes, by value."""
    best, difference = None, float("inf")
    for index, run in enumerate(passes):
        images = run.images.detach()
        if images.ndim != view.ndim or images.shape[2:] != view.shape[2:]:
            continue
        parts, rest = divmod(len(images), len(view))
        for part in range(0 if rest else parts):
            rows = images[part * len(view) : (part + 1) * len(view)]
            found = _difference(rows, view)
            if found < difference:
                best = _Route(seen, run.training, index, part, parts, by_value=True)
                difference = found
    if best is None or difference > _SAME_IMAGE:
        shapes = ", ".join(str(tuple(run.images.shape)) for run in passes)
        raise RuntimeError(
            "DiRA: the backbone never saw the view that carries the restoration "
            f"target, {tuple(view.shape)}. It was called with {shapes}. Pass `dira` "
            "the batch whose views went through the backbone, and wrap the module "
            "that gets the views themselves (DiRA recognises views that were moved, "
            "concatenated, normalised or repeated over channels)."
        )
    return best


def _difference(images: Tensor, view: Tensor) -> float:
    """Mean squared difference of the least similar pair of standardised images."""
    view = view.detach().to(images.device)
    if images.shape[1] != view.shape[1]:
        if images.shape[1] == 1:
            view = view.mean(dim=1, keepdim=True)
        elif view.shape[1] != 1:
            return float("inf")
    difference = (_standardise(images) - _standardise(view)).square()
    return difference.flatten(1).mean(dim=1).max().item()


def _standardise(images: Tensor) -> Tensor:
    images = images.float()
    axes = tuple(range(2, images.ndim))
    largest = images.abs().amax(dim=axes, keepdim=True)
    images = images - images.mean(dim=axes, keepdim=True)
    scale = images.square().mean(dim=axes, keepdim=True).sqrt()
    # What is left of a constant image is rounding, and is to stay next to nothing.
    return images / scale.clamp_min(1e-6).maximum(1e-3 * largest)
