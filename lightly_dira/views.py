"""DiRAViews: what a data loader carries from the transform to the wrapper."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from lightly.data.multi_view_collate import MultiViewCollate
from torch import Tensor
from torch.utils.data._utils.collate import collate, default_collate_fn_map


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
        self,
        views: Iterable[Tensor],
        target: Tensor | None = None,
        *,
        target_view: int = 0,
    ) -> None:
        """Joins views and target.

        Args:
            views: The views.
            target: The clean image.
            target_view: Index of the view that it belongs to.

        Raises:
            TypeError: If there is no target.
        """
        if target is None:
            # Lightning, for one, makes every list anew whose tensors it converts.
            raise TypeError(
                "DiRAViews: expected a target. Something made the list of views anew, "
                "and lost it. Lightning does so where the Trainer has a precision of "
                "'64-true', '32-true', '16-true' or 'bf16-true': leave it at 32 or "
                "choose '16-mixed' or 'bf16-mixed'."
            )
        super().__init__(views)
        self.target = target
        self.target_view = target_view

    def to(self, *args: Any, **kwargs: Any) -> DiRAViews:
        """Moves views and target as `torch.Tensor.to` does."""
        return self._each(lambda tensor: tensor.to(*args, **kwargs))

    def pin_memory(self) -> DiRAViews:
        """Copies views and target to page-locked memory."""
        return self._each(torch.Tensor.pin_memory)

    @property
    def view(self) -> Tensor:
        """The view that the target belongs to."""
        view = self[self.target_view]
        return view if isinstance(view, Tensor) else view[0]

    def _each(self, function: Callable[[Tensor], Tensor]) -> DiRAViews:
        def apply(value: Any) -> Any:
            if isinstance(value, (list, tuple)):
                return type(value)(map(apply, value))
            return function(value) if isinstance(value, Tensor) else value

        return DiRAViews(
            map(apply, self), function(self.target), target_view=self.target_view
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
