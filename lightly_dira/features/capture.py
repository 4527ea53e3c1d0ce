"""Captures what a backbone's modules output while the user's loop runs it.

No other part of this library leaves hooks in modules.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightly_dira.core.hooks import Hook, HookSet
from lightly_dira.core.private_torch import in_backward
from lightly_dira.core.tensors import image_in, only_image_in, tensors_in
from lightly_dira.features.compiled_passes import (
    CompiledPasses,
    Written,
    hook_for,
    in_plain_python,
)
from lightly_dira.features.maps_and_tokens import Level
from lightly_dira.features.passes import INTERLEAVED, MISSING, NO_PASS, Pass

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
        self._seen = 0
        self._wanted = {key for level in levels for key in (level.key, level.alias)}
        # Modules with one output in a pass: a second one belongs to another pass.
        self._wanted_once = {level.key for level in levels if level.once}
        self._running: Pass | None = None
        self._passes: deque[Pass] = deque(maxlen=_MOST_PASSES)
        # What the backbone was called with, until the image arrives at its entry.
        self._called: tuple[bool, Tensor | None] | None = None
        self._own_pass = False
        self._compiled = CompiledPasses(backbone, dimensions, self._add_compiled)
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
            with in_plain_python():
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
            raise RuntimeError(INTERLEAVED)
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
            raise RuntimeError(f"DiRA: {', '.join(missing)} {MISSING}")
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

    @property
    def seen(self) -> int:
        """How many passes there were with gradients since the last `forget`."""
        self._compiled.finish()
        return self._seen

    def forget(self) -> None:
        """Drops every captured map."""
        self._compiled.finish()
        self._passes.clear()
        self._running = None
        self._called = None
        self._seen = 0

    def _watch(self) -> None:
        """Hooks the modules of interest, also those that have replaced others."""
        compiled = self._compiled
        if self._entry:
            self._hook("", self._note_call, compiled.call, before=True)
        self._hook(self._entry, self._begin, compiled.begin, before=True)
        for name in dict.fromkeys(module for module, _ in sorted(self._wanted)):
            self._hook(name, self._note, compiled.note, before=False)

    def _hook(self, name: str, method: Any, traced: Any, *, before: bool) -> None:
        with contextlib.suppress(AttributeError):  # a replacement may lack the part
            module = self.backbone.get_submodule(name)
            key = name, method.__name__
            if self._watched.get(key) is module:
                return
            self._watched[key] = module
            if before:
                handle = module.register_forward_pre_hook(
                    hook_for(method, traced), with_kwargs=True, prepend=True
                )
            else:
                handle = module.register_forward_hook(hook_for(method, traced, name))
            self._hooks.add(handle)

    def _note_call(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        """Notes what the backbone itself is called with."""
        self._compiled.finish()
        self._watch()
        self._running = self._compiled.current = None
        self._called = (
            torch.is_grad_enabled(),
            only_image_in([args, kwargs], self._dimensions),
        )

    def _begin(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        """Begins a pass when the image arrives."""
        self._compiled.finish()
        if module is self.backbone:
            self._watch()
        called, self._called = self._called, None
        self._running = self._compiled.current = None
        # Activation checkpointing runs layers once more in the backward pass, and an
        # export runs them without values.
        if (in_backward() and not self._own_pass) or torch.compiler.is_compiling():
            return
        images = image_in([args, kwargs], self._dimensions)
        gradients, training = torch.is_grad_enabled(), self.backbone.training
        run = self._running = self._start(called, images, gradients, training)
        if run is not None:
            run.note_versions()
            # For modules that are compiled one by one.
            self._compiled.current = {"outputs": run.compiled}

    def _start(
        self,
        called: tuple[bool, Tensor | None] | None,
        images: Tensor | None,
        gradients: bool,
        training: bool,
    ) -> Pass | None:
        """Returns the pass that begins, or None for one that does not count."""
        gradients = gradients or (called is not None and called[0])
        # Once it has trained in training mode, passes in evaluation do not count,
        # unless it has been frozen since.
        known_mode = (
            training
            or not self.has_trained
            or not any(p.requires_grad for p in self.backbone.parameters())
        )
        if images is None or not (self._own_pass or (gradients and known_mode)):
            return None
        if not self._own_pass:
            self._seen += 1
            if not (self.capturing or self.noting):
                return None
        given = None if called is None else called[1]
        if given is not None and len(given) != len(images):
            given = None
        run = Pass(images, given, training)
        if not self._own_pass:
            while self._passes and self._passes[0].is_over:
                self._passes.popleft()
            self._passes.append(run)
        return run

    def _add_compiled(self, wrote: Written) -> None:
        """Adds a pass that ran compiled."""
        called, self._called = self._called, None
        if wrote.called is not None:
            called = wrote.called[0], only_image_in(wrote.called[1], self._dimensions)
        images = image_in(wrote.given, self._dimensions)
        self._running = None
        run = self._start(called, images, wrote.gradients, wrote.training)
        if run is None:
            return
        run.thread = wrote.thread
        self._keep_all(run, wrote.outputs)
        run.note_versions()
        if len(run.versions) == len(wrote.versions):
            run.versions = wrote.versions

    def _note(self, name: str, module: nn.Module, args: Any, output: Any) -> None:
        run = self._running
        if in_backward() and not self._own_pass:
            return
        if run is None:  # of a pass that began in compiled code, if any
            self._compiled.note(name, module, args, output)
            return
        if run.thread != threading.get_ident():
            run.interleaved = True
            return
        if self._wanted_once & {(name, run.outputs[name] - 1)} and any(
            (name, 0) not in other.maps for other in self._passes
        ):
            run.interleaved = True
        self._keep(run, name, output, torch.is_grad_enabled())
        run.note_versions()

    def _keep_all(self, run: Pass, of: dict[str, list[tuple[bool, Any]]]) -> None:
        for name, outputs in of.items():
            for gradients, output in outputs:
                self._keep(run, name, output, gradients)

    def _keep(self, run: Pass, name: str, output: Any, gradients: bool) -> None:
        """Keeps what a module has output in a pass."""
        for tensor in tensors_in(output):
            key = name, run.outputs[name]
            run.outputs[name] += 1
            if key in self._wanted:
                kept = self.capturing or self._own_pass
                # Otherwise the shape is enough, to try what later stages need.
                run.maps[key] = tensor if kept else tensor.detach().to("meta")
                if kept and tensor.requires_grad and not self._own_pass:
                    tensor.register_hook(Hook(run.note_backward))  # type: ignore[no-untyped-call]
                if not gradients:
                    run.without_gradients.add(key)

    def take_passes(self) -> list[Pass]:
        """Returns the captured passes, and forgets them.

        Raises:
            RuntimeError: If there are none.
        """
        self._compiled.finish()
        passes = list(self._passes)
        for run in passes:
            self._keep_all(run, run.compiled)
        self.forget()
        if not passes:
            raise RuntimeError(NO_PASS)
        return passes
