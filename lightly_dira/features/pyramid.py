"""Finds and captures a backbone's feature maps while the user's loop runs it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lightly_dira.core.modes import evaluating
from lightly_dira.core.private_torch import uncompiled
from lightly_dira.core.rows import Rows
from lightly_dira.core.same_image import how_unlike, is_waited_for
from lightly_dira.core.user_warnings import warn
from lightly_dira.features.capture import Capture
from lightly_dira.features.dry_pass import find_levels
from lightly_dira.features.maps_and_tokens import DroppedTokensError
from lightly_dira.features.passes import Pass
from lightly_dira.features.view_change import WHICH_VIEW, ViewChange
from lightly_dira.features.which_pass import NeverSawError, Recognition, which_view

# Learning what a loop does to its views waits for an accelerator; so often it may.
_MOST_LESSONS = 2


class Taken(NamedTuple):
    """A view that the backbone saw: its index, its maps, and what went in for it."""

    view: int
    maps: list[Tensor]
    images: Tensor

    def part(self, rows: Rows) -> Taken:
        """Returns some rows of maps and images."""
        return Taken(self.view, [*map(rows.of, self.maps)], rows.of(self.images))


class FeaturePyramid:
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
        capture: What keeps the maps of passes, or only their shapes, or nothing.
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
        backbone = uncompiled(backbone)
        levels, self.image_shape, self.entry = find_levels(backbone, input_size, layers)
        self.backbone = backbone
        self.layers = [level.name for level in levels]
        self.channels = [level.channels for level in levels]
        self.strides = [level.stride for level in levels]
        self.spatial_dims = len(self.image_shape) - 1
        self.capture = Capture(backbone, levels, self.spatial_dims + 2, self.entry)
        self._recognition = Recognition()
        self.change = ViewChange(self.image_channels)
        self._lessons = 0
        self._has_compared = False

    def __call__(self, images: Tensor) -> list[Tensor]:
        """Runs the backbone and returns its maps, finest to coarsest.

        Args:
            images: (B, C, H, W), as the backbone takes them.
        """
        return self.capture.run(images)

    @property
    def was_run(self) -> bool:
        """Whether the backbone made a pass with gradients since the last `forget`."""
        return self.capture.seen > 0

    def forget(self) -> None:
        """Drops every captured map."""
        self.capture.forget()

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
        (taken,) = self._take_first_of_each([views])
        assert taken is not None
        return taken.view, taken.maps

    def see(
        self, groups: Sequence[Sequence[Tensor]], called_with: Tensor | None = None
    ) -> list[Taken | None]:
        """Returns the view of each group that the backbone saw, and its maps.

        With gradients off, as in validation, the backbone runs once more instead.

        Args:
            groups: The views that may be restored, of each `DiRAViews` of a batch.
            called_with: The tensor that the backbone was called with, where no pass is
                to be recognised; then there is one group.

        Raises:
            RuntimeError: If the backbone has seen none of them. A group that was not
                seen gives None, if another one was.
        """
        if not torch.is_grad_enabled():
            return [self._look_again(views, called_with) for views in groups]
        if called_with is None:
            return self._take_first_of_each(groups)
        (views,) = groups
        maps, arrived = self._take_of(called_with)
        number = self._recognition.which_view(called_with, views)
        self._learn(called_with, views[number])
        self._compare(called_with, views[number])
        if arrived is not called_with:
            self._compare(arrived, views[number])
        return [Taken(number, maps, called_with)]

    def _look_again(self, views: Sequence[Tensor], called_with: Tensor | None) -> Taken:
        """Runs the backbone on a view: the first, unless `called_with` is another."""
        if called_with is not None:
            number, images = which_view(called_with, views), called_with
        elif self.change.is_none:
            weight = next(self.backbone.parameters())
            number, images = 0, self.change.apply(views[0]).to(weight.device)
        else:
            raise RuntimeError(WHICH_VIEW)
        with evaluating(self.backbone):
            return Taken(number, self(images), images)

    def _take_first_of_each(
        self, groups: Sequence[Sequence[Tensor | None]]
    ) -> list[Taken | None]:
        seen, passes = self.capture.seen, self.capture.take_passes()
        forgotten = max(0, seen - len(passes))
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

    def _take_of(self, images: Tensor) -> tuple[list[Tensor], Tensor]:
        """Returns the maps of the pass called with this very tensor, and its images."""
        passes = self.capture.take_passes()
        runs = [run for run in passes if run.was_called_with(images)]
        if not runs:
            raise RuntimeError(
                "DiRA: the backbone was not called with the tensor given as `view`, or "
                "it was changed in place since. Pass the very tensor that the backbone "
                "is called with: not a copy, and not what the model made it from."
            )
        run = max(runs, key=lambda run: (run.training, run.images is images))
        maps = self.capture.maps_of(run, slice(None), images.shape[2:])
        self.capture.has_trained |= run.training
        return maps, run.images

    def _learn(self, images: Tensor, view: Tensor) -> None:
        """Learns what the loop does to its views: on an accelerator only at first."""
        if is_waited_for(images):
            self._lessons += 1
        if self._lessons <= _MOST_LESSONS:
            self.change.learn(images, view)

    def _compare(self, images: Tensor, view: Tensor) -> None:
        """Warns, once, if what a loop names, or what came of it, is hardly the view."""
        waits = is_waited_for(images) and self._lessons > _MOST_LESSONS
        if images is view or waits or self._has_compared:
            return
        if (correlation := how_unlike(images, view)) is not None:
            self._has_compared = True
            warn(
                "DiRA: the tensor given as `view` hardly resembles its view, or that "
                "of another image or a moved one more: their pixels correlate by "
                f"{correlation:.2f}. If the loop, or the backbone, crops or "
                "turns views, targets do not move with them, and what is restored does "
                "not correspond. Move the targets in the same way, and make new views: "
                "DiRAViews(views, targets)."
            )

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
                    whole=len(self.layers),
                    forgotten=forgotten,
                    group=group,
                )
            except RuntimeError as error:
                raise (dropped or error) from None
            try:
                view = left[seen.view]
                assert view is not None
                maps = self.capture.maps_of(seen.run, seen.rows, view.shape[2:])
            except DroppedTokensError as error:
                dropped, left[seen.view] = error, None
                if not any(view is not None for view in left):
                    raise
                continue
            self.capture.has_trained |= seen.run.training
            images = seen.images(view)
            self._learn(images, view)
            return Taken(seen.view, maps, images)

    @property
    def image_channels(self) -> int:
        """Channels of the images of the dry pass."""
        return self.image_shape[0]

    def __repr__(self) -> str:
        """Shows level, module, channels and stride of every map."""
        width = max(16, *map(len, self.layers))
        rows = [f"  level  {'module':{width}}  channels  stride"]
        for number, level in enumerate(self.capture.levels):
            rows.append(
                f"  {number:5}  {level.name:{width}}  {level.channels:8}  "
                f"{level.stride!s:>6}"
            )
        return "\n".join(["FeaturePyramid(", *rows, ")"])
