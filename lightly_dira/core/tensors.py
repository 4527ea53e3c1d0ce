"""Finds the tensors in the inputs and outputs of modules, and moves them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yields the tensors in nested lists, tuples and dicts, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (Mapping, list, tuple)):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from tensors_in(item)


def image_in(values: Any, dimensions: int) -> Tensor | None:
    """Returns the images among nested values, the first if there are several."""
    return next(_images_in(values, dimensions), None)


def only_image_in(values: Any, dimensions: int) -> Tensor | None:
    """Returns the images among nested values, or None if there are several."""
    images = [*_images_in(values, dimensions)]
    return images[0] if len(images) == 1 else None


def _images_in(values: Any, dimensions: int) -> Iterator[Tensor]:
    for value in tensors_in(values):
        if value.ndim == dimensions and value.is_floating_point():
            yield value


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """Returns a tensor on a device, without waiting for what the device is doing."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        # A copy from memory that is not page-locked would wait for the stream.
        tensor = tensor if tensor.is_pinned() else tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
