"""SimMIM as in Lightly's examples, plus the three lines of DiRA marked below.

SimMIM restores by itself, so DiRA makes no decoder: it adds the adversary, which sees
whole images with the predicted patches in place. Two masked views of each image also
attract each other (NTXentLoss), so that all three parts of DiRA are there.

python examples/pytorch/simmim.py [--data FOLDER] [--epochs N]
"""

import argparse

import torch
from lightly.data import LightlyDataset
from lightly.loss import NTXentLoss
from lightly.models import utils
from lightly.models.modules import SimCLRProjectionHead
from lightly.models.modules.masked_vision_transformer_torchvision import (
    MaskedVisionTransformerTorchvision,
)
from lightly.transforms import MAETransform
from torch import nn
from torchvision.models import VisionTransformer

from lightly_dira import Adversary
from lightly_dira.evaluation.data import MNI152Slices
from lightly_dira.models import fill_masked_patches


class SimMIM(nn.Module):
    def __init__(self, vit):
        super().__init__()

        decoder_dim = vit.hidden_dim
        self.mask_ratio = 0.75
        self.patch_size = vit.patch_size
        self.sequence_length = vit.seq_length

        self.backbone = MaskedVisionTransformerTorchvision(vit=vit)
        self.projection_head = SimCLRProjectionHead(decoder_dim, decoder_dim, 128)

        # the decoder is a simple linear layer
        self.decoder = nn.Linear(decoder_dim, vit.patch_size**2 * 3)

    def forward(self, images):
        _, idx_mask = utils.random_token_mask(
            size=(images.shape[0], self.sequence_length),
            mask_ratio=self.mask_ratio,
            device=images.device,
        )
        # pass all the tokens to the encoder, both masked and non masked ones
        x_encoded = self.backbone.encode(images=images, idx_mask=idx_mask)
        x_out = self.decoder(utils.get_at_index(x_encoded, idx_mask))
        patches = utils.patchify(images, self.patch_size)
        # must adjust idx_mask for missing class token
        target = utils.get_at_index(patches, idx_mask - 1)
        z = self.projection_head(x_encoded[:, 1:].mean(dim=1))
        return x_out, target, idx_mask, z


parser = argparse.ArgumentParser()
parser.add_argument("--data", help="folder of images; the MNI152 brain without one")
parser.add_argument("--epochs", type=int, default=10)
parser.add_argument("--batch-size", type=int, default=32)
parser.add_argument("--input-size", type=int, default=128, help="pixels")
options = parser.parse_args()

vit = VisionTransformer(
    image_size=options.input_size,
    patch_size=16,
    num_layers=6,
    num_heads=3,
    hidden_dim=192,
    mlp_dim=768,
)
model = SimMIM(vit)

device = "cuda" if torch.cuda.is_available() else "cpu"
model.to(device)

transform = MAETransform(input_size=options.input_size)
if options.data:
    # For photographs: it makes 8-bit RGB of all images, and clips those of 16 bits.
    dataset = LightlyDataset(options.data, transform=transform)
else:
    dataset = MNI152Slices("train", transform)

dataloader = torch.utils.data.DataLoader(
    dataset,
    batch_size=options.batch_size,
    shuffle=True,
    drop_last=True,
)

# L1 loss as paper suggestion
criterion = nn.L1Loss()
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
