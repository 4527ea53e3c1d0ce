"""Hosts that restore by themselves: Lightly's MAE and SimMIM around a small ViT.

After the examples in Lightly's documentation (https://docs.lightly.ai). Bare, a host
restores the masked patches of two views. As DiRA variant it gets what it lacks: masked
views of one image attract each other, and an adversary judges whole images.
"""

from __future__ import annotations

from typing import Any

from lightly.loss import NTXentLoss
from lightly.models import utils
from lightly.models.modules import (
    MaskedVisionTransformerDecoderTIMM,
    MaskedVisionTransformerTIMM,
    SimCLRProjectionHead,
)
from lightly.models.modules.masked_vision_transformer_timm import init_weights
from torch import Tensor, nn

from lightly_dira.models import fill_masked_patches


class Host(nn.Module):
    """Restores masked patches; subclasses encode and predict."""

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
        self.criterion: nn.Module = nn.MSELoss()

    @property
    def last_layer(self) -> nn.Parameter:
        return self.predict.weight

    def encode(self, images: Tensor, idx_keep: Tensor, idx_mask: Tensor) -> Tensor:
        """Returns tokens."""
        raise NotImplementedError

    def decode(self, tokens: Tensor, idx_keep: Tensor, idx_mask: Tensor) -> Tensor:
        """Returns predictions for the masked tokens."""
        raise NotImplementedError

    def restore(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the loss of a view, its restored images, and projections."""
        idx_keep, idx_mask = utils.random_token_mask(
            size=(len(images), self.masked.sequence_length),
            mask_ratio=self.mask_ratio,
            device=images.device,
        )
        tokens = self.encode(images, idx_keep, idx_mask)
        predictions = self.decode(tokens, idx_keep, idx_mask)
        patches = utils.patchify(images, self.patch_size)
        loss = self.criterion(predictions, utils.get_at_index(patches, idx_mask - 1))
        restored = fill_masked_patches(images, predictions, idx_mask, self.patch_size)
        return loss, restored, self.projection_head(tokens[:, 0])

    def forward(self, x0: Tensor, x1: Tensor, *, bare: bool) -> tuple[Tensor, Tensor]:
        """Returns the loss and the restored first view."""
        (loss0, restored, z0), (loss1, _, z1) = self.restore(x0), self.restore(x1)
        loss = 0.5 * (loss0 + loss1)
        if not bare:
            loss = loss + self.contrastive_weight * self.contrast(z0, z1)
        return loss, restored


class MAE(Host):
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


class SimMIM(Host):
    def __init__(self, backbone: Any, features: int, **options: Any) -> None:
        super().__init__(backbone, features, **options)
        self.predict = nn.Linear(features, self.patch_size**2 * 3)
        self.criterion = nn.L1Loss()

    def encode(self, images: Tensor, idx_keep: Tensor, idx_mask: Tensor) -> Tensor:
        return self.masked.encode(images=images, idx_mask=idx_mask)

    def decode(self, tokens: Tensor, idx_keep: Tensor, idx_mask: Tensor) -> Tensor:
        return self.predict(utils.get_at_index(tokens, idx_mask))


HOSTS = {host.__name__: host for host in (MAE, SimMIM)}
