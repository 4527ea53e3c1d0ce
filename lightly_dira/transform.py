"""DiRATransform: distorted views, and the clean target they are to be restored to."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import albumentations as A
import numpy as np
import torch
from lightly.data.multi_view_collate import MultiViewCollate
from lightly.transforms.multi_view_transform import MultiViewTransform
from PIL import Image
from torch import Tensor
from torch.utils.data._utils.collate import collate, default_collate_fn_map
from torchvision.transforms.v2 import functional as F

from lightly_dira.distortions import published_mixture
from lightly_dira.steps import Sample, seeded, take_apart


class DiRAViews(list[Tensor]):
    """The views of one image or of a batch, with the clean target of one of them.

    It is the list of views that the base transform returns, and unpacks like it.
    PyTorch's `default_collate` and Lightly's `MultiViewCollate` make one `DiRAViews`
    of many; `DataLoader(pin_memory=True)` and Lightning move it as a whole.

    Attributes:
        target: The clean image, float, in [0, 1]; (C, H, W), or (B, C, H, W) once
            collated.
        target_view: Index of the view that the target belongs to.

    Examples:
        >>> import torch
        >>> from torch.utils.data import default_collate
        >>> from lightly_dira import DiRAViews
        >>> views = torch.rand(2, 3, 32, 32)
        >>> samples = [DiRAViews(views, target=torch.rand(1, 32, 32))] * 4
        >>> x0, x1 = batch = default_collate(samples)
        >>> x0.shape, batch.target.shape
        (torch.Size([4, 3, 32, 32]), torch.Size([4, 1, 32, 32]))
    """

    def __init__(
        self, views: Iterable[Tensor], target: Tensor, *, target_view: int = 0
    ) -> None:
        """Joins views and target.

        Args:
            views: The views.
            target: The clean image.
            target_view: Index of the view that it belongs to.
        """
        super().__init__(views)
        self.target = target
        self.target_view = target_view

    def to(self, *args: Any, **kwargs: Any) -> DiRAViews:
        """Moves views and target as `torch.Tensor.to` does."""
        return self._each(lambda tensor: tensor.to(*args, **kwargs))

    def pin_memory(self) -> DiRAViews:
        """Copies views and target to page-locked memory."""
        return self._each(torch.Tensor.pin_memory)

    def _each(self, function: Callable[[Tensor], Tensor]) -> DiRAViews:
        return DiRAViews(
            map(function, self),
            target=function(self.target),
            target_view=self.target_view,
        )


def find_views(batch: Any) -> DiRAViews | None:
    """Returns the first `DiRAViews` in nested lists, tuples and dicts, if any."""
    if isinstance(batch, DiRAViews):
        return batch
    if isinstance(batch, Mapping):
        batch = list(batch.values())
    if not isinstance(batch, (list, tuple)):
        return None
    found = map(find_views, batch)
    return next((views for views in found if views is not None), None)


def _collate_views(
    samples: Sequence[DiRAViews], *, collate_fn_map: Any = None
) -> DiRAViews:
    join = functools.partial(collate, collate_fn_map=collate_fn_map)
    return DiRAViews(
        map(join, zip(*samples, strict=True)),
        target=join([sample.target for sample in samples]),
        target_view=samples[0].target_view,
    )


def _keeping_targets(call: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(call)
    def wrapped(self: MultiViewCollate, batch: Sequence[Any]) -> Any:
        views, *rest = call(self, batch)
        samples = [sample[0] for sample in batch]
        if samples and all(isinstance(sample, DiRAViews) for sample in samples):
            target = torch.stack([sample.target for sample in samples])
            views = DiRAViews(views, target, target_view=samples[0].target_view)
        return views, *rest

    return wrapped


default_collate_fn_map[DiRAViews] = _collate_views
# Lightly's collate function has no such map; its batches of other views stay as ever.
MultiViewCollate.__call__ = _keeping_targets(MultiViewCollate.__call__)


class DiRATransform:
    """Distorts the views of a transform and keeps a clean target of one [0].

    The base transform is taken apart into its steps. Geometry (crop, flip, rotation)
    is drawn once and shared by a view and its target; photometric steps and the
    distortion touch the view only, and the distortion comes last, before conversion
    to a tensor and normalisation, so that black is black. Steps of unknown kind are
    applied to view and target alike.

    Without a base transform it is the published pipeline: for each of two views a
    random resized crop (scale 0.2 to 1), a flip (p 0.5), colour jitter (0.4, 0.4, 0.4,
    0.1; p 0.8) and a Gaussian blur (sigma 0.1 to 2; p 0.5), not normalised, in three
    channels.

    All randomness comes from the global generators that the base transform uses;
    albumentations' own, which repeats itself in data loader workers, is seeded anew
    from PyTorch's for every image.

    - [0]: DiRA, 2022, https://arxiv.org/abs/2204.10437 (Section 4.1)

    Attributes:
        transform: The base transform.
        target_view: Index of the view that the target belongs to.
        target_channels: Channels of the target.

    Shape:
        - image: a PIL image or an array (H, W) or (H, W, C).
        - output: `DiRAViews` of float (C, H, W), with a target (target_channels, H, W)
          in [0, 1].

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
        transform: Callable[[Any], Any] | None = None,
        *,
        input_size: int = 224,
        target_view: int = 0,
        target_channels: int = 1,
        distortion: A.BasicTransform | A.BaseCompose | str | None = "published",
        aligned: bool = True,
    ) -> None:
        """Takes the base transform apart.

        Args:
            transform: Makes views of an image: a Lightly transform or any other.
            input_size: Side of the views of the published pipeline, in pixels; without
                meaning for another base transform.
            target_view: Index of the view that the target belongs to.
            target_channels: 1 for grey (luminance), 3 for colour.
            distortion: Any albumentations transform; "published" for
                `lightly_dira.distortions.published_mixture()`, None for none.
            aligned: False leaves horizontal flips out of the target, so that half of
                the targets are mirrored, as in the published run.

        Raises:
            TypeError: If `transform` cannot be called or `distortion` is none.
            ValueError: If a number is out of range.
        """
        if transform is not None and not callable(transform):
            raise TypeError(
                "DiRATransform: transform must be callable, got "
                f"{type(transform).__name__}."
            )
        if distortion == "published":
            distortion = published_mixture()
        if not isinstance(distortion, (A.BasicTransform, A.BaseCompose, type(None))):
            raise TypeError(
                "DiRATransform: distortion must be an albumentations transform, "
                f"'published' or None, got {distortion!r}."
            )
        if target_channels not in (1, 3):
            raise ValueError(
                f"DiRATransform: target_channels must be 1 or 3, got {target_channels}."
            )
        if target_view < 0 or input_size < 1:
            raise ValueError(
                "DiRATransform: target_view must be at least 0 and input_size at least "
                f"1, got {target_view} and {input_size}."
            )
        self._channels = 3 if transform is None else None
        self.transform = transform or _published_pipeline(input_size)
        self.target_view = target_view
        self.target_channels = target_channels
        self.distortion = distortion
        self._steps = take_apart(self.transform, aligned)

    def __call__(self, image: Any) -> DiRAViews:
        """Returns the views of an image, with the target of one of them.

        Raises:
            ValueError: If there is no view `target_view`.
        """
        if isinstance(image, np.ndarray) and image.dtype == np.uint8:
            image = F.to_pil_image(image)
        samples = self._steps(Sample(image, image, self._distort))
        if isinstance(samples, Sample):
            samples = samples.split()
        if self.target_view >= len(samples):
            raise ValueError(
                f"DiRATransform: target_view={self.target_view}, but the transform "
                f"makes {len(samples)} views."
            )
        views = [_to_tensor(sample.distorted().view) for sample in samples]
        if self._channels is not None:
            views = [view.expand(self._channels, -1, -1) for view in views]
        target = _to_target(samples[self.target_view].target, self.target_channels)
        return DiRAViews(views, target, target_view=self.target_view)

    def __repr__(self) -> str:
        """Shows base transform and distortion."""
        return (
            f"DiRATransform(\n  transform={self.transform!r},\n  "
            f"distortion={self.distortion!r},\n  target_view={self.target_view}, "
            f"target_channels={self.target_channels},\n)"
        )

    def _distort(self, view: Any) -> Any:
        if self.distortion is None:
            return view
        if isinstance(view, Tensor):
            array = view.movedim(0, -1).contiguous().numpy()
            return torch.from_numpy(seeded(self.distortion, [array])[0]).movedim(-1, 0)
        array = seeded(self.distortion, [np.asarray(view)])[0]
        return Image.fromarray(array) if isinstance(view, Image.Image) else array


def _published_pipeline(input_size: int) -> MultiViewTransform:
    view = A.Compose(
        [
            A.RandomResizedCrop(
                (input_size, input_size), scale=(0.2, 1), area_for_downscale="image"
            ),
            A.HorizontalFlip(p=0.5),
            A.ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8),
            A.GaussianBlur(blur_limit=0, sigma_limit=(0.1, 2), p=0.5),
        ]
    )
    return MultiViewTransform([view, view])


def _to_tensor(image: Any) -> Tensor:
    """Returns an image as float (C, H, W), integers divided by their range."""
    if isinstance(image, Tensor):
        tensor = image
    else:
        tensor = torch.from_numpy(np.atleast_3d(np.array(image))).movedim(-1, 0)
    if tensor.dtype.is_floating_point:
        return tensor
    return tensor.to(torch.float32) / torch.iinfo(tensor.dtype).max


def _to_target(image: Any, channels: int) -> Tensor:
    if isinstance(image, Image.Image) and channels == 1:
        image = image.convert("L")
    target = _to_tensor(image).as_subclass(Tensor)
    if len(target) == channels:
        return target
    if len(target) == 3:
        target = torch.einsum("c,chw->hw", _LUMINANCE, target)[None]
    return target.expand(channels, -1, -1)


# Of red, green and blue, ITU-R BT.601.
_LUMINANCE = torch.tensor([0.299, 0.587, 0.114])
