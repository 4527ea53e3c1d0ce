"""DiRATransform: distorted views, and the clean targets to restore from them."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors

from lightly_dira.data.white import Window, check_window
from lightly_dira.transforms.albumentations_steps import Draws
from lightly_dira.transforms.alignment import Sample, Step
from lightly_dira.transforms.arguments import (
    base_transform,
    check_numbers,
    check_steps,
    checked_kinds,
    distortion_of,
    say_what_is_unknown,
    treat_channels_alike,
)
from lightly_dira.transforms.boundary import Boundary
from lightly_dira.transforms.distortion import Distortion
from lightly_dira.transforms.monai_steps import is_of_monai
from lightly_dira.transforms.preview import contact_sheet, draw_preview
from lightly_dira.transforms.published_pipeline import PublishedPipeline
from lightly_dira.transforms.taking_apart import (
    find_normalisation,
    sample_in,
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

    Without a base transform, a `PublishedPipeline` makes two views, or of volumes a
    `VolumePipeline`.

    All draws follow PyTorch's seed, and the global generators that the steps use.

    - [0]: DiRA, 2022, https://arxiv.org/abs/2204.10437 (Section 4.1)

    Attributes:
        transform: The base transform.
        steps: The steps that it was taken apart into; none of published pipelines.
        target_view: Index of the view to restore, or None.
        target_channels: Channels of the target.
        distortion: The `Distortion` of every view, or None.
        window: Values of the image that are black and white, or None.

    Shape:
        - image: a PIL image, an array (H, W) or (H, W, C) or a tensor (C, H, W), of 1
          to 32 channels, 8 or 16 bits or float, and at least 16 x 16 pixels.
        - output: `DiRAViews` of float (C, H, W), with targets (target_channels, H, W)
          in [0, 1].
        - volume (spatial_dims=3): (D, H, W) or (C, D, H, W), or what a base transform
          of MONAI takes. Views and targets are (C, D, H, W).

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
        distortion: Distortion | str | None = "published",
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
            distortion: A `Distortion`, called with an array and a NumPy generator, or
                any transform of albumentations; "published" for
                `lightly_dira.transforms.published_mixture()` (of volumes
                `transvw_mixture()`), None for no distortion.
            aligned: False leaves horizontal flips out of the target: half are mirrored,
                as in the published run. A `PublishedPipeline` uses its own `aligned`.
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
            TypeError: If `transform` or `distortion` cannot be called, `transform` is a
                `DiRATransform`, or a step mixes images or makes several of one.
            ValueError: If a number is out of range.
        """
        check_numbers(target_channels, target_view, input_size)
        check_window(window)
        self.transform = base_transform(transform, spatial_dims, input_size, aligned)
        self.spatial_dims = spatial_dims
        self.target_view = target_view
        self.target_channels = target_channels
        self.distortion = distortion_of(distortion, spatial_dims)
        self.window = window
        # The published pipelines take samples themselves.
        own = isinstance(self.transform, (PublishedPipeline, VolumePipeline))
        self._call: Any = self.transform
        self.steps: list[Step] = []
        fixed: list[Any] = []
        if not own:
            self._call = take_apart(self.transform, aligned, checked_kinds(kinds))
            self.steps = [*steps_in(self._call)]
            if any(isinstance(step.transform, DiRATransform) for step in self.steps):
                raise TypeError(_TWICE)
            fixed = check_steps(self.steps, aligned, window, spatial_dims)
        self._opaque = Step.is_left_whole(self._call)
        self._boundary = Boundary(
            self.transform,
            window,
            spatial_dims,
            normalisation=find_normalisation(self.transform),
            expand=isinstance(self.transform, PublishedPipeline),
            alike=not own and treat_channels_alike(self.steps, self.distortion),
            of_monai=any(is_of_monai(step.transform) for step in self.steps),
            in_units=bool(fixed),
            hint=say_what_is_unknown(self.steps, whole=self._opaque),
        )

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
            if not isinstance(outputs, (list, tuple)):
                outputs = [outputs]
            outputs = [self._finished(output, draws) for output in outputs]
        else:
            image = self._boundary.enter(image)
            deep = getattr(image, "dtype", None) in (np.float32, torch.float32)
            sample = Sample(image, image, Draws(), self._distort, deep)
            outputs = self._call(sample, *extras)
            if not isinstance(outputs, list):
                outputs = [outputs]
        found = {i: sample_in(output) for i, output in enumerate(outputs)}
        samples = {i: sample for i, sample in found.items() if sample is not None}
        if len(samples) <= (self.target_view or 0):
            raise ValueError(
                f"DiRATransform: target_view={self.target_view}, but the transform "
                f"makes {len(samples)} views."
            )
        if (target_view := self.target_view) is not None:
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
            A `matplotlib.figure.Figure`.
        """
        return draw_preview([self(image) for _ in range(n)], self._boundary)

    def contact_sheet(self, images: Sequence[Any]) -> Tensor:
        """Returns clean targets and views of several images as one image (3, H, W).

        The first row are the targets, a column for each image. See also `save_image`.
        """
        return contact_sheet([self(image) for image in images], self._boundary)

    def _finished(self, output: Any, draws: Draws) -> Any:
        """Makes samples of finished views, and leaves all else as it is."""
        if isinstance(output, tuple) and output:
            return self._finished(output[0], draws), *output[1:]
        if not isinstance(output, (Tensor, np.ndarray, Image.Image, Mapping)):
            return output
        if isinstance(output, tv_tensors.Mask):
            return output
        view = self._boundary.tensor(output)
        known = self._boundary.normalisation
        if known is None or view.ndim != 3 or not known.fits(view):
            return Sample(view, view, draws, self._distort)
        clean = known.undone(view)
        return Sample(known.done(self._distort(clean, draws)), clean, draws, None)

    def _finish(self, output: Any) -> Any:
        if isinstance(output, tuple):
            return tuple(map(self._finish, output))
        if not isinstance(output, Sample):
            return output
        return self._boundary.finish(output.distorted().view)

    def _distort(self, view: Any, draws: Draws) -> Any:
        if self.distortion is None:
            return view
        return self._boundary.distort(self.distortion, view, draws)


# In a list, so that a forked worker gets a lock that no thread of its parent holds.
_turns = [threading.RLock()]
if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=lambda: _turns.__setitem__(0, threading.RLock()))

_TWICE = (
    "DiRATransform: this transform is wrapped already, so that its views would be "
    "taken for clean ones. Wrap the base transform once, DiRATransform(transform)."
)
