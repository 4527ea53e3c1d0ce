"""Captures what a backbone's modules output while the user's loop runs it.

No other part of this library leaves hooks in modules.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightly_dira.core.hooks import Hook, HookSet
from lightly_dira.core.private_torch import in_backward
from lightly_dira.core.tensors import tensors_in
from lightly_dira.features.maps_and_tokens import Level
from lightly_dira.features.passes import Pass

# How many passes to remember: those that are never decoded must not pile up.
_MOST_PASSES = 32


class Capture:
    """Keeps the requested outputs of every pass of a backbone with gradients on.

    A copy watches its own backbone, and starts without any captured pass.

    Args:
        backbone: The network that is watched.
        levels: The outputs to keep.
        dimensions: Of a batch of images: 4, or 5 of volumes.
        entry: Name of the module that receives the image first.

    Attributes:
        capturing: Whether maps are kept for `take`.
        noting: Whether at least their shapes are: then the maps are on the device
            "meta", and have no values.
        has_trained: Whether maps were taken of a pass in training mode.
        seen: How many passes there were with gradients since the last `forget`.
    """

    def __init__(
        self,
        backbone: nn.Module,
        levels: list[Level],
        dimensions: int,
        entry: str,
    ) -> None:
        """Registers hooks in the backbone."""
        self.backbone, self.levels = backbone, levels
        self._dimensions, self._entry = dimensions, entry
        self.capturing = self.noting = True
        self.has_trained = False
        self.seen = 0
        self._wanted = {key for level in levels for key in (level.key, level.alias)}
        # Modules with one output in a pass: a second one belongs to another pass.
        self._wanted_once = {level.key for level in levels if level.once}
        self._running: Pass | None = None
        self._passes: deque[Pass] = deque(maxlen=_MOST_PASSES)
        # What the backbone was called with, until the image arrives at its entry.
        self._called: tuple[bool, Tensor | None] | None = None
        self._own_pass = False
        self._watched: dict[tuple[str, str], nn.Module] = {}
        self._hooks = HookSet()
        self._watch()

    def __reduce__(self) -> tuple[Any, ...]:
        made = self.backbone, self.levels, self._dimensions, self._entry
        return Capture, made, {"capturing": self.capturing, "noting": self.noting}

    def run(self, images: Tensor) -> list[Tensor]:
        """Runs the backbone and returns its maps; no captured pass is touched."""
        kept = self._running
        self._own_pass = True
        try:
            self.backbone(images)
            run = self._running
            assert run is not None
            return self.maps_of(run, slice(None), images.shape[2:])
        finally:
            self._own_pass, self._running = False, kept

    def maps_of(self, run: Pass, rows: slice, size: Sequence[int]) -> list[Tensor]:
        """Returns the maps of some rows of a pass, finest to coarsest.

        Args:
            run: The pass.
            rows: Rows of its images.
            size: Sides of the images without what a backbone may pad them with.

        Raises:
            RuntimeError: If the maps differ in training from those in evaluation.
        """
        if run.interleaved:
            raise RuntimeError(
                "DiRA: passes of the backbone run into each other, so DiRA cannot tell "
                "which pass the maps belong to. Finish the pass of one view before "
                "the next, in one thread."
            )
        maps = []
        missing = []
        for level in self.levels:
            key = level.key if level.key in run.maps else level.alias
            if key not in run.maps:
                missing.append(level.name)
                continue
            output = run.maps[key]
            if key in run.without_gradients and not self._own_pass:
                self._check_gradients(level.name, output)
            # A slice of all rows would copy the map's gradient.
            output = output if rows == slice(None) else output[rows]
            maps.append(level.as_map(output, size))
        if missing:
            raise RuntimeError(
                f"DiRA: {', '.join(missing)} output nothing in this pass, unlike in "
                "the dry pass. Choose other `layers` if training skips these or calls "
                "their parts one by one (activation checkpointing set after "
                "wrapping), and wrap a compiled backbone before its first pass (or "
                "call `torch._dynamo.reset()`)."
            )
        return maps

    def _check_gradients(self, name: str, output: Tensor) -> None:
        module = self.backbone.get_submodule(name.partition("[")[0])
        own = list(module.parameters()) or list(self.backbone.parameters())
        if not output.requires_grad and any(p.requires_grad for p in own):
            raise RuntimeError(
                f"DiRA: the map of {name} was made without gradients, though the "
                "backbone trains: restoration could not train the layers before it. "
                "Checkpoint activations with `use_reentrant=False`, or use "
                "`requires_grad_(False)` to freeze the layers that must not train."
            )

    def forget(self) -> None:
        """Drops every captured map."""
        self._passes.clear()
        self._running = None
        self._called = None
        self.seen = 0

    def _watch(self) -> None:
        """Hooks the modules of interest, also those that have replaced others."""
        places = [("", self._note_call)] if self._entry else []
        places.append((self._entry, self._begin))
        for name, method in places:
            self._hook(name, method, before=True)
        for name in dict.fromkeys(module for module, _ in sorted(self._wanted)):
            self._hook(name, self._note, before=False)

    def _hook(self, name: str, method: Callable[..., Any], *, before: bool) -> None:
        with contextlib.suppress(AttributeError):  # a replacement may lack the part
            module = self.backbone.get_submodule(name)
            key = name, method.__name__
            if self._watched.get(key) is module:
                return
            self._watched[key] = module
            if before:
                handle = module.register_forward_pre_hook(
                    Hook(method), with_kwargs=True, prepend=True
                )
            else:
                handle = module.register_forward_hook(Hook(method, name))
            self._hooks.add(handle)

    def _note_call(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        """Notes what the backbone itself is called with."""
        self._watch()
        self._running = None
        self._called = torch.is_grad_enabled(), self._image_in([args, kwargs])

    def _begin(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        """Begins a pass when the image arrives."""
        if module is self.backbone:
            self._watch()
        called, self._called = self._called, None
        self._running = None
        # Activation checkpointing runs layers once more in the backward pass, and an
        # export runs them without values.
        if (in_backward() and not self._own_pass) or torch.compiler.is_compiling():
            return
        gradients = torch.is_grad_enabled() or (called is not None and called[0])
        # Once it has trained in training mode, passes in evaluation do not count,
        # unless it has been frozen since.
        known_mode = (
            self.backbone.training
            or not self.has_trained
            or not any(p.requires_grad for p in self.backbone.parameters())
        )
        if not (self._own_pass or (gradients and known_mode)):
            return
        images = self._image_in([args, kwargs])
        if images is None:
            return
        if not self._own_pass:
            self.seen += 1
            if not (self.capturing or self.noting):
                return
        given = None if called is None else called[1]
        if given is not None and len(given) != len(images):
            given = None
        run = self._running = Pass(images, given, self.backbone.training)
        run.note_versions()
        if not self._own_pass:
            while self._passes and self._passes[0].is_over:
                self._passes.popleft()
            self._passes.append(run)

    def _image_in(self, values: Any) -> Tensor | None:
        """Returns the images among the arguments, the first if there are several."""
        found = (
            value
            for value in tensors_in(values)
            if value.ndim == self._dimensions and value.is_floating_point()
        )
        return next(found, None)

    def _note(self, name: str, module: nn.Module, args: Any, output: Any) -> None:
        run = self._running
        if run is None or (in_backward() and not self._own_pass):
            return
        if run.thread != threading.get_ident():
            run.interleaved = True
            return
        if self._wanted_once & {(name, run.outputs[name] - 1)} and any(
            (name, 0) not in other.maps for other in self._passes
        ):
            run.interleaved = True
        for tensor in tensors_in(output):
            key = name, run.outputs[name]
            run.outputs[name] += 1
            if key in self._wanted:
                kept = self.capturing or self._own_pass
                # Otherwise the shape is enough, to try what later stages need.
                run.maps[key] = tensor if kept else tensor.detach().to("meta")
                if kept and tensor.requires_grad and not self._own_pass:
                    tensor.register_hook(Hook(run.note_backward))  # type: ignore[no-untyped-call]
                run.note_versions()
                if not torch.is_grad_enabled():
                    run.without_gradients.add(key)

    def take_passes(self) -> list[Pass]:
        """Returns the captured passes, and forgets them.

        Raises:
            RuntimeError: If there are none.
        """
        passes = list(self._passes)
        self.forget()
        if not passes:
            raise RuntimeError(
                "DiRA: the backbone has made no pass with gradients since DiRA was "
                "last called or the optimiser last stepped, so there is nothing to "
                "decode. Run the model on the batch, with gradients on and in the "
                "mode it trains in, then call `loss = dira(loss, batch)`, once per "
                "batch. Wrap the very module that the loop calls, not one that "
                "shares its layers, and wrap it before its first compiled pass. Leave "
                "the layer that receives the image out of reentrant checkpointing. "
                "For a copied model, create a new wrapper; `prepare_qat` and "
                "`torch.export` make copies: wrap what they return."
            )
        return passes
