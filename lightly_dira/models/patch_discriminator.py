"""The patch discriminator, DiRA's adversary."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from lightly_dira.models.decoder_block import LAYERS


class PatchDiscriminator(nn.Module):
    """Tells restored image patches from real ones [0, 1].

    A stack of 3 x 3 convolutions. A LeakyReLU of slope 0.2 follows each convolution but
    the last; an instance normalisation without parameters precedes each LeakyReLU but
    the first. Every logit judges one patch: high for real, low for restored. Instances
    are normalised one by one, so neither the batch nor the number of processes changes
    a logit. Weights start as N(0, 0.02) and biases at 0 (published settings of [0]).

    - [0]: DiRA, 2022, https://arxiv.org/abs/2204.10437
    - [1]: pix2pix, 2016, https://arxiv.org/abs/1611.07004

    Attributes:
        in_channels: Channels of the images.
        stride: Pixels of the image, along each side, per logit.

    Shape:
        - images: (B, C, H, W), with `spatial_dims=3` (B, C, D, H, W); every side is
          larger than `stride`.
        - output: (B, 1, H / stride, W / stride), rounded up, of volumes
          (B, 1, D / stride, H / stride, W / stride); 28 x 28 logits for 224 x 224
          pixels by default.

    Examples:
        >>> import torch
        >>> from lightly_dira import PatchDiscriminator
        >>> PatchDiscriminator()(torch.rand(2, 1, 224, 224)).shape
        torch.Size([2, 1, 28, 28])
    """

    def __init__(
        self,
        in_channels: int = 1,
        *,
        spatial_dims: int = 2,
        channels: Sequence[int] = (64, 128, 256, 512),
        strides: Sequence[int] = (2, 2, 2, 1),
    ) -> None:
        """Creates the discriminator.

        Args:
            in_channels: Channels of the images, 1 for grey.
            spatial_dims: 2 for images, 3 for volumes.
            channels: Output channels of the convolutions before the last.
            strides: Stride of each of them.

        Raises:
            ValueError: If `channels` and `strides` are empty, differ in length or hold
                anything below 1.
        """
        super().__init__()
        if spatial_dims not in LAYERS:
            raise ValueError(
                "PatchDiscriminator: spatial_dims must be 2 for images or 3 for "
                f"volumes, got {spatial_dims}."
            )
        if not channels or len(channels) != len(strides):
            raise ValueError(
                "PatchDiscriminator: expected as many strides as channels, at least "
                f"one, got channels={tuple(channels)} and strides={tuple(strides)}."
            )
        if min(in_channels, *channels, *strides) < 1:
            raise ValueError(
                "PatchDiscriminator: channels and strides must be at least 1, got "
                f"in_channels={in_channels}, channels={tuple(channels)}, "
                f"strides={tuple(strides)}."
            )
        self.in_channels = in_channels
        self.spatial_dims = spatial_dims
        self.stride = math.prod(strides)
        convolution = LAYERS[spatial_dims].convolution
        layers: list[nn.Module] = []
        width = in_channels
        for depth, (out, stride) in enumerate(zip(channels, strides, strict=True)):
            # A normalisation would remove the bias before it.
            layers.append(convolution(width, out, 3, stride, 1, bias=depth == 0))
            if depth > 0:
                # Instance normalisation by groups of one channel: `nn.InstanceNorm2d`
                # outputs a view, which an in-place activation copies back and forth.
                layers.append(nn.GroupNorm(out, out, affine=False))
            layers.append(nn.LeakyReLU(0.2, inplace=True))
            width = out
        layers.append(convolution(width, 1, 3, padding=1))
        self.layers = nn.Sequential(*layers)
        for module in self.layers:
            if isinstance(module, convolution):
                nn.init.normal_(module.weight, 0.0, 0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Returns one logit per patch.

        Args:
            images: Real or restored images, (B, C, H, W).

        Raises:
            ValueError: If the images have another number of channels, or a side that is
                not larger than `stride`.
        """
        expected = self.spatial_dims + 2
        if images.ndim != expected or images.shape[1] != self.in_channels:
            raise ValueError(
                f"PatchDiscriminator: expected images (B, {self.in_channels}, "
                f"{'H, W' if expected == 4 else 'D, H, W'}), got {tuple(images.shape)}."
            )
        if min(images.shape[2:]) <= self.stride:
            sides = " x ".join(map(str, images.shape[2:]))
            raise ValueError(
                f"PatchDiscriminator: images of {sides} pixels leave no patches to "
                f"compare at a stride of {self.stride}; every side must be larger. Use "
                "larger images or smaller strides."
            )
        logits: Tensor = self.layers(images)
        return logits
