"""The restoration head: the decoder that turns any encoder into a U-Net."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as checkpoint_of

from lightly_dira.models.decoder_block import (
    LAYERS,
    DecoderBlock,
    checkpoint_contexts,
    enlargement,
    resize,
)
from lightly_dira.models.head_layout import by_axis, doublings, next_size


class RestorationHead(nn.Module):
    """Restores images from the feature maps of an encoder: a U-Net decoder [0, 1].

    Going from the coarsest map to the finest, each block enlarges its input to the
    size of the next map (nearest neighbour), concatenates that map and applies two
    3 x 3 convolutions with BatchNorm and ReLU. Blocks without a map double
    the size, up to `output_size`. A last 3 x 3 convolution and the activation give
    the image. The head depends only on the feature maps and their channel counts, not
    on the encoder; it takes sizes from the maps, so odd ones work. It is the decoder of
    `segmentation_models_pytorch.Unet`, as in the published run. In training it avoids
    multiplying equal neighbours repeatedly; the result is the same up to rounding.

    A vision transformer has maps from several depths, all of one size. Given their
    `strides`, the head first turns them into a pyramid, as UNETR [2] does: the earlier
    a map, the more often a transposed 2 x 2 convolution with BatchNorm and ReLU doubles
    its size.

    The default is as heavy as a ResNet-50 (23.5 million parameters and 4.1 billion
    multiplications for an image of 224 x 224). Lighter heads for a ResNet-50's maps:

    | decoder_channels     | parameters, millions | multiplications | time, CPU |
    |----------------------|----------------------|-----------------|-----------|
    | 256, 128, 64, 32, 16 | 9.0                  | 4.1 billion     | 1         |
    | 128, 64, 32, 16, 16  | 4.2                  | 1.8 billion     | 0.5       |
    | 64, 32, 16, 16, 16   | 2.0                  | 1.0 billion     | 0.35      |

    For a volume of 32 x 64 x 64 voxels, on the maps of MONAI's ResNet-18 (33.2 million
    parameters and 15.7 billion multiplications); memory is that of the outputs of all
    layers, float32:

    | decoder_channels | parameters, millions | multiplications | memory |
    |------------------|----------------------|-----------------|--------|
    | 128, 64, 32, 16  | 3.8                  | 8.1 billion     | 91 MiB |
    | 64, 32, 16, 16   | 1.7                  | 6.0 billion     | 85 MiB |
    | 32, 16, 16, 16   | 0.9                  | 5.7 billion     | 84 MiB |

    - [0]: DiRA, 2022, https://arxiv.org/abs/2204.10437 (Section 3.1)
    - [1]: U-Net, 2015, https://arxiv.org/abs/1505.04597
    - [2]: UNETR, 2022, https://arxiv.org/abs/2103.10504

    Attributes:
        encoder_channels: Channels of the expected maps, from the finest to the
            coarsest.
        settings: The arguments to create another such head.
        out_channels: Channels of the restored images.
        layers: Names of the encoder's layers whose maps it decodes, as `DiRA` found or
            was told them; None before. They travel with `save_pretrained`.

    Shape:
        - features: a list of (B, C_i, H_i, W_i), from the finest to the coarsest; with
          `spatial_dims=3` of (B, C_i, D_i, H_i, W_i).
        - output: (B, out_channels, H, W), in [0, 1] with the sigmoid; of volumes
          (B, out_channels, D, H, W).

    Examples:
        >>> import torch
        >>> from lightly_dira import RestorationHead
        >>> head = RestorationHead([64, 64, 128, 256, 512])  # a ResNet-18
        >>> sizes = zip([64, 64, 128, 256, 512], [32, 16, 8, 4, 2])
        >>> head([torch.rand(2, c, s, s) for c, s in sizes]).shape
        torch.Size([2, 1, 64, 64])
    """

    def __init__(
        self,
        encoder_channels: Sequence[int],
        *,
        spatial_dims: int = 2,
        decoder_channels: Sequence[int] = (256, 128, 64, 32, 16),
        out_channels: int = 1,
        activation: str | None = "sigmoid",
        strides: Sequence[int | tuple[int, ...]] | None = None,
        checkpoint: bool = False,
    ) -> None:
        """Creates the head.

        Args:
            encoder_channels: Channels of the encoder's maps, finest to coarsest.
            spatial_dims: 2 for images, 3 for volumes.
            decoder_channels: Output channels of the blocks, in the order in which they
                run, coarsest to finest. There must be a block for every map but the
                coarsest; each further one doubles the size.
            out_channels: Channels of the restored images, 1 for grey.
            activation: "sigmoid" for images in [0, 1], or None.
            strides: Pixels per position of each map, finest to coarsest, never
                decreasing; a tuple if they differ by axis. By default, every map is
                assumed to be at least twice as fine as the next.
            checkpoint: Whether to recompute the blocks' inner values in the backward
                pass instead of keeping them: less memory, more time.

        Raises:
            ValueError: If there are fewer than two maps or too few blocks, a channel
                count is below 1, the activation is unknown or the strides do not fit.
        """
        super().__init__()
        _check(spatial_dims, encoder_channels, decoder_channels, out_channels)
        if activation not in ("sigmoid", None):
            raise ValueError(
                "RestorationHead: activation must be 'sigmoid' or None, got "
                f"{activation!r}."
            )
        enlarged = _enlarged(strides, len(encoder_channels), spatial_dims)
        self.settings: dict[str, Any] = {
            "encoder_channels": tuple(encoder_channels),
            "spatial_dims": spatial_dims,
            "decoder_channels": tuple(decoder_channels),
            "out_channels": out_channels,
            "activation": activation,
            "strides": None if strides is None else tuple(strides),
            "checkpoint": checkpoint,
        }
        self.checkpoint = checkpoint
        self.encoder_channels = tuple(encoder_channels)
        self.spatial_dims = spatial_dims
        self.out_channels = out_channels
        self.layers: tuple[str, ...] | None = None
        self.enlarge, self.blocks = nn.ModuleList(), nn.ModuleList()
        # Coarsest map first, as the blocks run; blocks after the last have no skip.
        *skips, width = encoder_channels
        ahead = [*zip(skips, enlarged, strict=True)][::-1]
        for number, out in enumerate(decoder_channels):
            skip = 0
            if number < len(ahead):
                skip, times = ahead[number]
                self.enlarge.append(enlargement(skip, out, times))
                skip = out if any(times) else skip
            self.blocks.append(DecoderBlock(width, skip, out, spatial_dims))
            width = out
        convolution = LAYERS[spatial_dims].convolution
        self.to_image = convolution(width, out_channels, 3, padding=1)
        self.activation = nn.Sigmoid() if activation == "sigmoid" else nn.Identity()
        self._initialise()

    def _initialise(self) -> None:
        layers = LAYERS[self.spatial_dims]
        for module in (*self.enlarge.modules(), *self.blocks.modules()):
            if isinstance(module, (layers.convolution, layers.transposed)):
                nn.init.kaiming_uniform_(module.weight, nonlinearity="relu")
        nn.init.xavier_uniform_(self.to_image.weight)
        nn.init.zeros_(self.to_image.bias)

    @property
    def last_layer(self) -> Tensor:
        """Weights of the convolution that makes the image."""
        weight: Tensor = self.to_image.weight
        return weight

    def forward(
        self, features: Sequence[Tensor], output_size: Sequence[int] | None = None
    ) -> Tensor:
        """Returns the restored images.

        Args:
            features: The encoder's maps (B, C_i, H_i, W_i), finest to coarsest.
            output_size: (H, W) of the images, in pixels; by default the finest map's
                size, doubled by every block without a skip.

        Raises:
            ValueError: If the number or the channels of the maps are not those that the
                head was made for.
        """
        if tuple(f.shape[1] for f in features) != self.encoder_channels:
            raise ValueError(
                "RestorationHead: expected feature maps with "
                f"{list(self.encoder_channels)} channels, finest to coarsest, got "
                f"shapes {[tuple(f.shape) for f in features]}."
            )
        *skips, x = features
        for number, block in enumerate(self.blocks):
            if number < len(skips):
                skip = self.enlarge[number](skips[-1 - number])
                size = skip.shape[2:]
            else:
                skip, left = None, len(self.blocks) - 1 - number
                size = next_size(x.shape[2:], output_size, left)
            step = block, x, skip, size, output_size
            if self.checkpoint and torch.is_grad_enabled():
                contexts = functools.partial(checkpoint_contexts, block)
                x = checkpoint_of(
                    self._decode, *step, use_reentrant=False, context_fn=contexts
                )
            else:
                x = self._decode(*step)
        return x

    def _decode(
        self,
        block: nn.Module,
        x: Tensor,
        skip: Tensor | None,
        size: torch.Size,
        output_size: Sequence[int] | None,
    ) -> Tensor:
        """Runs a block; the last one also makes the image."""
        x = block(x, skip, size)
        if block is not self.blocks[-1]:
            return x
        if output_size is not None:
            x = resize(x, torch.Size(output_size))
        restored: Tensor = self.activation(self.to_image(x))
        return restored


def _check(
    spatial_dims: int,
    encoder_channels: Sequence[int],
    decoder_channels: Sequence[int],
    out_channels: int,
) -> None:
    """Raises a ValueError if these numbers make no decoder."""
    if spatial_dims not in LAYERS:
        raise ValueError(
            "RestorationHead: spatial_dims must be 2 for images or 3 for volumes, "
            f"got {spatial_dims}."
        )
    if len(encoder_channels) < 2:
        raise ValueError(
            "RestorationHead: expected the channels of at least two feature maps, "
            f"finest to coarsest, got {list(encoder_channels)}."
        )
    if len(decoder_channels) < len(encoder_channels) - 1:
        raise ValueError(
            f"RestorationHead: {len(encoder_channels)} feature maps need at least "
            f"{len(encoder_channels) - 1} decoder_channels, got "
            f"{tuple(decoder_channels)}. Add entries or leave out feature maps."
        )
    if min(*encoder_channels, *decoder_channels, out_channels) < 1:
        raise ValueError(
            "RestorationHead: channel counts must be at least 1, got "
            f"encoder_channels={tuple(encoder_channels)}, decoder_channels="
            f"{tuple(decoder_channels)}, out_channels={out_channels}."
        )


def _enlarged(
    strides: Sequence[int | tuple[int, ...]] | None, maps: int, spatial_dims: int
) -> list[tuple[int, ...]]:
    """Returns how often each map but the coarsest is doubled, to be a skip."""
    if strides is None:
        return [(0,) * spatial_dims] * (maps - 1)
    of_axes = by_axis(strides, spatial_dims)
    if len(strides) != maps or any(
        sorted(axis) != [*axis] for axis in zip(*of_axes, strict=True)
    ):
        raise ValueError(
            f"RestorationHead: expected {maps} strides, finest map to coarsest, got "
            f"{tuple(strides)}."
        )
    return doublings(of_axes)[0]
