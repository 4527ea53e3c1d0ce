"""ToPixels: images and volumes as tensors of one size, which can be batched."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightly_dira.data.pixels import to_pixels
from lightly_dira.data.resizing import resize_area, resize_volume
from lightly_dira.data.white import Window, check_window


class ToPixels:
    """Makes float tensors in [0, 1] of one size, for views that are made on a device.

    Args:
        size: (H, W), or (D, H, W) of volumes; a number is the side of a square or a
            cube. Other proportions are stretched.
        window: Values of the image that become 0 and 1, in its own units, or
            "percentiles" (0.5 and 99.5 of each image). Without one, integers are
            divided by the largest value of 8 or 16 bits, and floats must lie in [0, 1].
        spatial_dims: 2 for images, 3 for volumes.

    Shape:
        - image: a PIL image, an array (H, W) or (H, W, C) or a tensor (C, H, W); of
          volumes (D, H, W) or (C, D, H, W).
        - output: float32 (C, *size).

    Raises:
        TypeError: If it is not an image, or of an unsupported type.
        ValueError: If its shape or its values cannot be used, or a number is out of
            range.

    Examples:
        >>> import numpy as np
        >>> from lightly_dira.data import ToPixels
        >>> scan = np.full((300, 400), 4095, dtype=np.uint16)
        >>> ToPixels(256, window=(0, 4095))(scan).shape
        torch.Size([1, 256, 256])
    """

    def __init__(
        self,
        size: int | Sequence[int],
        *,
        window: Window | None = None,
        spatial_dims: int = 2,
    ) -> None:
        """Checks the numbers."""
        sides = (size,) * spatial_dims if isinstance(size, int) else tuple(size)
        if spatial_dims not in (2, 3) or len(sides) != spatial_dims or min(sides) < 1:
            raise ValueError(
                "ToPixels: size must be one number or (H, W) of images, "
                "(D, H, W) of volumes (spatial_dims=3), each at least 1, got "
                f"{size} and spatial_dims={spatial_dims}."
            )
        check_window(window)
        self.size, self.window, self.spatial_dims = sides, window, spatial_dims

    def __call__(self, image: Any) -> Tensor:
        """Returns the image's pixels."""
        values = to_pixels(image, self.window, self.spatial_dims)
        white = np.float32(255 if values.dtype == np.uint8 else 1)
        pixels = torch.from_numpy(np.divide(values, white, dtype=np.float32, order="C"))
        if self.spatial_dims == 3:
            return resize_volume(pixels, self.size)
        height, width = self.size
        if pixels.shape[1:] == self.size:
            return pixels
        planes = [resize_area(plane, height, width) for plane in pixels.numpy()]
        return torch.stack([torch.from_numpy(plane) for plane in planes])

    def __repr__(self) -> str:
        """Shows the arguments."""
        return f"ToPixels({self.size}, window={self.window})"
