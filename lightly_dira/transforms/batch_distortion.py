"""Distortions of whole batches on their device, with the numbers of those on the host.

Nothing here draws on the host or waits for the device.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor, nn

from lightly_dira.core.same_image import is_waited_for
from lightly_dira.transforms.batch_blocks import Chosen
from lightly_dira.transforms.batch_kernels import KERNELS
from lightly_dira.transforms.distortion import OneOf, Sequential
from lightly_dira.transforms.published_distortions import published_for


class BatchDistortion(nn.Module):
    """Distorts each image of a batch, on the device that the batch is on.

    The distortions are those of `DiRATransform`, with the same numbers and the same
    distribution; each image has draws of its own, from PyTorch's generator of its
    device.

    Args:
        distortion: One of `InPainting`, `OutPainting`, `PatchShuffling`,
            `PixelShuffling` and `NonLinearIntensity`, or `OneOf` or `Sequential` of
            them, or a mixture such as `published_mixture()`. "published" is that
            mixture, or of volumes `transvw_mixture()`.
        spatial_dims: 2 for images, 3 for volumes.
        inplace: Whether the batch itself is changed, and no copy is made.

    Shape:
        - images: (B, C, H, W) or (B, C, D, H, W), floating-point, in [0, 1].
        - output: the same.

    Raises:
        TypeError: If a distortion cannot be applied to a batch, or images are not
            floating-point.
        ValueError: If images have another number of dimensions.

    Examples:
        >>> import torch
        >>> from lightly_dira.transforms import BatchDistortion
        >>> distort = BatchDistortion()
        >>> distort(torch.rand(8, 1, 224, 224)).shape
        torch.Size([8, 1, 224, 224])
    """

    def __init__(
        self,
        distortion: Any = "published",
        *,
        spatial_dims: int = 2,
        inplace: bool = False,
    ) -> None:
        """Checks that each part has its counterpart for batches."""
        super().__init__()
        if spatial_dims not in (2, 3):
            raise ValueError(
                "BatchDistortion: spatial_dims must be 2 for images or 3 for volumes, "
                f"got {spatial_dims}."
            )
        if distortion == "published":
            distortion = published_for(spatial_dims)
        _check(distortion)
        self.distortion = distortion
        self.spatial_dims = spatial_dims
        self.inplace = inplace

    @torch.no_grad()
    def forward(
        self, images: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """Returns the distorted images.

        Args:
            images: The images.
            generator: What all is drawn from; by default PyTorch's of the device.
        """
        if not images.is_floating_point():
            raise TypeError(
                "BatchDistortion: expected floating-point images in [0, 1], got "
                f"{images.dtype}. Scale them: `images.float() / 255`, if they have 8 "
                "bits."
            )
        if images.ndim != self.spatial_dims + 2:
            raise ValueError(
                f"BatchDistortion: expected a batch of {self.spatial_dims + 2} "
                f"dimensions, got shape {tuple(images.shape)}. Volumes: spatial_dims=3."
            )
        # Row by row in memory, as places in images are counted.
        if self.inplace:
            out = images.contiguous()
        else:
            out = images.clone(memory_format=torch.contiguous_format)
        every = torch.ones(len(out), dtype=torch.bool, device=out.device)
        _distort(self.distortion, out, every, generator)
        if self.inplace and out is not images:
            return images.copy_(out)
        return out

    def extra_repr(self) -> str:
        """Shows the distortion."""
        return repr(self.distortion)


def _check(distortion: Any) -> None:
    if isinstance(distortion, (OneOf, Sequential)):
        for part in distortion.distortions:
            _check(part)
    elif type(distortion) not in KERNELS:
        names = ", ".join(cls.__name__ for cls in KERNELS)
        raise TypeError(
            f"BatchDistortion: {type(distortion).__name__} distorts one array on the "
            f"host and has no way for batches. Use {names}, OneOf or Sequential of "
            "them, or call your own function of a batch in place of BatchDistortion."
        )


def _distort(
    distortion: Any, images: Tensor, which: Tensor, generator: torch.Generator | None
) -> None:
    """Distorts some images of a batch in place."""
    if isinstance(distortion, Sequential):
        for part in distortion.distortions:
            _distort(part, images, which, generator)
        return
    number = torch.rand(which.shape, generator=generator, device=images.device)
    if isinstance(distortion, OneOf):
        bounds = [0.0, *distortion.bounds]
        for part, (low, high) in zip(
            distortion.distortions, itertools.pairwise(bounds), strict=True
        ):
            _distort(part, images, which & (number >= low) & (number < high), generator)
        return
    which = which & (number < getattr(distortion, "p", 1.0))
    kernel = KERNELS[type(distortion)]
    if not is_waited_for(images):
        rows: list[int] = which.nonzero().squeeze(1).tolist()
        if rows:
            kernel(distortion, Chosen(images, rows, generator))
        return
    # To know which they are would wait for the device.
    given = images.clone()
    kernel(distortion, Chosen(images, None, generator))
    shape = (-1,) + (1,) * (images.ndim - 1)
    torch.where(which.view(shape), images, given, out=images)
