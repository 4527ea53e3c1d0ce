"""DiRABatchTransform: views and targets of a whole batch, made on its device."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightly_dira.core.same_image import correlations_of, is_waited_for
from lightly_dira.core.user_warnings import warn
from lightly_dira.data.pixels import LUMINANCE
from lightly_dira.transforms.alignment import name_of
from lightly_dira.transforms.arguments import check_numbers, checked_kinds
from lightly_dira.transforms.batch_distortion import BatchDistortion
from lightly_dira.transforms.batch_steps import (
    MOVE_BOTH,
    BatchStep,
    check_numbers_of,
    steps_of,
)
from lightly_dira.transforms.kinds import is_of_library, may_change
from lightly_dira.views import DiRAViews

# What pixels outside [0, 1] may be a part of before a normalisation.
_OUTSIDE = 0.1


class DiRABatchTransform(nn.Module):
    """`DiRATransform` for batches, on the device that they are on.

    For pipelines whose crops and flips run on the accelerator: steps of kornia, of
    torchvision v2, or any callable of a batch. Geometry moves a view and its target
    together, photometric steps and the distortion change the view only, and the
    distortion comes before any normalisation. Conversions of torchvision are left out,
    as pixels are floats in [0, 1] throughout. Nothing is drawn on the host for the
    distortion, and nothing waits for the device after the first batch.

    kornia draws for each image of the batch. torchvision v2 draws once for all of them:
    each view of the batch then has one crop, as without DiRA.

    Args:
        transform: Makes a view of a batch (B, C, H, W): a step, an `nn.Sequential`, a
            `Compose` of torchvision v2 or an `AugmentationSequential` of kornia. A list
            has one for each view.
        views: How many views are made, unless `transform` is a list.
        spatial_dims: 2 for images, 3 for volumes.
        target_channels: 1 for grey (luminance), or as many as the images have.
        distortion: Called with a batch, such as a `BatchDistortion`; "published" for
            one with the published numbers, None for no distortion.
        kinds: What your own steps do: "geometric", "photometric", "conversion" or
            "normalisation". Keys are classes, their names or the steps themselves.

    Shape:
        - images: (B, C, H, W) or (B, C, D, H, W), floats in [0, 1] or uint8.
        - output: `DiRAViews` of such batches, each with its target.

    Raises:
        TypeError: If images are neither floats nor uint8, or a step makes something
            other than one view of each image.
        ValueError: If a step's kind is not known, or values are not in [0, 1].

    Examples:
        >>> import torch
        >>> from torchvision.transforms import v2
        >>> from lightly_dira.transforms import DiRABatchTransform
        >>> make_views = DiRABatchTransform(
        ...     v2.Compose([v2.RandomResizedCrop(32), v2.ColorJitter(0.4, 0.4)])
        ... )
        >>> x0, x1 = views = make_views(torch.rand(8, 3, 64, 64))
        >>> x0.shape, views.target.shape
        (torch.Size([8, 3, 32, 32]), torch.Size([8, 1, 32, 32]))
    """

    _luminance: Tensor

    def __init__(
        self,
        transform: Callable[[Tensor], Any] | Sequence[Callable[[Tensor], Any]],
        *,
        views: int = 2,
        spatial_dims: int = 2,
        target_channels: int = 1,
        distortion: Callable[[Tensor], Tensor] | str | None = "published",
        kinds: Mapping[Any, str] | None = None,
    ) -> None:
        """Takes the transforms apart."""
        super().__init__()
        check_numbers(target_channels, None, None)
        stated = checked_kinds(kinds)
        transforms = (
            list(transform) if isinstance(transform, Sequence) else [transform] * views
        )
        if not transforms or not all(map(callable, transforms)):
            raise TypeError(
                "DiRABatchTransform: transform must be callable with a batch, or a "
                f"list with one callable for each view, got {transform!r}."
            )
        if distortion == "published":
            distortion = BatchDistortion(spatial_dims=spatial_dims)
        if not (distortion is None or callable(distortion)):
            raise TypeError(
                "DiRABatchTransform: distortion must be callable with a batch, "
                f"'published' or None, got {distortion!r}."
            )
        self.spatial_dims = spatial_dims
        self.target_channels = target_channels
        self.distortion: Any = distortion
        self._steps = [steps_of(each, stated) for each in transforms]
        for steps in self._steps:
            check_numbers_of(steps)
        # So that they are moved together with this module.
        parts = (step.call for steps in self._steps for step in steps)
        self._modules_of_steps = nn.ModuleList(
            {id(part): part for part in parts if isinstance(part, nn.Module)}.values()
        )
        self.register_buffer("_luminance", LUMINANCE.clone(), persistent=False)
        self._was_called = False

    @torch.no_grad()
    def forward(self, images: Tensor) -> DiRAViews:
        """Returns the views of a batch, with their targets."""
        images = self._pixels(images)
        pairs = [self._view_and_target(steps, images) for steps in self._steps]
        self._was_called = True
        views, targets = zip(*pairs, strict=True)
        return DiRAViews(views, dict(enumerate(targets)), target_view=None)

    def _pixels(self, images: Tensor) -> Tensor:
        """Returns floats in [0, 1]."""
        if images.ndim != self.spatial_dims + 2:
            raise ValueError(
                "DiRABatchTransform: expected a batch of "
                f"{self.spatial_dims + 2} dimensions, got shape {tuple(images.shape)}. "
                "Volumes: spatial_dims=3."
            )
        if images.dtype == torch.uint8:
            return images.float() / 255
        if not images.is_floating_point():
            raise TypeError(
                f"DiRABatchTransform: expected floats or uint8, got {images.dtype}. "
                "Scale them to [0, 1]: `images.float() / 65535`, if they have 16 bits."
            )
        if self._may_look(images):
            low, high = (value.item() for value in images.aminmax())
            if not -1e-3 <= low <= high <= 1 + 1e-3:
                raise ValueError(
                    "DiRABatchTransform: expected pixels in [0, 1], as targets are, "
                    f"got values from {low:.4g} to {high:.4g}. Scale the images before "
                    "this transform, and normalise in it, as its last step."
                )
        return images

    def _view_and_target(
        self, steps: Sequence[BatchStep], images: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Makes one view and its target of each image."""
        view = target = images
        is_distorted = self.distortion is None
        is_normalised = False
        for step in steps:
            if step.kind in ("photometric", "normalisation"):
                view = self._apart(steps, view, target)
                if step.kind == "normalisation" and not is_distorted:
                    view, is_distorted = self._distorted(view), True
                before, view = view, self._run(step, view)
                if step.kind == "photometric":
                    self._check_places(step, before, view)
                is_normalised |= step.kind == "normalisation"
            elif view is target:
                given = view.clone() if may_change(step.call) else view
                view = target = self._run(step, given).clamp(0, 1)
            else:
                sizes = [view.shape[1], target.shape[1]]
                both = self._run(step, torch.cat([view, target], dim=1))
                view, target = torch.split(both, sizes, dim=1)
                target = target.clamp(0, 1)
                view = view if is_normalised else view.clamp(0, 1)
        if not is_distorted:
            view = self._distorted(self._apart(steps, view, target))
        # A loop may normalise its views in place.
        kept = {x.untyped_storage().data_ptr() for x in (images, target)}
        if view.untyped_storage().data_ptr() in kept:
            view = view.clone()
        return view, self._target(target)

    def _apart(
        self, steps: Sequence[BatchStep], view: Tensor, target: Tensor
    ) -> Tensor:
        """Returns the view, or a copy if what follows might change the target with it.

        A step may return what it was given: so it is decided once for all of them.
        """
        if view is not target:
            return view
        change = [step.call for step in steps if step.kind not in MOVE_BOTH]
        if self.distortion is not None:
            change.append(self.distortion)
        # Even if nothing changes, the two are different from now on.
        return view.clone() if any(map(may_change, change)) else view.view_as(view)

    def _run(self, step: BatchStep, images: Tensor) -> Tensor:
        out = step.call(images)
        if not isinstance(out, Tensor) or (len(out), out.ndim) != (
            len(images),
            images.ndim,
        ):
            got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise TypeError(
                f"DiRABatchTransform: {name_of(step.call)} must make one batch of a "
                f"batch of shape {tuple(images.shape)}, got {got}. Steps that take one "
                "image at a time: use DiRATransform in the data set."
            )
        if not out.is_floating_point():
            raise TypeError(
                f"DiRABatchTransform: {name_of(step.call)} makes {out.dtype} of the "
                "batch, whose pixels are floats in [0, 1] throughout. Leave it out."
            )
        # Without the type of `tv_tensors`, which batches would hand on.
        return out.as_subclass(Tensor)

    def _distorted(self, view: Tensor) -> Tensor:
        assert self.distortion is not None
        if self._may_look(view):
            outside = ((view < 0) | (view > 1)).float().mean().item()
            if outside > _OUTSIDE:
                raise ValueError(
                    f"DiRABatchTransform: {outside:.0%} of the pixels leave [0, 1] "
                    "before the distortion, whose black is 0. A step that normalises: "
                    f'say so, kinds={{step: "normalisation"}}.'
                )
        return self._run(BatchStep(self.distortion, "distortion"), view)

    def _check_places(self, step: BatchStep, before: Tensor, after: Tensor) -> None:
        """Checks that a step that is said to change pixels does not move them."""
        moves = before.shape[2:] != after.shape[2:]
        if not moves and any(map(is_of_library, type(step.call).__mro__)):
            return
        if not moves and self._may_look(before):
            correlation = correlations_of(before, after)
            moves = correlation.abs().mean().item() < 0.5
        if moves:
            warn(
                f"DiRABatchTransform: {name_of(step.call)} is said to be photometric, "
                "but what it returns hardly resembles what it is given. If it moves "
                "pixels, targets must move, too: "
                f'kinds={{{name_of(step.call)!r}: "geometric"}}.'
            )

    def _target(self, clean: Tensor) -> Tensor:
        channels = clean.shape[1]
        if channels == self.target_channels:
            return clean
        if self.target_channels != 1:
            raise ValueError(
                f"DiRABatchTransform: images of {channels} channels cannot give a "
                f"target of {self.target_channels}; target_channels must be 1 or "
                f"{channels}."
            )
        if self.spatial_dims == 2 and channels in (3, 4):
            # Not by a product of matrices, which autocast would round.
            weights = self._luminance.to(clean.dtype).view(3, 1, 1)
            return (weights * clean[:, :3]).sum(dim=1, keepdim=True)
        return clean.mean(dim=1, keepdim=True)

    def _may_look(self, images: Tensor) -> bool:
        """Whether values may be read: on an accelerator only of the first batch."""
        return not (self._was_called and is_waited_for(images))

    def extra_repr(self) -> str:
        """Shows what each step does."""
        views = [
            ", ".join(f"{name_of(step.call)}: {step.kind}" for step in steps)
            for steps in self._steps
        ]
        return "\n".join(views)
