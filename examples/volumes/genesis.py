"""Models Genesis around a 3-D U-Net of MONAI, plus the three lines of DiRA.

Models Genesis restores by itself, so DiRA makes no decoder: it adds the adversary. Two
distorted views of each volume also attract each other (NTXentLoss on the averaged
bottleneck), so that all three parts of DiRA are there.

python examples/volumes/genesis.py [--data FOLDER] [--window LOW HIGH] [--epochs N]

FOLDER holds NIfTI or NumPy files, or folders of DICOM series, for example CT with
--window -1000 1000. Without one, cubes of the MNI152 brain are used.
"""

import argparse

import torch
from lightly.loss import NTXentLoss
from lightly.models.modules import SimCLRProjectionHead
from monai.networks.nets import BasicUNet
from torch import nn

from lightly_dira import Adversary, DiRATransform
from lightly_dira.data import VolumeFiles
from lightly_dira.evaluation.data import MNI152Cubes
from lightly_dira.transforms import VolumePipeline, models_genesis_mixture


class ModelsGenesis(nn.Module):
    def __init__(self, unet):
        super().__init__()
        self.backbone = unet
        self.projection_head = SimCLRProjectionHead(256, 256, 128)

    def forward(self, x):
        unet = self.backbone
        x0 = unet.conv_0(x)
        x1 = unet.down_1(x0)
        x2 = unet.down_2(x1)
        x3 = unet.down_3(x2)
        x4 = unet.down_4(x3)
        z = self.projection_head(x4.flatten(start_dim=2).mean(dim=2))
        u = unet.upcat_4(x4, x3)
        u = unet.upcat_3(u, x2)
        u = unet.upcat_2(u, x1)
        u = unet.upcat_1(u, x0)
        return unet.final_conv(u).sigmoid(), z


parser = argparse.ArgumentParser()
parser.add_argument("--data", help="folder of volumes; the MNI152 brain without one")
parser.add_argument("--window", type=float, nargs=2, help="values of black and white")
parser.add_argument("--epochs", type=int, default=10)
parser.add_argument("--batch-size", type=int, default=6)
parser.add_argument(
    "--input-size", type=int, nargs=3, default=(32, 64, 64), help="D H W, voxels"
)
options = parser.parse_args()

unet = BasicUNet(
    in_channels=1, out_channels=1, features=(16, 32, 64, 128, 256, 16), norm="batch"
)
model = ModelsGenesis(unet)

device = "cuda" if torch.cuda.is_available() else "cpu"
model.to(device)

# Distorted views with their clean targets; grey curves are among the distortions.
pipeline = VolumePipeline(tuple(options.input_size), curve=0.0)
mixture = models_genesis_mixture()
transform = DiRATransform(  # DiRA: the first line
    pipeline, distortion=mixture, spatial_dims=3, window=options.window
)
if options.data:
    dataset = VolumeFiles(options.data, transform)
else:
    dataset = MNI152Cubes("train", transform)

dataloader = torch.utils.data.DataLoader(
    dataset,
    batch_size=options.batch_size,
    shuffle=True,
    drop_last=True,
)

criterion = nn.MSELoss()
contrast = NTXentLoss()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
dira = Adversary(model.backbone, optimizer)  # DiRA: the second line

print("Starting Training")
for epoch in range(options.epochs):
    total_loss = 0
    for batch in dataloader:
        views, targets = batch[0], batch[0].targets
        restored, z0 = model(views[0].to(device))
        other, z1 = model(views[1].to(device))
        clean = targets[0].to(device)
        loss = criterion(restored, clean) + criterion(other, targets[1].to(device))
        loss = 0.5 * loss + 0.01 * contrast(z0, z1)
        loss = dira(loss, restored, clean)  # DiRA: the third line
        total_loss += loss.detach()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    avg_loss = total_loss / len(dataloader)
    print(f"epoch: {epoch:>02}, loss: {avg_loss:.5f}")
