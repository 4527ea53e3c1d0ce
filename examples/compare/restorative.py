"""Hosts that restore by themselves, bare and with what they lack.

Lightly's MAE and SimMIM around a small ViT, after the examples in Lightly's
documentation (https://docs.lightly.ai), and the 3-D U-Nets of Models Genesis
(https://arxiv.org/abs/1908.06912) and TransVW (https://arxiv.org/abs/2102.10680).

All lack an adversary. All but TransVW, which classifies, lack a discriminative part: in
their DiRA variants two views of an image attract each other.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from lightly.loss import NTXentLoss
from lightly.models import utils
from lightly.models.modules import (
    MaskedVisionTransformerDecoderTIMM,
    MaskedVisionTransformerTIMM,
    SimCLRProjectionHead,
)
from lightly.models.modules.masked_vision_transformer_timm import init_weights
from torch import Tensor, nn
from torch.nn import functional as F

from lightly_dira import DiRAViews
from lightly_dira.models import fill_masked_patches


class Restored(NamedTuple):
    """What a host returns: its loss, and the images that it restored from `view`."""

    loss: Tensor
    images: Tensor
    target: Tensor
    view: Tensor


class Host(nn.Module):
    """Restores; subclasses say how.

    Attributes:
        encoder: The encoder it needs, see `Settings`.
        transform: Which views it gets, see `make_transforms`.
        channels: Channels of restored images.
        criterion: How restored pixels are compared with clean ones.
        last_layer: Weights of the layer that makes the images.
    """

    encoder = "vit"
    transform = "plain"
    channels = 3
    criterion: nn.Module = nn.MSELoss()
    last_layer: nn.Parameter

    def forward(self, views: DiRAViews, labels: Tensor, *, bare: bool) -> Restored:
        raise NotImplementedError


class MaskedHost(Host):
    """Restores masked patches of undistorted views."""

    mask_ratio = 0.75

    def __init__(
        self, backbone: Any, features: int, *, contrastive_weight: float = 0.1
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.masked = MaskedVisionTransformerTIMM(vit=backbone)
        self.patch_size = backbone.patch_embed.patch_size[0]
        self.projection_head = SimCLRProjectionHead(features, features, 128)
        self.contrast = NTXentLoss(temperature=0.2)
        self.contrastive_weight = contrastive_weight

    @property
    def last_layer(self) -> nn.Parameter:
        return self.predict.weight

    def encode(self, images: Tensor, idx_keep: Tensor, idx_mask: Tensor) -> Tensor:
        """Returns tokens."""
        raise NotImplementedError

    def decode(self, tokens: Tensor, idx_keep: Tensor, idx_mask: Tensor) -> Tensor:
        """Returns predictions for the masked tokens."""
        raise NotImplementedError

    def restore(self, images: Tensor) -> tuple[Restored, Tensor]:
        """Returns what was restored of a view, and projections."""
        idx_keep, idx_mask = utils.random_token_mask(
            size=(len(images), self.masked.sequence_length),
            mask_ratio=self.mask_ratio,
            device=images.device,
        )
        tokens = self.encode(images, idx_keep, idx_mask)
        predictions = self.decode(tokens, idx_keep, idx_mask)
        patches = utils.patchify(images, self.patch_size)
        loss = self.criterion(predictions, utils.get_at_index(patches, idx_mask - 1))
        restored, masked = (
            fill_masked_patches(images, patches, idx_mask, self.patch_size)
            for patches in (predictions, torch.zeros_like(predictions))
        )
        z = self.projection_head(tokens[:, 0])
        return Restored(loss, restored, images, masked), z

    def forward(self, views: DiRAViews, labels: Tensor, *, bare: bool) -> Restored:
        (first, z0), (second, z1) = map(self.restore, views)
        loss = 0.5 * (first.loss + second.loss)
        if not bare:
            loss = loss + self.contrastive_weight * self.contrast(z0, z1)
        return first._replace(loss=loss)


class MAE(MaskedHost):
    def __init__(self, backbone: Any, features: int, **options: Any) -> None:
        super().__init__(backbone, features, **options)
        width = features // 2
        self.embed = nn.Linear(features, width)
        self.decoder = MaskedVisionTransformerDecoderTIMM(
            num_patches=backbone.patch_embed.num_patches,
            embed_dim=width,
            depth=1,
            num_heads=4,
            mlp_ratio=4.0,
        )
        self.predict = nn.Linear(width, self.patch_size**2 * 3)
        self.embed.apply(init_weights)
        self.predict.apply(init_weights)

    def encode(self, images: Tensor, idx_keep: Tensor, idx_mask: Tensor) -> Tensor:
        return self.masked.encode(images=images, idx_keep=idx_keep)

    def decode(self, tokens: Tensor, idx_keep: Tensor, idx_mask: Tensor) -> Tensor:
        embedded = self.embed(tokens)
        shape = (len(tokens), self.masked.sequence_length, embedded.shape[-1])
        whole = utils.set_at_index(embedded.new_zeros(shape), idx_keep, embedded)
        decoded = self.decoder(whole, idx_mask=idx_mask)
        return self.predict(utils.get_at_index(decoded, idx_mask))


class SimMIM(MaskedHost):
    criterion = nn.L1Loss()

    def __init__(self, backbone: Any, features: int, **options: Any) -> None:
        super().__init__(backbone, features, **options)
        self.predict = nn.Linear(features, self.patch_size**2 * 3)

    def encode(self, images: Tensor, idx_keep: Tensor, idx_mask: Tensor) -> Tensor:
        return self.masked.encode(images=images, idx_mask=idx_mask)

    def decode(self, tokens: Tensor, idx_keep: Tensor, idx_mask: Tensor) -> Tensor:
        return self.predict(utils.get_at_index(tokens, idx_mask))


class UNetHost(Host):
    """Restores distorted volumes: a decoder with skip connections on the encoder."""

    encoder = "unet"
    channels = 1

    def __init__(self, backbone: nn.Sequential, features: int) -> None:
        super().__init__()
        from monai.networks.nets.basic_unet import UpCat

        self.backbone = backbone
        widths = [features // 8, features // 4, features // 2, features]
        self.ups = nn.ModuleList(
            UpCat(3, wide, skip, skip, "relu", "batch", bias=False)
            for skip, wide in zip(widths[-2::-1], widths[:0:-1], strict=True)
        )
        self.last = nn.Conv3d(widths[0], 1, 1)

    @property
    def last_layer(self) -> nn.Parameter:
        return self.last.weight

    def restore_both(self, views: DiRAViews) -> tuple[Restored, Tensor, Tensor]:
        """Returns what was restored of two views, and their pooled bottlenecks."""
        (x0, z0), (x1, z1) = map(self.restore, views)
        t0, t1 = views.targets
        loss = 0.5 * (self.criterion(x0, t0) + self.criterion(x1, t1))
        return Restored(loss, x0, t0, views[0]), z0, z1

    def restore(self, volumes: Tensor) -> tuple[Tensor, Tensor]:
        """Returns restored volumes and the pooled bottleneck."""
        maps = [volumes]
        for level in self.backbone[:-1]:
            maps.append(level(maps[-1]))
        x = maps[-1]
        for up, skip in zip(self.ups, maps[-2:0:-1], strict=True):
            x = up(x, skip)
        return self.last(x).sigmoid(), self.backbone[-1](maps[-1]).flatten(1)


class Genesis(UNetHost):
    """Models Genesis: restores; its DiRA variant also contrasts bottlenecks."""

    transform = "genesis"

    def __init__(
        self, backbone: Any, features: int, *, contrastive_weight: float = 0.01
    ) -> None:
        super().__init__(backbone, features)
        self.projection_head = SimCLRProjectionHead(features, features, 128)
        self.contrast = NTXentLoss(temperature=0.2)
        self.contrastive_weight = contrastive_weight

    def forward(self, views: DiRAViews, labels: Tensor, *, bare: bool) -> Restored:
        restored, z0, z1 = self.restore_both(views)
        if bare:
            return restored
        contrast = self.contrast(self.projection_head(z0), self.projection_head(z1))
        return restored._replace(
            loss=restored.loss + self.contrastive_weight * contrast
        )


class TransVW(UNetHost):
    """Restores cubes and tells their visual words: needs `Settings.words`."""

    transform = "words"

    def __init__(
        self, backbone: Any, features: int, *, words: int, word_weight: float = 0.01
    ) -> None:
        super().__init__(backbone, features)
        self.tell = nn.Linear(features, words)
        self.word_weight = word_weight

    def forward(self, views: DiRAViews, labels: Tensor, *, bare: bool) -> Restored:
        restored, z0, z1 = self.restore_both(views)
        loss = restored.loss
        for z in (z0, z1):
            told = F.cross_entropy(self.tell(z), labels)
            loss = loss + 0.5 * self.word_weight * told
        return restored._replace(loss=loss)


HOSTS = {host.__name__: host for host in (MAE, SimMIM, Genesis, TransVW)}
