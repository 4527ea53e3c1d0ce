"""Tells if two tensors hold the same images, also moved, normalised or repeated."""

from __future__ import annotations

import functools
import math
import operator

import torch
from torch import Tensor
from torch.nn import functional as F

from lightly_dira.core.tensors import moved
from lightly_dira.core.user_warnings import warn

# Standardised images up to this mean squared difference, from 0 (equal) to 2
# (unrelated), count as the same: half precision causes less, a distortion more.
SAME_IMAGE = 1e-3
# Pixels that correspond correlate by more, whatever a loop does to their values.
HARDLY = 0.5
# They correlate by this with another one, and by so much more, if they are that one.
_ALIKE, _MORE, _TIMES = 0.8, 0.1, 4
# How views are moved for that, beside mirrored: degrees, zoom, parts of half a side.
_POSES: tuple[tuple[float, ...], ...] = (
    (-20, 1, 0, 0),
    (-10, 1, 0, 0),
    (10, 1, 0, 0),
    (20, 1, 0, 0),
    (0, 0.8, 0, 0),
    (0, 1.25, 0, 0),
    (0, 1, -0.2, 0),
    (0, 1, 0.2, 0),
    (0, 1, 0, -0.2),
    (0, 1, 0, 0.2),
)
# And views that were made smaller inside a backbone by this, if it did not crop them.
SHRUNK = 0.9
# Pixels along each side that are compared with an image on another device.
_SAMPLED = 32


def is_waited_for(images: Tensor) -> bool:
    """Whether reading a value has to wait for a device."""
    return images.device.type != "cpu"


def equal(images: Tensor, view: Tensor) -> bool:
    """Whether two tensors hold the same values."""
    same = images.device == view.device and images.dtype == view.dtype
    return same and torch.equal(images.detach(), view.detach())


def difference_of(images: Tensor, view: Tensor) -> Tensor:
    """Mean squared difference of the least similar pair of standardised images."""
    return differences_of(images, view).max()


def differences_of(images: Tensor, view: Tensor) -> Tensor:
    """Mean squared difference of each pair of standardised images, (B,).

    It is 2 (1 - r), with the correlation r of their pixels.
    """
    images, view = images.detach(), view.detach()
    if images.device != view.device:
        images, view = _sampled(images), moved(_sampled(view), images.device)
    images, view = _as_precise(images, view)
    if images.shape[1] != view.shape[1]:
        if images.shape[1] == 1:
            view = view.mean(dim=1, keepdim=True)
        elif view.shape[1] != 1:
            return torch.full((len(images),), float("inf"), device=images.device)
    difference = (_standardise(images) - _standardise(view)).square()
    return difference.flatten(1).mean(dim=1)


def correlations_of(images: Tensor, view: Tensor) -> Tensor:
    """Correlation of the pixels of each pair, (B,).

    Views are shrunk to smaller images; larger ones may be padded, and are taken for
    the same.
    """
    larger = any(map(operator.gt, images.shape[2:], view.shape[2:]))
    if larger or images.ndim != view.ndim:
        return view.new_ones(len(view), dtype=torch.float32)
    if images.shape[2:] != view.shape[2:]:
        view = F.interpolate(view.detach(), images.shape[2:], mode="area")
    return 1 - differences_of(images, view) / 2


def how_unlike(images: Tensor, view: Tensor) -> float | None:
    """Returns how pixels correlate, if images hardly show what the view does."""
    least = HARDLY if images.shape[2:] == view.shape[2:] else SHRUNK
    correlation = correlations_of(images, view).mean()
    unlike = correlation < least or _are_misplaced(images, view)
    return float(correlation) if unlike else None


def _are_misplaced(images: Tensor, view: Tensor) -> Tensor:
    """Whether some image is clearly more like a moved view, or another one's.

    What loops do to values makes an image less like its view, not more like these.
    Anatomy is alike, and images of one kind are: so what another view leaves open may
    also be a small part of what the image's own view does.
    """
    images, view = images.detach(), moved(view.detach(), images.device)
    if images.shape[:1] + images.shape[2:] != view.shape[:1] + view.shape[2:]:
        return torch.zeros((), dtype=torch.bool, device=images.device)
    images, view = _pooled(images), _pooled(view)
    axes = range(2, images.ndim)
    flips = [[axis] for axis in axes] + [[*axes[-2:]]]
    poses = [view.flip(flip) for flip in flips]
    poses += [_posed(view, *pose) for pose in _POSES]
    ours, *theirs = (_standardise(x).flatten(1) for x in (images, view, *poses))
    own, *posed = ((ours * each).mean(dim=1) for each in theirs)
    others = ours @ theirs[0].T / ours.shape[1]
    others.fill_diagonal_(-1)
    best = torch.stack([others.amax(dim=1), *posed]).amax(dim=0)
    left, rest = 1 - best, 1 - own
    closer = (best > own + _MORE) | (rest > _TIMES * left + SAME_IMAGE)
    return ((best > _ALIKE) & closer).any()


def _posed(
    images: Tensor, degrees: float, zoom: float, down: float, right: float
) -> Tensor:
    """Returns images turned, zoomed and moved in their last two axes."""
    cos, sin = (zoom * turn(math.radians(degrees)) for turn in (math.cos, math.sin))
    slices = images.flatten(1, -3)
    pose = images.new_tensor([[cos, -sin, right], [sin, cos, down]])
    grid = F.affine_grid(
        pose.expand(len(slices), 2, 3), list(slices.shape), align_corners=False
    )
    posed = F.grid_sample(slices, grid, padding_mode="border", align_corners=False)
    return posed.view_as(images)


def _pooled(images: Tensor) -> Tensor:
    """Returns small grey images, which are mirrored as the large ones are."""
    grey = images.float().mean(dim=1, keepdim=True)
    sides = [min(side, _SAMPLED) for side in grey.shape[2:]]
    return F.interpolate(grey, sides, mode="area")


def _as_precise(images: Tensor, view: Tensor) -> tuple[Tensor, Tensor]:
    """Rounds the more precise of two tensors of floats as the other has been."""
    floats = images.is_floating_point() and view.is_floating_point()
    if images.dtype == view.dtype or not floats:
        return images, view
    coarse = max(images.dtype, view.dtype, key=lambda dtype: torch.finfo(dtype).eps)
    return images.to(coarse), view.to(coarse)


def _sampled(images: Tensor) -> Tensor:
    """Returns some pixels of the images, the same ones for every copy."""
    for axis in range(2, images.ndim):
        step = max(1, images.shape[axis] // _SAMPLED)
        images = images[(slice(None),) * axis + (slice(None, None, step),)]
    return images.contiguous()


def _standardise(images: Tensor) -> Tensor:
    images = images.float()
    axes = tuple(range(2, images.ndim))
    largest = images.abs().amax(dim=axes, keepdim=True)
    images = images - images.mean(dim=axes, keepdim=True)
    scale = images.square().mean(dim=axes, keepdim=True).sqrt()
    # Only rounding errors are left of a constant image; they must stay near zero.
    return images / scale.clamp_min(1e-6).maximum(1e-3 * largest)


def say_if_unlike(view: Tensor, target: Tensor) -> None:
    """Warns if a view that a loop has changed in place hardly resembles its target.

    On an accelerator, where looking waits, it looks at the first one only.
    """
    if is_waited_for(view) and _looked:
        return
    _looked.add(True)
    if (correlation := how_unlike(view, target)) is not None:
        _warn_of_unlike(f"{correlation:.1f}")


_looked: set[bool] = set()


@functools.cache
def _warn_of_unlike(correlation: str) -> None:
    warn(
        "DiRA: a view was changed in place, and now hardly resembles its target, or a "
        "moved or another one more: "
        f"pixels correlate by {correlation}. If the loop crops or turns views, targets "
        "do not move with them. Move them in the same way, and make new views: "
        "DiRAViews(views, targets)."
    )
