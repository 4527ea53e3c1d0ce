"""Resizing of images, volumes, masks and boxes, with borders on borders.

A side of n pixels covers the same length before and after: whatever lies at x of n lies
at x m / n of m.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import zoom
from torch import Tensor

_LINEAR = cv2.INTER_LINEAR


def resize_area(image: NDArray[Any], height: int, width: int) -> NDArray[Any]:
    """Averages an image (H, W) or (H, W, C) over the area of each new pixel.

    OpenCV's own area interpolation is exact, but fast only if it halves both sides.
    Bilinear interpolation to half the size gives the same average, and is also fast
    along one side. So each side is halved while it is at least three times as long as
    wanted, then brought to exactly twice the wanted length and halved once more.
    """
    # The lengths of the image; those of the array are rounded up.
    rows, columns = map(float, image.shape[:2])
    while rows >= 3 * height or columns >= 3 * width:
        down, right = rows >= 3 * height, columns >= 3 * width
        high, wide = image.shape[:2]
        below, behind = high % 2 * down, wide % 2 * right
        if below or behind:
            border = 0, below, 0, behind
            image = cv2.copyMakeBorder(image, *border, cv2.BORDER_REPLICATE)
            high, wide = image.shape[:2]
        image = cv2.resize(image, (wide >> right, high >> down), interpolation=_LINEAR)
        rows, columns = rows / (1 + down), columns / (1 + right)
    # Only sides that are still too long need the last halving.
    high, wide = height * (1 + (rows > height)), width * (1 + (columns > width))
    if (rows, columns) != (high, wide):
        # By factors, since a length may end within the last pixel.
        kind = _LINEAR
        if image.shape[:2] == (high, wide):  # which OpenCV would only copy
            kind, high, wide = cv2.INTER_AREA, height, width
        fx, fy = wide / columns, high / rows
        image = cv2.resize(image, None, fx=fx, fy=fy, interpolation=kind)
        image = image[:high, :wide]
    if (high, wide) != (height, width):
        image = cv2.resize(image, (width, height), interpolation=_LINEAR)
    return image


def resize_volume(volume: Tensor, size: Sequence[int], *, area: bool = True) -> Tensor:
    """Resizes floats (C, D, H, W), one slice after the other and then between slices.

    Args:
        volume: The volume.
        size: (D, H, W).
        area: Whether to average over the area of each new voxel where the volume
            shrinks. Otherwise it is trilinear interpolation at the voxels' centres.
    """
    if tuple(volume.shape[1:]) == tuple(size):
        return volume
    depth, height, width = size

    def resize(plane: NDArray[Any], into: NDArray[Any]) -> None:
        if area:
            into[...] = resize_area(plane, *into.shape)
        else:
            cv2.resize(plane, into.shape[::-1], dst=into, interpolation=_LINEAR)

    channels, slices = volume.shape[:2]
    out = np.empty((channels, depth, height, width), np.float32)
    for channel, result in zip(volume.numpy(), out, strict=True):
        planes = result
        if slices != depth:
            planes = np.empty((slices, height, width), np.float32)
        for plane, into in zip(channel, planes, strict=True):
            resize(plane, into)
        if slices != depth:
            resize(planes.reshape(slices, -1), result.reshape(depth, -1))
    return torch.from_numpy(out)


def resize_mask(mask: Tensor, size: Sequence[int]) -> Tensor:
    """Resizes a mask, taking the class at the centre of each new pixel."""
    for axis, (side, new) in enumerate(zip(mask.shape, size, strict=True)):
        if side != new:
            centres = (torch.arange(new) + 0.5) * side / new
            mask = mask.index_select(axis, centres.long())
    return mask


def resize_boxes(
    boxes: NDArray[Any], old: Sequence[int], new: Sequence[int]
) -> NDArray[np.float64]:
    """Moves boxes (K, 4), left, top, width and height, with an image that is resized.

    Args:
        boxes: The boxes.
        old: (H, W) of the image before.
        new: (H, W) of the image after.
    """
    down, right = new[0] / old[0], new[1] / old[1]
    moved: NDArray[np.float64] = boxes * np.array([right, down] * 2)
    return moved


def resample_volume(volume: NDArray[Any], factors: Sequence[float]) -> NDArray[Any]:
    """Returns a volume with this many voxels for each of its own, along every axis."""
    resampled: NDArray[Any] = zoom(
        volume.astype(np.float32), factors, order=1, grid_mode=True, mode="nearest"
    )
    return resampled
