"""DiRABatchTransform: views and targets of a whole batch, made on its device."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightly_dira.core.same_image import differences_of, is_waited_for
from lightly_dira.core.user_warnings import warn
from lightly_dira.data.pixels import LUMINANCE
from lightly_dira.transforms.alignment import name_of
from lightly_dira.transforms.arguments import check_numbers, checked_kinds
from lightly_dira.transforms.batch_distortion import BatchDistortion
from lightly_dira.transforms.kinds import is_of_library, kind_of, parts_in_order
from lightly_dira.views import DiRAViews

# What pixels outside [0, 1] may be a part of before a normalisation.
_OUTSIDE = 0.1


class _Step(NamedTuple):
    call: Callable[[Tensor], Tensor]
    kind: str


class DiRABatchTransform(nn.Module):
    """`DiRATransform` for batches, on the device that they are on.

    For pipelines whose crops and flips run on the accelerator: steps of kornia, of
    torchvision v2, or any callable of a batch. Geometry moves a view and its target
    together, photometric steps and the distortion change the view only, and the
    distortion comes before any normalisation. Nothing is drawn on the host for the
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
        self._steps = [_steps_of(each, stated) for each in transforms]
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
        self, steps: Sequence[_Step], images: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Makes one view and its target of each image."""
        view = target = images
        is_distorted = self.distortion is None
        is_normalised = False
        for step in steps:
            if step.kind == "normalisation":
                if not is_distorted:
                    view = self._distorted(view, shared=view is target)
                    is_distorted = True
                view = self._run(step, view, shared=view is target)
                is_normalised = True
            elif step.kind == "photometric":
                before = view
                view = self._run(step, before, shared=before is target)
                self._check_places(step, before, view)
            elif view is target:
                view = target = self._run(step, view, shared=True).clamp(0, 1)
            else:
                sizes = [view.shape[1], target.shape[1]]
                both = self._run(step, torch.cat([view, target], dim=1))
                view, target = torch.split(both, sizes, dim=1)
                target = target.clamp(0, 1)
                view = view if is_normalised else view.clamp(0, 1)
        if not is_distorted:
            view = self._distorted(view, shared=view is target)
        return view, self._target(target)

    def _run(self, step: _Step, images: Tensor, *, shared: bool = False) -> Tensor:
        """Runs a step on a batch, which must stay as it is if it is shared."""
        out = step.call(images.clone() if shared and _may_change(step.call) else images)
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
        # Without the type of `tv_tensors`, which batches would hand on.
        return out.as_subclass(Tensor)

    def _distorted(self, view: Tensor, *, shared: bool) -> Tensor:
        assert self.distortion is not None
        if self._may_look(view):
            outside = ((view < 0) | (view > 1)).float().mean().item()
            if outside > _OUTSIDE:
                raise ValueError(
                    f"DiRABatchTransform: {outside:.0%} of the pixels leave [0, 1] "
                    "before the distortion, whose black is 0. A step that normalises: "
                    f'say so, kinds={{step: "normalisation"}}.'
                )
        return self._run(_Step(self.distortion, "distortion"), view, shared=shared)

    def _check_places(self, step: _Step, before: Tensor, after: Tensor) -> None:
        """Checks that a step that is said to change pixels does not move them."""
        moves = before.shape[2:] != after.shape[2:]
        if not moves and any(map(is_of_library, type(step.call).__mro__)):
            return
        if not moves and self._may_look(before):
            correlation = 1 - differences_of(before, after) / 2
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
            weights = self._luminance.to(clean.dtype)
            return torch.einsum("c,bchw->bhw", weights, clean[:, :3])[:, None]
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


def _may_change(step: Callable[[Tensor], Tensor]) -> bool:
    """Whether a step may change in place what it is given."""
    own = any(map(is_of_library, type(step).__mro__))
    return bool(getattr(step, "inplace", not own))


def _steps_of(transform: Any, stated: Mapping[Any, str]) -> list[_Step]:
    """Returns the steps of a view's transform, in order."""
    parts = parts_in_order(transform)
    if parts is not None:
        return [step for part in parts for step in _steps_of(part, stated)]
    kind = kind_of(transform, stated)
    if kind not in ("geometric", "photometric", "conversion", "normalisation"):
        raise ValueError(
            f"DiRABatchTransform: what {name_of(transform)} does to a batch is not "
            f"known, or several things at once ({kind}). Say what it does, "
            f'kinds={{{name_of(transform)!r}: "geometric"}} or "photometric", or give '
            "its parts one after the other."
        )
    return [_Step(transform, kind)]
