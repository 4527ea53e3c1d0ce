"""Finds and captures a backbone's feature maps while the user's loop runs it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from lightly_dira.features.capture import Capture
from lightly_dira.features.dry_pass import find_levels
from lightly_dira.features.maps_and_tokens import DroppedTokensError
from lightly_dira.features.same_image import is_waited_for
from lightly_dira.features.view_change import ViewChange
from lightly_dira.features.which_pass import NeverSawError, Pass, Recognition

# Learning what a loop does to its views waits for an accelerator; so often it may.
_MOST_LESSONS = 2


class Taken(NamedTuple):
    """A view that the backbone saw: its index, its maps, and what went in for it."""

    view: int
    maps: list[Tensor]
    images: Tensor


class FeaturePyramid(Capture):
    """Finds a backbone's feature maps and captures them in every pass.

    On construction one dry pass finds, for every resolution, the last feature map
    that any module of the backbone outputs. It runs in evaluation mode: neither
    weights, nor BatchNorm statistics, nor the random state change.

    There are two ways to get the maps: calling the pyramid runs the backbone; `take`
    returns what was captured while other code ran it with gradients on. The pyramid
    notices a pass at the module that receives the image first (`entry`), so it does not
    matter how the backbone is called: by `forward`, by any other method, compiled or
    through `torch.func.functional_call`.

    Attributes:
        backbone: The network that is watched.
        layers: Names of the modules whose outputs are the maps, finest to coarsest.
        channels: Channels of the maps.
        strides: Pixels of the image, along each side, per position of the map; a tuple
            if they differ by side.
        spatial_dims: 2 for images, 3 for volumes.
        image_shape: (C, H, W) of the images of the dry pass.
        entry: Name of the module that receives the image first; empty for the backbone.
        capturing: Whether passes of the backbone are captured for `take`.
        noting: Whether at least their inputs are: then `take` recognises a pass, but
            its maps are on the device "meta", and have no values.
        change: What the loop does to a view before the backbone sees it.

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
        input_size: int | tuple[int, ...] | None = None,
        layers: Sequence[str] | None = None,
    ) -> None:
        """Looks for the maps.

        Args:
            backbone: Any network of images that has feature maps inside.
            input_size: Side of the images of the dry pass, (height, width) or
                (depth, height, width), in pixels, for backbones that accept no other
                size. By default, the sizes that the backbone states (`image_size`,
                `img_size`) and a few usual ones are tried.
            layers: Names of the modules to take instead of those found, finest map to
                coarsest, as `layers` and the table show them.

        Raises:
            ValueError: If the backbone cannot be run on images or has no such maps.
        """
        # The hooks belong inside the network, not on the wrapper of `torch.compile`.
        backbone = getattr(backbone, "_orig_mod", backbone)
        super().__init__(backbone, *find_levels(backbone, input_size, layers))
        self.layers = [level.name for level in self._levels]
        self.channels = [level.channels for level in self._levels]
        self.strides = [level.stride for level in self._levels]
        self.spatial_dims = len(self.image_shape) - 1
        self._recognition = Recognition()
        self.change = ViewChange(self.image_channels)
        self._lessons = 0

    def __getstate__(self) -> dict[str, Any]:
        """Returns what a copy needs; the copy watches its own backbone."""
        names = "backbone image_shape entry layers channels strides capturing _levels"
        names += " spatial_dims change noting"
        return {name: self.__dict__[name] for name in names.split()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._recognition = Recognition()
        self._lessons = 0
        self._start()

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
            return self._maps(run, slice(None), images.shape[2:])
        finally:
            self._own_pass, self._running = False, kept

    def take(self, view: Tensor) -> list[Tensor]:
        """Returns the maps of the pass that saw a view; see `take_first`."""
        return self.take_first(view)[1]

    def take_first(self, *views: Tensor | None) -> tuple[int, list[Tensor]]:
        """Returns the maps of the first of these views that the backbone saw whole.

        All passes are forgotten. Every step verifies that the maps are those of the
        view, see `Recognition`.

        Args:
            views: Views, (B, C, H, W), in the order of preference; None in place of
                those not wanted.

        Returns:
            The view's index, and a list of (B, C_i, H_i, W_i), finest to coarsest.

        Raises:
            RuntimeError: If the backbone has not seen any of the views since the last
                call, or its maps differ in training from those in evaluation.
        """
        (taken,) = self.take_first_of_each([views])
        assert taken is not None
        return taken.view, taken.maps

    def take_first_of_each(
        self, groups: Sequence[Sequence[Tensor | None]]
    ) -> list[Taken | None]:
        """Does what `take_first` does for several groups of views, such as batches.

        It returns None for a group that was not seen, if another one was.
        """
        forgotten = max(0, self._seen - len(self._passes))
        passes = self._take_passes()
        found: list[Taken | None] = []
        unseen: NeverSawError | None = None
        for group, views in enumerate(groups):
            try:
                found.append(self._find(passes, views, forgotten, group))
            except NeverSawError as error:
                found.append(None)
                unseen = error
        if unseen is not None and not any(found):
            raise unseen
        return found

    def take_of(self, images: Tensor) -> list[Tensor]:
        """Returns the maps of the pass that was called with this very tensor.

        Args:
            images: (B, C, H, W), what the backbone was called with, unchanged since.

        Raises:
            RuntimeError: If no pass was called with it.
        """
        passes = self._take_passes()
        runs = [run for run in passes if run.was_called_with(images)]
        if not runs:
            raise RuntimeError(
                "DiRA: the backbone was not called with the tensor given as `view`, or "
                "it was changed in place since. Pass the very tensor that the backbone "
                "is called with: not a copy, and not what the model made it from."
            )
        run = max(runs, key=lambda run: run.training)
        maps = self._maps(run, slice(None), images.shape[2:])
        self._has_trained |= run.training
        return maps

    def learn(self, images: Tensor, view: Tensor) -> None:
        """Learns what the loop does to its views: on an accelerator only at first."""
        if is_waited_for(images):
            self._lessons += 1
        if self._lessons <= _MOST_LESSONS:
            self.change.learn(images, view)

    def _find(
        self,
        passes: Sequence[Pass],
        views: Sequence[Tensor | None],
        forgotten: int,
        group: int,
    ) -> Taken:
        dropped: DroppedTokensError | None = None
        left = list(views)
        while True:
            try:
                seen = self._recognition.find(
                    passes,
                    left,
                    whole=len(self._levels),
                    forgotten=forgotten,
                    group=group,
                )
            except RuntimeError as error:
                raise (dropped or error) from None
            try:
                view = left[seen.view]
                assert view is not None
                maps = self._maps(seen.run, seen.rows, view.shape[2:])
            except DroppedTokensError as error:
                dropped, left[seen.view] = error, None
                if not any(view is not None for view in left):
                    raise
                continue
            self._has_trained |= seen.run.training
            images = seen.images(view)
            self.learn(images, view)
            return Taken(seen.view, maps, images)

    @property
    def image_channels(self) -> int:
        """Channels of the images of the dry pass."""
        return self.image_shape[0]

    def __repr__(self) -> str:
        """Shows level, module, channels and stride of every map."""
        width = max(16, *map(len, self.layers))
        rows = [f"  level  {'module':{width}}  channels  stride"]
        for number, level in enumerate(self._levels):
            rows.append(
                f"  {number:5}  {level.name:{width}}  {level.channels:8}  "
                f"{level.stride!s:>6}"
            )
        return "\n".join(["FeaturePyramid(", *rows, ")"])

    def _maps(self, run: Pass, rows: slice, size: Sequence[int]) -> list[Tensor]:
        if run.interleaved:
            raise RuntimeError(
                "DiRA: passes of the backbone run into each other, so DiRA cannot tell "
                "which pass the maps belong to. Finish the pass of one view before "
                "the next, in one thread."
            )
        maps = []
        missing = []
        for level in self._levels:
            key = level.key if level.key in run.maps else level.same
            if key not in run.maps:
                missing.append(level.name)
                continue
            output = run.maps[key]
            if key in run.without_gradients and not self._own_pass:
                self._check_gradients(level.name, output)
            maps.append(level.as_map(output[rows], size))
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
