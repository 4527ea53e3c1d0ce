"""Recognises which pass of the backbone saw a view, and verifies it every step."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightly_dira.core.same_image import (
    SAME_IMAGE,
    difference_of,
    equal,
    is_waited_for,
)
from lightly_dira.core.user_warnings import warn
from lightly_dira.features.passes import Pass

# By this factor the best of several matches must be better than any other.
_CLEARLY = 10.0


class NeverSawError(RuntimeError):
    """No pass of the backbone saw the view."""


class Seen(NamedTuple):
    """A view that a pass saw: its index, the pass, and its rows of the pass's input."""

    view: int
    run: Pass
    rows: slice

    def images(self, view: Tensor) -> Tensor:
        """Returns what the backbone was called with for this view."""
        given = self.run.called_with
        if given is not None and given.shape[2:] == view.shape[2:]:
            # The tensor itself, if it is: then nothing has to be compared.
            whole = self.rows in (slice(None), slice(0, len(given)))
            return given if whole else given[self.rows]
        return _part(self.run, self.rows, view)


class _Route(NamedTuple):
    """Where a view was found: which view, which pass, and which rows of it."""

    view: int
    run: int
    rows: slice


class Recognition:
    """Finds the first view, in the order of the views, that some pass saw.

    A tensor that went into the backbone is recognised by identity. If the loop made
    another tensor from it (moved, concatenated, normalised, repeated over channels),
    inputs are compared with the views by value, as standardised images, at every step.

    On an accelerator, reading the result of a comparison means waiting. The first step
    waits; later ones use the same rows of the same pass and read the result one step
    later. If the images differ, one step restored the wrong view: a warning says so,
    and every step waits from then on.
    """

    def __init__(self) -> None:
        """Starts without routes."""
        self._routes: dict[tuple[Any, ...], _Route] = {}
        self._worst: Tensor | None = None
        self._arrived: Tensor | None = None
        self._waits = False

    def find(
        self,
        passes: Sequence[Pass],
        views: Sequence[Tensor | None],
        *,
        whole: int = 0,
        forgotten: int = 0,
        group: int = 0,
    ) -> Seen:
        """Finds the pass, and its rows, of the first view that was seen.

        Args:
            passes: The passes since the last call.
            views: The views; None in place of those not wanted.
            whole: How many maps a whole pass has.
            forgotten: How many earlier passes since the last call are not among them.
            group: Which of several groups of views in a batch these are.

        Raises:
            RuntimeError: If no pass saw any of these views, or the match is ambiguous.
        """
        # Prefer passes in training mode, then whole ones, then later ones.
        passes = [*reversed(passes)]
        passes.sort(key=lambda run: (not run.training, len(run.maps) < whole))
        claimed = {
            index: number
            for number, view in enumerate(views)
            for index, run in enumerate(passes)
            if view is not None and run.received(view)
        }
        free = [
            index
            for index, run in enumerate(passes)
            if index not in claimed and not run.is_stale
        ]
        route = key = None
        if any(is_waited_for(run.images) for run in passes):
            self._look_at_arrived()
            key = group, *_signature(passes, views, claimed)
            route = None if self._waits else self._routes.get(key)
        for number, view in enumerate(views):
            if view is None:
                continue
            for index, claimant in claimed.items():
                if claimant == number:
                    return Seen(number, passes[index], slice(None))
            if route is not None and route.view == number:
                self._prove_later(_part(passes[route.run], route.rows, view), view)
                return Seen(number, passes[route.run], route.rows)
            look = free and route is None
            if look and (found := _by_value(passes, free, views, number)) is not None:
                if key is not None:
                    self._routes[key] = found
                return Seen(number, passes[found.run], found.rows)
        wanted = [view for view in views if view is not None]
        raise NeverSawError(_never_saw(passes, wanted, forgotten))

    def which_view(self, images: Tensor, views: Sequence[Tensor]) -> int:
        """Returns which view a tensor is; see the function of this name.

        On an accelerator only the first step waits, as in `find`.
        """
        key = ("which view", images.shape, *(view.shape for view in views))
        waits = is_waited_for(images) and len(views) > 1
        if waits and not any(view is images for view in views):
            self._look_at_arrived()
            route = None if self._waits else self._routes.get(key)
            if route is not None:
                self._prove_later(images, views[route.view])
                return route.view
        number = which_view(images, views)
        if waits:
            self._routes[key] = _Route(number, 0, slice(None))
        return number

    def _prove_later(self, images: Tensor, view: Tensor) -> None:
        """Compares without waiting, and keeps the worst result so far."""
        difference = difference_of(images, view)
        if self._worst is None or self._arrived is None:
            self._worst = torch.zeros_like(difference)
            pinned = difference.device.type == "cuda"
            self._arrived = torch.zeros((), pin_memory=pinned)
        self._worst = torch.maximum(self._worst, difference)
        self._arrived.copy_(self._worst, non_blocking=True)

    def _look_at_arrived(self) -> None:
        if self._arrived is None or float(self._arrived) <= SAME_IMAGE:
            return
        self._waits, self._arrived, self._worst = True, None, None
        self._routes.clear()
        warn(
            "DiRA: the last step restored the wrong view, since this loop does not "
            "always pass its views to the backbone in the same order. Now each step "
            "waits for the device to compare them. To avoid it, `dira(loss, batch, "
            "view=x)` says which tensor went into the backbone."
        )


def which_view(images: Tensor, views: Sequence[Tensor | None]) -> int:
    """Returns which view a tensor is: the only one, or the same by identity or value.

    Raises:
        ValueError: If none has as many rows.
        RuntimeError: If there are several and none matches.
    """
    known = {number: view for number, view in enumerate(views) if view is not None}
    rows = [len(view) for view in known.values()]
    if len(images) not in rows:
        raise ValueError(
            f"DiRA: the tensor given as `view` has {len(images)} rows, views {rows}. "
            "Leave `view` out, if they are joined: their rows are found."
        )
    for number, view in known.items():
        if view is images or len(known) == 1:
            return number
    for number in known:
        if _by_value([Pass(images, None, True)], [0], views, number) is not None:
            return number
    raise RuntimeError(
        "DiRA: the tensor given as `view` differs from all views with a target: the "
        "loop has changed it. Say which view it was made from: "
        "DiRATransform(transform, target_view=0)."
    )


def _signature(
    passes: Sequence[Pass], views: Sequence[Tensor | None], claimed: dict[int, int]
) -> tuple[Any, ...]:
    """Returns what distinguishes one kind of step of a loop from another."""
    sizes = tuple(None if view is None else view.shape for view in views)
    runs = tuple((run.images.shape, run.training) for run in passes)
    return sizes, runs, tuple(sorted(claimed.items()))


def _rows_of(run: Pass, view: Tensor) -> Iterator[slice]:
    """Yields where the view may lie among the images: in a block, or every n-th row."""
    images, given = run.images, run.called_with
    # A backbone may pad its images at the right and at the bottom.
    padded = given is not None and given.shape[2:] == view.shape[2:]
    padded = padded and all(map(operator.ge, images.shape[2:], view.shape[2:]))
    same = images.shape[2:] == view.shape[2:]
    if images.ndim != view.ndim or not len(view) or not (same or padded):
        return
    parts, rest = divmod(len(images), len(view))
    size = len(view)
    for start in dict.fromkeys((0, rest)):  # beside others, before or behind them
        for place in range(start, start + parts * size, size):
            yield slice(place, place + size)
    if parts > 1 and size > 1 and not rest:
        yield from (slice(part, None, parts) for part in range(parts))


def _part(run: Pass, rows: slice, view: Tensor) -> Tensor:
    """Returns some of the images that arrived, without what they were padded with."""
    images = run.images[rows]
    for axis, side in enumerate(view.shape[2:], start=2):
        images = images.narrow(axis, 0, min(side, images.shape[axis]))
    return images


def _by_value(
    passes: Sequence[Pass], free: list[int], views: Sequence[Tensor | None], number: int
) -> _Route | None:
    """Compares a view with inputs of passes, and the best match with other views."""
    view = views[number]
    assert view is not None
    matches: list[tuple[float, _Route]] = []
    for index in free:
        for rows in _rows_of(passes[index], view):
            images = _part(passes[index], rows, view)
            route = _Route(number, index, rows)
            if equal(images, view):
                return route
            difference = float(difference_of(images, view))
            if difference <= SAME_IMAGE:
                matches.append((difference, route))
    if not matches:
        return None
    best, route = min(matches, key=lambda match: match[0])
    images = _part(passes[route.run], route.rows, view)
    # If views hardly differ, the input may be another one of them.
    for other in views:
        if other is None or other is view or other.shape != view.shape:
            continue
        if equal(images, other):
            return None
        difference = float(difference_of(images, other))
        if _CLEARLY * difference <= best and not equal(view, other):
            return None
        if difference <= _CLEARLY * best + 1e-9 and not equal(view, other):
            raise RuntimeError(_AMBIGUOUS)
    for difference, another in matches:
        rival = _part(passes[another.run], another.rows, view)
        if difference <= _CLEARLY * best + 1e-9 and not equal(images, rival):
            raise RuntimeError(_AMBIGUOUS)
    return route


def _never_saw(passes: Sequence[Pass], views: Sequence[Tensor], forgotten: int) -> str:
    if forgotten:
        return (
            f"DiRA: none of the last {len(passes)} passes of the backbone saw the view "
            f"that carries the restoration target, and the {forgotten} before them "
            "since DiRA was last called are forgotten, to save memory. Call `dira` "
            "closer to the pass of that view, or make the other passes without "
            "gradients."
        )
    targets = ", ".join(str(tuple(view.shape)) for view in views)
    inputs = ", ".join(str(tuple(run.images.shape)) for run in passes)
    return (
        "DiRA: the backbone never saw the view that carries the restoration "
        f"target, {targets}. It was called with {inputs}. Pass `dira` the batch whose "
        "views went through the backbone, and wrap the module that gets the views "
        "themselves (DiRA recognises views that were moved, concatenated, normalised "
        "or repeated over channels). If the loop changes them in another way, say "
        "which tensor went in: `dira(loss, batch, view=x)`. That tensor must not have "
        "been changed in place since."
    )


_AMBIGUOUS = (
    "DiRA: several passes of the backbone saw images that look like the view with the "
    "target, so DiRA cannot tell which of them to restore. Say which tensor went in: "
    "`dira(loss, batch, view=x)`."
)
