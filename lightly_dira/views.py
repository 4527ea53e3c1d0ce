"""DiRAViews: what a data loader carries from the transform to the wrapper."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from lightly_dira.core.private_torch import changes_of, collate, default_collate_fn_map
from lightly_dira.core.rows import Rows
from lightly_dira.core.same_image import say_if_unlike
from lightly_dira.core.tensors import moved


class Pair(NamedTuple):
    """A view, and rows of its clean image, on the device that one asks for."""

    view: Tensor
    target: Callable[[Rows, torch.device], Tensor]


class DiRAViews(list[Tensor]):
    """The views of one image or of a batch, with clean targets.

    It is the list of views that the base transform returns, and unpacks like it. No
    operation of lists changes it, as views would get the targets of others.
    PyTorch's `default_collate` joins many `DiRAViews` into one; `DataLoader(
    pin_memory=True)` and Lightning move it as a whole. Lightly's `MultiViewCollate`
    makes plain lists and loses the targets: leave the loader's `collate_fn` out.

    `to` moves the views at once, but a target only when it is asked for. So targets
    that are not restored are not copied to the device.

    Attributes:
        target_view: Index of the view to restore, or None for the first one that the
            trained encoder sees.

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
        target: Tensor | Mapping[int, Tensor] | None = None,
        *,
        target_view: int | None = 0,
    ) -> None:
        """Joins views and targets.

        Args:
            views: The views.
            target: The clean image of the view `target_view`, or the clean images of
                several views by their indices.
            target_view: Index of the view to restore, or None for the first one that
                the trained encoder sees.

        Raises:
            TypeError: If there is no target, or one that is not floating-point.
            ValueError: If a target belongs to a view that is not there.
        """
        if target is None:
            # Lightning, for example, rebuilds every list whose tensors it converts.
            raise TypeError(
                "DiRAViews: expected a target. Something rebuilt the list of views "
                "and lost the target. Lightning does so if the Trainer's precision is "
                "'64-true', '32-true', '16-true' or 'bf16-true': leave it at 32 or "
                "choose '16-mixed' or 'bf16-mixed'. Modules that Fabric has set up do "
                "so in the latter: leave `dira` out of `fabric.setup_module`."
            )
        super().__init__(views)
        if not isinstance(target, Mapping):
            target = {target_view or 0: target}
        for index, clean in target.items():
            if not (isinstance(clean, Tensor) and clean.is_floating_point()):
                got = getattr(clean, "dtype", type(clean).__name__)
                raise TypeError(
                    "DiRAViews: expected targets in [0, 1], floating-point tensors, "
                    f"got {got}. Scale them: of 8 bits, `target.float() / 255`."
                )
            if not 0 <= index < len(self):
                raise ValueError(
                    f"DiRAViews: got a target of view {index}, but {len(self)} views."
                )
        if target_view is not None and target_view not in target:
            raise ValueError(
                f"DiRAViews: target_view={target_view} has no target; {[*target]} "
                "have one. Name one of them, or give None."
            )
        self.target_view = target_view
        self._targets = dict(sorted(target.items()))
        self._in_order = tuple(self)
        self._changes = {index: _changes_of(self[index]) for index in target}
        # The arguments of all calls of `to`, and the targets moved by them so far.
        self._moves: tuple[tuple[tuple[Any, ...], dict[str, Any]], ...] = ()
        self._moved: dict[int, Tensor] = {}

    def _is_fixed(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise TypeError(
            "DiRAViews: views that are added, removed or reordered would get the "
            "targets of others. Change a plain list instead, `list(views)`."
        )

    def __setitem__(self, place: Any, value: Any) -> None:
        """Accepts the very view that is there, as PyTorch's `default_convert` sets."""
        if not isinstance(place, int) or value is not self[place]:
            self._is_fixed()

    __delitem__ = __iadd__ = __imul__ = _is_fixed
    append = clear = extend = insert = pop = remove = reverse = sort = _is_fixed

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles, which would otherwise append views one by one."""
        self._look_at_changes()
        kept = self._targets, self.target_view, self._moves
        own = {n: v for n, v in self.__dict__.items() if n not in _MADE_AGAIN}
        return _remade, (type(self), list(self), *kept), own or None

    @property
    def target(self) -> Tensor:
        """The clean image of `target_view`, or of the first view that has one.

        Float, in [0, 1]; (C, H, W), or (B, C, H, W) once collated.
        """
        return self.target_of(self.target_views[0])

    @property
    def targets(self) -> list[Tensor]:
        """The clean images, one for each view that has one, in the order of views."""
        return [self.target_of(index) for index in self.target_views]

    @property
    def target_views(self) -> list[int]:
        """Indices of the views that have a target, or of the one to restore."""
        known = [*self._targets]
        return known if self.target_view is None else [self.target_view]

    @property
    def view(self) -> Tensor:
        """The view that `target` belongs to."""
        return self.view_of(self.target_views[0])

    def target_of(self, index: int) -> Tensor:
        """Returns the clean image of a view."""
        if index not in self._moved:
            target = self._targets[index]
            for args, kwargs in self._moves:
                target = target.to(*args, **kwargs)
            self._moved[index] = target
        return self._moved[index]

    def target_on(self, index: int, rows: Rows, device: torch.device) -> Tensor:
        """Returns clean images of a view on a device, without waiting for them."""
        return moved(rows.of(self._moved.get(index, self._targets[index])), device)

    def pairs(self, target_channels: int) -> list[Pair]:
        """Returns the views that may be restored, each with its clean image.

        Args:
            target_channels: Channels that the clean images must have.

        Raises:
            ValueError: If they have others, or another size than their view.
        """
        found = []
        for index in self.target_views:
            view, shape = self.view_of(index), self._targets[index].shape
            expected = (len(view), target_channels, *view.shape[2:])
            if shape != expected:
                raise ValueError(
                    f"DiRA: expected targets of shape {expected} for views of shape "
                    f"{tuple(view.shape)}, got {tuple(shape)}. Give `DiRA` and "
                    "`DiRATransform` the same `target_channels`, and keep the target "
                    "at the size of its view."
                )
            found.append(Pair(view, functools.partial(self.target_on, index)))
        self._look_at_changes()
        return found

    def view_of(self, index: int) -> Tensor:
        """Returns a view without the mask or grid that may come with it."""
        view = self[index]
        # Some functions of C, such as `heapq.heapify`, change lists by other ways.
        if view is not self._in_order[index]:
            self._is_fixed()
        return _tensor_of(view)

    def to(self, *args: Any, **kwargs: Any) -> DiRAViews:
        """Moves views and targets as `torch.Tensor.to` does."""
        to = self._each(lambda tensor: tensor.to(*args, **kwargs), self._targets)
        to._moves = (*self._moves, (args, kwargs))
        return to

    def pin_memory(self) -> DiRAViews:
        """Copies views and targets to page-locked memory."""
        pinned = {i: target.pin_memory() for i, target in self._targets.items()}
        return self._each(torch.Tensor.pin_memory, pinned)

    def _look_at_changes(self) -> None:
        """Warns of views that were changed in place and do not show their targets.

        A copy would not know that they were.
        """
        for index, changes in self._changes.items():
            view, target = self.view_of(index), self._targets[index]
            if _changes_of(view) != changes and view.shape[2:] == target.shape[2:]:
                batched = view.ndim > 3 and len(view) == len(target)
                say_if_unlike(*(x if batched else x[None] for x in (view, target)))

    def _each(
        self, function: Callable[[Tensor], Tensor], targets: Mapping[int, Tensor]
    ) -> DiRAViews:
        def apply(value: Any) -> Any:
            if isinstance(value, (list, tuple)):
                return type(value)(map(apply, value))
            return function(value) if isinstance(value, Tensor) else value

        for index in range(len(self)):
            self.view_of(index)
        self._look_at_changes()
        return DiRAViews(map(apply, self), targets, target_view=self.target_view)


# What `DiRAViews` makes of its arguments.
_MADE_AGAIN = ("target_view", "_targets", "_in_order", "_changes", "_moves", "_moved")


def _changes_of(view: Any) -> tuple[int, ...]:
    tensor = _tensor_of(view)
    return changes_of(tensor if isinstance(tensor, Tensor) else None)


def _tensor_of(view: Any) -> Tensor:
    found: Tensor = view if isinstance(view, Tensor) else view[0]
    return found


def _remade(
    kind: type[DiRAViews],
    views: list[Tensor],
    targets: dict[int, Tensor],
    target_view: int | None,
    moves: tuple[tuple[tuple[Any, ...], dict[str, Any]], ...],
) -> DiRAViews:
    made = kind(views, targets, target_view=target_view)
    made._moves = moves
    return made


def find_views(batch: Any) -> Iterator[DiRAViews]:
    """Yields the `DiRAViews` in nested lists, tuples, dicts and data classes."""
    if isinstance(batch, DiRAViews):
        yield batch
        return
    if isinstance(batch, Mapping):
        batch = list(batch.values())
    elif dataclasses.is_dataclass(batch):
        batch = [getattr(batch, field.name) for field in dataclasses.fields(batch)]
    if isinstance(batch, (list, tuple)):
        for item in batch:
            yield from find_views(item)


def _collate_views(
    samples: Sequence[DiRAViews], *, collate_fn_map: Any = None
) -> DiRAViews:
    join, first = functools.partial(collate, collate_fn_map=collate_fn_map), samples[0]
    wanted = len(first), first.target_view, first._targets.keys()
    for sample in samples:
        of = getattr(sample, "_targets", {})
        if (len(sample), getattr(sample, "target_view", 0), of.keys()) != wanted:
            raise ValueError(
                "DiRAViews: samples of a batch must have as many views, and targets of "
                f"the same ones; got targets of {[*first._targets]} of {len(first)} "
                f"views, and of {[*of]} of {len(sample)}. To restore several views, "
                "give all of them targets, and target_view=None."
            )
        sample._look_at_changes()
    return DiRAViews(
        map(join, zip(*samples, strict=True)),
        {index: join([s._targets[index] for s in samples]) for index in first._targets},
        target_view=first.target_view,
    )


# PyTorch's map from types to their collate functions, documented for such additions.
default_collate_fn_map[DiRAViews] = _collate_views
