"""DiRATransform: distorted views, and the clean targets to restore from them."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import albumentations as A
import numpy as np
import torch
from lightly.transforms.multi_view_transform import MultiViewTransform
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.utils import make_grid

from lightly_dira.core.user_warnings import warn
from lightly_dira.data.pixels import MOST_CHANNELS, Window, check_window
from lightly_dira.transforms.alignment import Draws, Sample, Step, name_of
from lightly_dira.transforms.boundary import Boundary
from lightly_dira.transforms.kinds import SAYABLE
from lightly_dira.transforms.mixtures import published_mixture, published_volume_mixture
from lightly_dira.transforms.monai_steps import (
    is_of_monai,
    scales_by_fixed_numbers,
)
from lightly_dira.transforms.preview import draw_preview
from lightly_dira.transforms.published_pipeline import PublishedPipeline
from lightly_dira.transforms.taking_apart import (
    FLIPS,
    find_normalisation,
    steps_in,
    take_apart,
)
from lightly_dira.transforms.volume_pipeline import VolumePipeline
from lightly_dira.views import DiRAViews


class DiRATransform:
    """Distorts the views of a transform and keeps their clean targets [0].

    The base transform is taken apart into its steps. Geometry (crop, flip, rotation)
    is drawn once and shared by a view and its target. Photometric steps and the
    distortion touch the view only. The distortion comes after them, but before
    conversion to a tensor and normalisation, so that black is black. Steps of unknown
    kind are applied to both view and target. A transform that cannot be taken apart is
    left whole: its finished view, with any normalisation inside undone, is the target,
    and is distorted for the view. Grids and masks that a transform returns beside its
    views pass through unchanged.

    Images of more than 8 bits are processed as floats and keep their precision.

    Without a base transform, the published pipeline is used: for each of two views a
    random resized crop (scale 0.2 to 1), a flip (p 0.5), colour jitter (0.4, 0.4, 0.4,
    0.1; p 0.8) and a Gaussian blur (sigma 0.1 to 2; p 0.5), not normalised, in three
    channels.

    All randomness comes from the global generators that the base transform uses. The
    generators of albumentations repeat their draws in data loader workers, so they are
    seeded from PyTorch's for every image.

    - [0]: DiRA, 2022, https://arxiv.org/abs/2204.10437 (Section 4.1)

    Attributes:
        transform: The base transform.
        target_view: Index of the view to restore, or None for the first one that the
            trained encoder sees.
        target_channels: Channels of the target.
        distortion: The albumentations transform that distorts every view, or None.
        window: Values of the image that are black and white, or None.

    Shape:
        - image: a PIL image, an array (H, W) or (H, W, C) or a tensor (C, H, W), of 1
          to 32 channels, 8 or 16 bits or float, and at least 16 x 16 pixels.
        - output: `DiRAViews` of float (C, H, W), with targets (target_channels, H, W)
          in [0, 1].
        - volume (spatial_dims=3): an array or a tensor (D, H, W) or (C, D, H, W); with
          a base transform of MONAI also what that takes, such as a file. The views
          are (C, D, H, W), with targets (target_channels, D, H, W).

    Examples:
        >>> from lightly.transforms import MoCoV2Transform
        >>> from PIL import Image
        >>> from lightly_dira import DiRATransform
        >>> transform = DiRATransform(MoCoV2Transform(input_size=64))
        >>> x_query, x_key = views = transform(Image.new("RGB", (128, 128)))
        >>> x_query.shape, views.target.shape
        (torch.Size([3, 64, 64]), torch.Size([1, 64, 64]))
    """

    def __init__(
        self,
        transform: Callable[..., Any] | Sequence[Callable[..., Any]] | None = None,
        *,
        spatial_dims: int = 2,
        input_size: int | tuple[int, int, int] | None = None,
        target_view: int | None = None,
        target_channels: int = 1,
        distortion: A.BasicTransform | A.BaseCompose | str | None = "published",
        aligned: bool = True,
        window: Window | None = None,
        kinds: Mapping[Any, str] | None = None,
    ) -> None:
        """Takes the base transform apart.

        Args:
            transform: Makes views of an image: a Lightly transform, a torchvision or
                albumentations `Compose`, any other callable, a list of callables, one
                for each view, or a `PublishedPipeline` with numbers of your own.
            spatial_dims: 2 for images, 3 for volumes.
            input_size: Side of the views of the published pipeline, in pixels (224), or
                (D, H, W) of volumes (32, 64, 64); ignored with another base transform.
            target_view: Index of the view to restore. By default every view carries its
                target; of the views that the trained encoder sees, the first is
                restored.
            target_channels: 1 for grey (luminance), or as many as the images have.
            distortion: Any albumentations transform; "published" for
                `lightly_dira.transforms.published_mixture()`, None for no distortion.
            aligned: False leaves horizontal flips out of the target, so that half of
                the targets are mirrored, as in the published run. A
                `PublishedPipeline` uses its own `aligned`.
            window: Values of the image that become 0 and 1, in its own units, for
                example (-1000, 400) for the lung in CT; "percentiles" takes 0.5 and
                99.5 of each image, for MRI and other arbitrary units. Without one,
                integers are divided by the largest value of 8 or 16 bits, and floats
                must lie in [0, 1].
            kinds: What your own steps do: "geometric" (the target is moved in the same
                way), "photometric" (the target stays as it was), "conversion" or
                "normalisation". Keys are classes, their names or the steps themselves.
                Steps of torchvision, Lightly and albumentations are known.

        Raises:
            TypeError: If `transform` cannot be called, is a `DiRATransform`, has a step
                that mixes images or makes several of one, or `distortion` is not a
                transform.
            ValueError: If a number is out of range.
        """
        _check_numbers(target_channels, target_view, input_size)
        check_window(window)
        self.transform = _base(transform, spatial_dims, input_size, aligned)
        self.spatial_dims = spatial_dims
        self.target_view = target_view
        self.target_channels = target_channels
        self.distortion = _distortion(distortion, spatial_dims)
        self.window = window
        # The published pipelines take samples themselves.
        own = isinstance(self.transform, (PublishedPipeline, VolumePipeline))
        self._call: Any = self.transform
        if not own:
            self._call = take_apart(self.transform, aligned, _checked_kinds(kinds))
            self._check_steps(aligned)
        self._opaque = isinstance(self._call, Step) and self._call.kind == "unknown"
        self._normalisation = find_normalisation(self.transform)
        known = self._normalisation
        self._boundary = Boundary(
            self.transform,
            window,
            spatial_dims,
            colour=known is not None and len(known[0]) == 3,
            # Grey views of the published pipeline become RGB.
            expand=isinstance(self.transform, PublishedPipeline),
            in_units=not own and bool(self._fixed),
            hint="" if own else self._say_what_is_not_known(),
        )

    def _check_steps(self, aligned: bool) -> None:
        """Looks for steps that do not go together with the other arguments."""
        parts = [*steps_in(self._call)]
        steps = [part.transform for part in parts]
        if any(isinstance(step, DiRATransform) for step in steps):
            raise TypeError(_TWICE)
        if not (aligned or any(name_of(step) in FLIPS for step in steps)):
            raise ValueError(
                "DiRATransform: aligned=False leaves out of the target the horizontal "
                f"flips of {' and '.join(FLIPS)}, and the base transform has none. "
                "Leave it at True."
            )
        self._fixed = list(filter(scales_by_fixed_numbers, steps))
        if self.window is not None and self._fixed:
            raise ValueError(
                f"DiRATransform: {name_of(self._fixed[0])} scales values by fixed "
                "numbers, which window= has scaled to [0, 1] before. Leave one of the "
                "two out."
            )
        for part in parts:
            moves = part.kind in ("geometric", "mixed")
            part.clamps = self.spatial_dims == 2 and moves

    def _say_what_is_not_known(self) -> str:
        """Warns of steps of unknown kind, and returns what to do about them."""
        if self._opaque:
            warn(
                f"DiRATransform: {name_of(self.transform)} is left whole, so that its "
                "finished views are restored, with any blur and change of colours. To "
                "restore clean images, give the steps of each view: "
                "DiRATransform([compose, compose])."
            )
            return ""
        kinds = {name_of(s.transform): s.kind for s in steps_in(self._call)}
        unknown = [name for name, kind in kinds.items() if kind == "unknown"]
        if not unknown:
            return ""
        names = ", ".join(unknown)
        cure = (
            "Say what it does: DiRATransform(transform, "
            f'kinds={{"{unknown[-1]}": "photometric"}}), or "geometric".'
        )
        warn(
            f"DiRATransform: the effect of {names} on an image is not known, so it is "
            "applied to the target as well, with any change of colours or holes. "
            f"{cure}"
        )
        return f"Targets pass through {names}, too. {cure}"

    def __call__(self, image: Any, *extras: Any) -> DiRAViews:
        """Returns the views of an image, with their targets.

        Threads take turns: steps share random states, which are the same for a view and
        its target.

        Args:
            image: The image.
            extras: What else the base transform takes, for example a mask.

        Raises:
            TypeError: If `image` is not an image, or of an unsupported type.
            ValueError: If `image` is too small or has values that cannot be used, or
                there is no view `target_view`.
        """
        with _turns[0]:
            return self._views_of(image, extras)

    def set_random_state(self, seed: int | None = None, state: Any = None) -> Any:
        """Passes what MONAI's loaders say on to a base transform that is left whole.

        All other draws follow PyTorch's generators, which those loaders seed as well.
        """
        if self._opaque and is_of_monai(self.transform):
            self.transform.set_random_state(seed=seed, state=state)
        return self

    def _views_of(self, image: Any, extras: tuple[Any, ...]) -> DiRAViews:
        if self._opaque:
            image = self._boundary.enter_whole(image)
            outputs, draws = self.transform(image, *extras), Draws()
            if isinstance(outputs, DiRAViews):
                raise TypeError(_TWICE)
            several = isinstance(outputs, (list, tuple))
            outputs = outputs if several else [outputs]
            outputs = [self._finished(output, draws) for output in outputs]
        else:
            image = self._boundary.enter(image)
            deep = getattr(image, "dtype", None) in (np.float32, torch.float32)
            sample = Sample(image, image, Draws(), self._distort, deep)
            outputs = self._call(sample, *extras)
            if not isinstance(outputs, list):
                outputs = [outputs]
        found = {index: _sample_in(output) for index, output in enumerate(outputs)}
        samples = {i: sample for i, sample in found.items() if sample is not None}
        if len(samples) <= (self.target_view or 0):
            raise ValueError(
                f"DiRATransform: target_view={self.target_view}, but the transform "
                f"makes {len(samples)} views."
            )
        target_view = self.target_view
        if target_view is not None:
            target_view = [*samples][target_view]
            samples = {target_view: samples[target_view]}
        targets = {
            index: self._boundary.target(sample.target, self.target_channels)
            for index, sample in samples.items()
            # A stack of patches, as from Lightly's PIRL, has no target by default.
            if target_view is not None
            or getattr(sample.target, "ndim", 3) <= self.spatial_dims + 1
        }
        if not targets:
            shapes = [tuple(getattr(s.view, "shape", ())) for s in samples.values()]
            raise ValueError(
                f"DiRATransform: none of the views, of shapes {shapes}, is an image "
                "(C, H, W) that could be restored. Steps that return batches of one, "
                "as kornia's: make them with keepdim=True."
            )
        views = map(self._finish, outputs)
        return DiRAViews(views, targets, target_view=target_view)

    def __repr__(self) -> str:
        """Shows base transform and distortion."""
        return (
            f"DiRATransform(\n  transform={self.transform!r},\n  "
            f"distortion={self.distortion!r},\n  target_view={self.target_view}, "
            f"target_channels={self.target_channels}, window={self.window},\n)"
        )

    def preview(self, image: Any, n: int = 8) -> Any:
        """Plots `n` examples of a transformed image: clean target and views.

        Args:
            image: The image.
            n: How often to transform the image.

        Returns:
            A `matplotlib.figure.Figure`; matplotlib must be installed.
        """
        examples = [self(image) for _ in range(n)]
        return draw_preview(examples, self._shown, self._boundary.picture)

    def _shown(self, view: Tensor) -> Tensor:
        if view.ndim > self.spatial_dims + 1:  # a stack of patches
            parts = torch.stack([self._shown(part) for part in view])
            grid: Tensor = make_grid(parts, nrow=math.isqrt(len(parts)))
            return grid
        shown = self._denormalised(view)
        known = self._normalisation
        if known is not None and known[0].max() > 1:  # of values up to 255
            shown = shown / 255
        return self._boundary.picture(shown)

    def _finished(self, output: Any, draws: Draws) -> Any:
        """Makes samples of finished views, and leaves all else as it is."""
        if isinstance(output, tuple) and output:
            return self._finished(output[0], draws), *output[1:]
        if not isinstance(output, (Tensor, np.ndarray, Image.Image, Mapping)):
            return output
        if isinstance(output, tv_tensors.Mask):
            return output
        view = self._boundary.tensor(output)
        clean = self._denormalised(view)
        if view.ndim != 3 or clean is view:
            return Sample(view, view, draws, self._distort)
        assert self._normalisation is not None
        mean, std = self._normalisation
        return Sample((self._distort(clean, draws) - mean) / std, clean, draws, None)

    def _finish(self, output: Any) -> Any:
        if isinstance(output, tuple):
            return tuple(map(self._finish, output))
        if not isinstance(output, Sample):
            return output
        return self._boundary.finish(output.distorted().view)

    def _denormalised(self, view: Tensor) -> Tensor:
        if self._normalisation is None or len(view) != len(self._normalisation[0]):
            return view
        mean, std = self._normalisation
        return view * std + mean

    def _distort(self, view: Any, draws: Draws) -> Any:
        if self.distortion is None:
            return view
        return self._boundary.distort(self.distortion, view, draws)


def _check_numbers(
    target_channels: int,
    target_view: int | None,
    input_size: int | tuple[int, int, int] | None,
) -> None:
    sides = (input_size,) if isinstance(input_size, int) else input_size or (1,)
    channels = 1 <= target_channels <= MOST_CHANNELS
    if not channels or (target_view or 0) < 0 or min(sides) < 1:
        raise ValueError(
            f"DiRATransform: target_channels must be 1 to {MOST_CHANNELS}, target_view "
            "at least 0 or None and input_size at least 1, got "
            f"{target_channels}, {target_view} and {input_size}."
        )


def _base(
    transform: Any,
    spatial_dims: int,
    size: int | tuple[int, int, int] | None,
    aligned: bool,
) -> Any:
    """Returns the base transform: a published pipeline if there is none."""
    if spatial_dims not in (2, 3):
        raise ValueError(
            "DiRATransform: spatial_dims must be 2 for images or 3 for volumes, got "
            f"{spatial_dims}."
        )
    several = isinstance(transform, (list, tuple))
    views = transform if several else [transform]
    if not views or not all(view is None or callable(view) for view in views):
        raise TypeError(
            "DiRATransform: transform must be callable, or a list of callables, got "
            f"{transform!r}."
        )
    pipelines = {2: PublishedPipeline, 3: VolumePipeline}
    if isinstance(transform, pipelines[5 - spatial_dims]):
        raise ValueError(
            "DiRATransform: PublishedPipeline makes views of images, and "
            f"VolumePipeline of volumes; spatial_dims is {spatial_dims}."
        )
    if several:
        return MultiViewTransform(transform)
    if transform is not None:
        return transform
    if spatial_dims == 3:
        size = (size,) * 3 if isinstance(size, int) else size
        return VolumePipeline() if size is None else VolumePipeline(size)
    if not isinstance(size, (int, type(None))):
        raise ValueError(
            "DiRATransform: input_size must be the side of the views, in pixels, got "
            f"{size}. Volumes: spatial_dims=3."
        )
    return PublishedPipeline(224 if size is None else size, aligned)


def _distortion(distortion: Any, spatial_dims: int) -> Any:
    if distortion == "published":
        images = spatial_dims == 2
        return published_mixture() if images else published_volume_mixture()
    if not isinstance(distortion, (A.BasicTransform, A.BaseCompose, type(None))):
        raise TypeError(
            "DiRATransform: distortion must be an albumentations transform, "
            f"'published' or None, got {distortion!r}."
        )
    return distortion


def _checked_kinds(kinds: Mapping[Any, str] | None) -> dict[Any, str]:
    said = dict(kinds or {})
    if not set(said.values()) <= set(SAYABLE):
        raise ValueError(
            f"DiRATransform: kinds must be of {', '.join(SAYABLE)}, got "
            f"{', '.join(map(repr, said.values()))}."
        )
    return said


def _sample_in(output: Any) -> Sample | None:
    """Returns the sample in an output, which may also hold masks and grids."""
    parts = output if isinstance(output, tuple) else (output,)
    return next((part for part in parts if isinstance(part, Sample)), None)


# In a list, so that a forked worker gets a lock that no thread of its parent holds.
_turns = [threading.RLock()]
if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=lambda: _turns.__setitem__(0, threading.RLock()))

_TWICE = (
    "DiRATransform: this transform is wrapped already, so that its views would be "
    "taken for clean ones. Wrap the base transform once, DiRATransform(transform)."
)
