"""Volumes of any kind: checked, scaled, turned into tensors, and shown as slices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightly_dira.transforms.images import Window, resize_area, scale, white_of

# Most channels that the first axis of four may be.
_MOST_CHANNELS = 16


def to_voxels(volume: Any, window: Window | None = None) -> Tensor:
    """Returns a volume as (C, D, H, W), uint8 or float32 in [0, 1].

    Args:
        volume: Array or tensor (D, H, W) or (C, D, H, W) of integers or floats.
        window: Values that become 0 and 1; values outside are clipped. Without one,
            uint8 stays, uint16 is divided by 65535, and floats must lie in [0, 1].

    Raises:
        TypeError: If `volume` is not a volume, or of an unsupported type.
        ValueError: If its shape or its values cannot be used.
    """
    voxels = check_volume(volume, finite=False)
    if voxels.dtype == torch.uint8 and window is None:
        return voxels
    return torch.from_numpy(np.ascontiguousarray(scale(voxels.numpy(), window)))


def check_volume(volume: Any, *, finite: bool = True) -> Tensor:
    """Returns a volume as (C, D, H, W), of its own type.

    Args:
        volume: The volume.
        finite: Whether to look at its voxels, too.

    Raises:
        TypeError: If it is not an array or a tensor.
        ValueError: If it is not (D, H, W) or (C, D, H, W), an axis has one voxel, or a
            voxel is not finite.
    """
    if isinstance(volume, np.ndarray):
        if volume.dtype.kind not in "uifb":
            raise TypeError(
                "DiRATransform: expected voxels that are integers, floats or bool, got "
                f"{volume.dtype}."
            )
        if not volume.dtype.isnative:
            volume = volume.astype(volume.dtype.newbyteorder("="))
        volume = torch.from_numpy(np.ascontiguousarray(volume))
    if not isinstance(volume, Tensor):
        raise TypeError(
            "DiRATransform: with spatial_dims=3 expected an array or a tensor "
            f"(D, H, W) or (C, D, H, W), got {type(volume).__name__}. Read files with "
            "`lightly_dira.transforms.read_volume`."
        )
    volume = volume.detach().cpu().as_subclass(Tensor)
    shape = tuple(volume.shape)
    if volume.ndim == 3:
        volume = volume[None]
    if volume.ndim != 4 or not 1 <= len(volume) <= _MOST_CHANNELS:
        raise ValueError(
            "DiRATransform: with spatial_dims=3 expected a volume (D, H, W) or "
            f"(C, D, H, W) of up to {_MOST_CHANNELS} channels, got shape {shape}. "
            "Volumes with their channels last: move them, "
            "`numpy.moveaxis(volume, -1, 0)`; images: leave spatial_dims at 2."
        )
    if min(volume.shape[1:]) < 2:
        raise ValueError(
            "DiRATransform: expected at least two voxels along every axis of a "
            f"volume, got shape {shape}. Images: leave spatial_dims at 2."
        )
    # Both limits are NaN if any voxel is.
    looked_at = finite and volume.is_floating_point()
    if looked_at and not torch.stack(volume.aminmax()).isfinite().all():
        raise ValueError(
            "DiRATransform: the volume holds NaN or infinite voxels. Replace them, for "
            "example with `numpy.nan_to_num`."
        )
    checked: Tensor = volume
    return checked


def to_volume_tensor(volume: Any) -> Tensor:
    """Returns a view as float (C, D, H, W), integers divided by their largest value."""
    tensor = check_volume(volume, finite=False)
    if tensor.is_floating_point():
        return tensor.to(torch.float32)
    top = 255.0 if tensor.dtype == torch.uint8 else white_of(tensor.numpy())
    return tensor.to(torch.float32) / top


def to_volume_target(volume: Any, channels: int) -> Tensor:
    """Returns a volume as a restoration target, (channels, D, H, W) in [0, 1].

    Raises:
        ValueError: If it has values outside [0, 1] or the wrong number of channels.
    """
    target = to_volume_tensor(volume)
    if channels == 1 < len(target):
        target = target.mean(dim=0, keepdim=True)
    elif len(target) != channels:
        raise ValueError(
            f"DiRATransform: a volume of {len(target)} channels cannot give a target "
            f"of {channels}; target_channels must be 1 or {len(target)}."
        )
    low, high = (value.item() for value in target.aminmax())
    # Rounding in resampling may leave the range by some units in the last place.
    if not -1e-3 <= low <= high <= 1 + 1e-3:
        raise ValueError(
            "DiRATransform: targets are voxels in [0, 1], but the clean view reaches "
            f"from {low:.4g} to {high:.4g}. Say which values are black and white, "
            "DiRATransform(..., window=(low, high)), or scale the volume as the first "
            "step of the base transform (in MONAI: ScaleIntensityRange)."
        )
    return target.clamp(0, 1)


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
            shape = into.shape[::-1]
            cv2.resize(plane, shape, dst=into, interpolation=cv2.INTER_LINEAR)

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


def from_array(volume: Any) -> Any:
    """Returns an array (D, H, W, C) as a tensor (C, D, H, W), and others unchanged."""
    if not isinstance(volume, np.ndarray) or volume.ndim != 4:
        return volume
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(volume, -1, 0)))


def orthogonal_slices(volumes: Tensor) -> Tensor:
    """Returns the three middle slices of volumes side by side, as images.

    Args:
        volumes: (B, C, D, H, W).

    Returns:
        (B, C, max(D, H), 2 W + H): across D, across H and across W, on black.
    """
    *_, d, h, w = volumes.shape
    slices = (
        volumes[:, :, d // 2],
        volumes[:, :, :, h // 2],
        volumes[:, :, :, :, w // 2],
    )
    canvas = volumes.new_zeros((*volumes.shape[:2], max(d, h), 2 * w + h))
    left = 0
    for part in slices:
        rows, columns = part.shape[2:]
        top = (canvas.shape[2] - rows) // 2
        canvas[:, :, top : top + rows, left : left + columns] = part
        left += columns
    return canvas
