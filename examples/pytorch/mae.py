"""MAE as in Lightly's examples, plus the three lines of DiRA marked below.

MAE restores by itself, so DiRA makes no decoder: it adds the adversary, which sees
whole images with the predicted patches in place. Two masked views of each image also
attract each other (NTXentLoss), so that all three parts of DiRA are there.

python examples/pytorch/mae.py [--data FOLDER] [--epochs N]
"""

import argparse

import torch
from lightly.loss import NTXentLoss
from lightly.models import utils
from lightly.models.modules import (
    MaskedVisionTransformerDecoderTIMM,
    MaskedVisionTransformerTIMM,
    SimCLRProjectionHead,
)
from lightly.models.modules.masked_vision_transformer_timm import init_weights
from lightly.transforms import MAETransform
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from lightly_dira import Adversary
from lightly_dira.data import ImageFiles
from lightly_dira.evaluation.data import MNI152Slices
from lightly_dira.models import fill_masked_patches


class MAE(nn.Module):
    def __init__(self, vit):
        super().__init__()

        decoder_dim = 128
        self.mask_ratio = 0.75
        self.patch_size = vit.patch_embed.patch_size[0]

        self.backbone = MaskedVisionTransformerTIMM(vit=vit)
        self.sequence_length = self.backbone.sequence_length
        self.projection_head = SimCLRProjectionHead(vit.embed_dim, vit.embed_dim, 128)
        self.decoder_embed = nn.Linear(vit.embed_dim, decoder_dim)
        self.decoder = MaskedVisionTransformerDecoderTIMM(
            num_patches=vit.patch_embed.num_patches,
            embed_dim=decoder_dim,
            depth=1,
            num_heads=4,
            num_prefix_tokens=vit.num_prefix_tokens,
            mlp_ratio=4.0,
            proj_drop_rate=0.0,
            attn_drop_rate=0.0,
        )
        self.prediction_head = nn.Linear(decoder_dim, self.patch_size**2 * 3)
        self.decoder_embed.apply(init_weights)
        self.prediction_head.apply(init_weights)

    def forward_decoder(self, x_encoded, idx_keep, idx_mask):
        batch_size = x_encoded.shape[0]
        x_decode = self.decoder_embed(x_encoded)
        x_masked = x_decode.new_zeros(
            batch_size, self.sequence_length, x_decode.shape[-1]
        )
        x_masked = utils.set_at_index(x_masked, idx_keep, x_decode.type_as(x_masked))
        x_decoded = self.decoder(x_masked, idx_mask=idx_mask)
        x_pred = utils.get_at_index(x_decoded, idx_mask)
        return self.prediction_head(x_pred)

    def forward(self, images):
        idx_keep, idx_mask = utils.random_token_mask(
            size=(images.shape[0], self.sequence_length),
            mask_ratio=self.mask_ratio,
            device=images.device,
        )
        x_encoded = self.backbone.encode(images=images, idx_keep=idx_keep)
        x_pred = self.forward_decoder(x_encoded, idx_keep, idx_mask)
        patches = utils.patchify(images, self.patch_size)
        # must adjust idx_mask for missing class token
        target = utils.get_at_index(patches, idx_mask - 1)
        z = self.projection_head(x_encoded[:, 0])
        return x_pred, target, idx_mask, z


parser = argparse.ArgumentParser()
parser.add_argument("--data", help="folder of images; the MNI152 brain without one")
parser.add_argument("--epochs", type=int, default=10)
parser.add_argument("--batch-size", type=int, default=32)
parser.add_argument("--input-size", type=int, default=128, help="pixels")
options = parser.parse_args()

vit = VisionTransformer(
    img_size=options.input_size, patch_size=16, embed_dim=192, depth=6, num_heads=3
)
model = MAE(vit)

device = "cuda" if torch.cuda.is_available() else "cpu"
model.to(device)

transform = MAETransform(input_size=options.input_size)  # takes images of 8 bits
if options.data:
    dataset = ImageFiles(options.data, transform)
else:
    dataset = MNI152Slices("train", transform)

dataloader = torch.utils.data.DataLoader(
    dataset,
    batch_size=options.batch_size,
    shuffle=True,
    drop_last=True,
)

criterion = nn.MSELoss()
contrast = NTXentLoss()
optimizer = torch.optim.AdamW(model.parameters(), lr=1.5e-4)
dira = Adversary(  # DiRA: the first line
    model.backbone, optimizer, target_channels=3
)

print("Starting Training")
for epoch in range(options.epochs):
    total_loss = 0
    for batch in dataloader:
        views = batch[0]
        images = views[0].to(device)  # views contains only a single view
        predictions, targets, idx_mask, z0 = model(images)
        other_predictions, other_targets, _, z1 = model(images)  # another mask
        loss = criterion(predictions, targets)
        loss = 0.5 * (loss + criterion(other_predictions, other_targets))
        loss = loss + 0.1 * contrast(z0, z1)
        restored = fill_masked_patches(  # DiRA: the second line
            images, predictions, idx_mask, model.patch_size
        )
        loss = dira(loss, restored, images)  # DiRA: the third line
        total_loss += loss.detach()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    avg_loss = total_loss / len(dataloader)
    print(f"epoch: {epoch:>02}, loss: {avg_loss:.5f}")
