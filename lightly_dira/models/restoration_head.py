"""The restoration head: the decoder that makes a U-Net of any encoder."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint as checkpoint_of


class _DecoderBlock(nn.Module):
    """Enlarge, join the skip, and twice convolve, normalise and rectify."""

    def __init__(self, in_channels: int, skip_channels: int, out_channels: int) -> None:
        super().__init__()
        self.skip_channels = skip_channels
        self.conv1: Any = _conv_norm_relu(in_channels + skip_channels, out_channels)
        self.conv2 = _conv_norm_relu(out_channels, out_channels)
        self.register_buffer("spread", _SPREAD.clone(), persistent=False)
        self.spread: Tensor

    def forward(self, x: Tensor, skip: Tensor | None, size: torch.Size) -> Tensor:
        # Both ways give the same up to rounding. Without gradients the plain one stays
        # with the digits of other libraries' decoders.
        if torch.is_grad_enabled() and size == _doubled(x):
            convolve, *rest = self.conv1
            weight, of_skip = convolve.weight.split([x.shape[1], self.skip_channels], 1)
            if skip is None and x.device.type == "cpu":
                # Few channels of many pixels: twice as fast there with channels last.
                x = x.contiguous(memory_format=torch.channels_last)
            joined = _convolve_doubled(x, weight, self.spread)
            if skip is not None:
                joined += F.conv2d(skip, of_skip, padding=1)
            for layer in rest:
                joined = layer(joined)
        else:
            x = _resize(x, size)
            joined = self.conv1(x if skip is None else torch.cat([x, skip], dim=1))
        restored: Tensor = self.conv2(joined)
        return restored


class RestorationHead(nn.Module):
    """Restores images from the feature maps of an encoder: a U-Net decoder [0, 1].

    Going from the coarsest map to the finest, each block enlarges its input to the
    size of the next map (nearest neighbour), concatenates that map and applies two
    3 x 3 convolutions with BatchNorm and ReLU. Blocks without a map double
    the size, up to `output_size`. A last 3 x 3 convolution and the activation give
    the image. The head knows channel counts and feature maps and nothing of the
    encoder; sizes come with the maps, so odd ones work. It is the decoder of
    `segmentation_models_pytorch.Unet`, as in the published run; in training it skips
    multiplications by equal neighbours, which is the same up to rounding.

    A vision transformer has maps from several depths, all of one size. With their
    `strides` the head makes a pyramid of them first, as UNETR [2] does: the earlier a
    map, the more often a transposed 2 x 2 convolution with BatchNorm and ReLU doubles
    its size.

    The default is as heavy as a ResNet-50 (23.5 million parameters and 4.1 billion
    multiplications for an image of 224 x 224). Lighter ones, on its maps:

    ======================  ====================  ===============  ==========
    decoder_channels        parameters, millions  multiplications  time, CPU
    ======================  ====================  ===============  ==========
    256, 128, 64, 32, 16    9.0                   4.1 billion      1
    128, 64, 32, 16, 16     4.2                   1.8 billion      0.5
    64, 32, 16, 16, 16      2.0                   1.0 billion      0.35
    ======================  ====================  ===============  ==========

    - [0]: DiRA, 2022, https://arxiv.org/abs/2204.10437 (Section 3.1)
    - [1]: U-Net, 2015, https://arxiv.org/abs/1505.04597
    - [2]: UNETR, 2022, https://arxiv.org/abs/2103.10504

    Attributes:
        encoder_channels: Channels of the expected maps, from the finest to the
            coarsest.
        settings: The arguments that make such a head again.
        out_channels: Channels of the restored images.

    Shape:
        - features: a list of (B, C_i, H_i, W_i), from the finest to the coarsest.
        - output: (B, out_channels, H, W), in [0, 1] with the sigmoid.

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
        decoder_channels: Sequence[int] = (256, 128, 64, 32, 16),
        out_channels: int = 1,
        activation: str | None = "sigmoid",
        strides: Sequence[int] | None = None,
        checkpoint: bool = False,
    ) -> None:
        """Creates the head.

        Args:
            encoder_channels: Channels of the encoder's maps, finest to coarsest.
            decoder_channels: Output channels of the blocks, in the order in which they
                run, coarsest to finest. There must be a block for every map but the
                coarsest; each further one doubles the size.
            out_channels: Channels of the restored images, 1 for grey.
            activation: "sigmoid" for images in [0, 1], None for none.
            strides: Pixels per position of each map, finest to coarsest, never
                falling. By default every map is at least twice as fine as the next.
            checkpoint: Whether to compute the blocks' inner values again in the
            backward
                pass instead of keeping them: less memory, more time.

        Raises:
            ValueError: If there are fewer than two maps or too few blocks, a channel
                count is below 1, the activation is unknown or the strides do not fit.
        """
        super().__init__()
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
        if activation not in ("sigmoid", None):
            raise ValueError(
                "RestorationHead: activation must be 'sigmoid' or None, got "
                f"{activation!r}."
            )
        *skips, width = encoder_channels
        doublings = [0] * len(skips)
        if strides is not None:
            if len(strides) != len(encoder_channels) or sorted(strides) != [*strides]:
                raise ValueError(
                    f"RestorationHead: expected {len(encoder_channels)} strides, "
                    f"finest map to coarsest, got {tuple(strides)}."
                )
            doublings = _doublings(strides)
        self.settings: dict[str, Any] = {
            "encoder_channels": tuple(encoder_channels),
            "decoder_channels": tuple(decoder_channels),
            "out_channels": out_channels,
            "activation": activation,
            "strides": None if strides is None else tuple(strides),
            "checkpoint": checkpoint,
        }
        self.checkpoint = checkpoint
        self.encoder_channels = tuple(encoder_channels)
        self.out_channels = out_channels
        self.enlarge = nn.ModuleList()
        self.blocks = nn.ModuleList()
        # Coarsest map first, as the blocks run; blocks after the last have no skip.
        ahead = [*zip(skips, doublings, strict=True)][::-1]
        for number, out in enumerate(decoder_channels):
            skip = 0
            if number < len(ahead):
                skip, times = ahead[number]
                self.enlarge.append(
                    _enlargement(skip, out, times) if times else nn.Identity()
                )
                skip = out if times else skip
            self.blocks.append(_DecoderBlock(width, skip, out))
            width = out
        self.to_image = nn.Conv2d(width, out_channels, 3, padding=1)
        self.activation = nn.Sigmoid() if activation == "sigmoid" else nn.Identity()
        for module in (*self.enlarge.modules(), *self.blocks.modules()):
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
                nn.init.kaiming_uniform_(module.weight, nonlinearity="relu")
        nn.init.xavier_uniform_(self.to_image.weight)
        nn.init.zeros_(self.to_image.bias)  # type: ignore[arg-type]

    def forward(
        self, features: Sequence[Tensor], output_size: Sequence[int] | None = None
    ) -> Tensor:
        """Returns the restored images.

        Args:
            features: The encoder's maps (B, C_i, H_i, W_i), finest to coarsest.
            output_size: (H, W) of the images, in pixels; by default the finest map's
                size, doubled by every block without a skip.

        Raises:
            ValueError: If the maps' number or channels are not those the head was
                made for.
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
                skip, size = None, self._next_size(x, number, output_size)
            step = block, x, skip, size, output_size
            if self.checkpoint and torch.is_grad_enabled():
                contexts = functools.partial(_contexts, block)
                x = checkpoint_of(
                    self._decode, *step, use_reentrant=False, context_fn=contexts
                )
            else:
                x = self._decode(*step)
        return x

    def _next_size(
        self, x: Tensor, number: int, output_size: Sequence[int] | None
    ) -> torch.Size:
        """Returns the size of a block's output where no map says it."""
        if output_size is None:
            return _doubled(x)
        left = len(self.blocks) - 1 - number
        # Half of an odd side, rounded up, doubles to one position more.
        return torch.Size(
            max(side, min(2 * side, math.ceil(full / 2**left)))
            for side, full in zip(x.shape[2:], output_size, strict=True)
        )

    def _decode(
        self,
        block: nn.Module,
        x: Tensor,
        skip: Tensor | None,
        size: torch.Size,
        output_size: Sequence[int] | None,
    ) -> Tensor:
        """Runs a block, and after the last makes the image."""
        x = block(x, skip, size)
        if block is not self.blocks[-1]:
            return x
        if output_size is not None:
            x = _resize(x, torch.Size(output_size))
        restored: Tensor = self.activation(self.to_image(x))
        return restored


def _contexts(block: nn.Module) -> tuple[AbstractContextManager[None], Any]:
    """Contexts of the first and of the second run of a block that is run twice."""
    return nullcontext(), _statistics_kept(block)


@contextmanager
def _statistics_kept(block: nn.Module) -> Iterator[None]:
    """Leaves running statistics as they are, since the first run has moved them."""
    norms = [m for m in block.modules() if isinstance(m, nn.BatchNorm2d)]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count


def _doublings(strides: Sequence[int]) -> list[int]:
    """How often each map but the coarsest is to be doubled to become the next finer."""
    counts = []
    *finer, reached = map(float, strides)
    for stride in reversed(finer):
        reached = max(1.0, min(stride, reached / 2))
        counts.append(round(math.log2(stride / reached)))
    return counts[::-1]


# A doubled position is a neighbour of its own copy: in a row of weights of the
# transposed convolution, each weight of a 3 x 3 convolution occurs twice.
_SPREAD = torch.tensor([[0.0, 0, 1], [0, 1, 1], [1, 1, 0], [1, 0, 0]])


def _convolve_doubled(x: Tensor, weight: Tensor, spread: Tensor) -> Tensor:
    """Doubles x (nearest neighbour) and convolves it 3 x 3, by 4 of 9 multiplications.

    It is a transposed convolution, 4 x 4 with stride 2, of x itself.
    """
    weight = torch.einsum("ak,bl,oikl->ioab", spread, spread, weight)
    return F.conv_transpose2d(x, weight, stride=2, padding=1)


def _doubled(x: Tensor) -> torch.Size:
    return torch.Size(2 * side for side in x.shape[2:])


def _resize(x: Tensor, size: torch.Size) -> Tensor:
    return x if x.shape[2:] == size else F.interpolate(x, size=size, mode="nearest")


def _conv_norm_relu(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


def _enlargement(in_channels: int, out_channels: int, times: int) -> nn.Sequential:
    """Doubles a map's size several times, by steps that do not overlap."""
    layers: list[nn.Module] = []
    for _ in range(times):
        double = nn.ConvTranspose2d(in_channels, out_channels, 2, stride=2, bias=False)
        layers += [double, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)]
        in_channels = out_channels
    return nn.Sequential(*layers)


def head_for(
    channels: Sequence[int],
    strides: Sequence[int],
    out_channels: int,
    activation: str | None = "sigmoid",
) -> RestorationHead:
    """Makes the published decoder, with as many blocks as lead to full resolution."""
    skips = len(channels) - 1
    finest = min(strides[0], max(1, strides[-1] / 2**skips))
    blocks = skips + round(math.log2(finest))
    return RestorationHead(
        channels,
        decoder_channels=[min(256, 16 * 2**block) for block in reversed(range(blocks))],
        out_channels=out_channels,
        activation=activation,
        strides=strides,
    )
