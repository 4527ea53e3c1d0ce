"""SimSiam around a 3-D encoder of MONAI, plus the three lines of DiRA marked below.

python examples/volumes/simsiam.py [--data FOLDER] [--window LOW HIGH] [--epochs N]

FOLDER holds NIfTI or NumPy files, or folders of DICOM series, for example CT with
--window -1000 400. Without one, cubes of the MNI152 brain are used.
"""

import argparse

import torch
from lightly.loss import NegativeCosineSimilarity
from lightly.models.modules import SimSiamPredictionHead, SimSiamProjectionHead
from monai.networks.nets import resnet18
from torch import nn

from lightly_dira import DiRA, DiRATransform
from lightly_dira.data import VolumeFiles
from lightly_dira.evaluation.data import MNI152Cubes
from lightly_dira.transforms import VolumePipeline


class SimSiam(nn.Module):
    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone
        self.projection_head = SimSiamProjectionHead(512, 512, 128)
        self.prediction_head = SimSiamPredictionHead(128, 64, 128)

    def forward(self, x):
        f = self.backbone(x).flatten(start_dim=1)
        z = self.projection_head(f)
        p = self.prediction_head(z)
        z = z.detach()
        return z, p


parser = argparse.ArgumentParser()
parser.add_argument("--data", help="folder of volumes; the MNI152 brain without one")
parser.add_argument("--window", type=float, nargs=2, help="values of black and white")
parser.add_argument("--epochs", type=int, default=10)
parser.add_argument("--batch-size", type=int, default=8)
parser.add_argument(
    "--input-size", type=int, nargs=3, default=(32, 64, 64), help="D H W, voxels"
)
options = parser.parse_args()

backbone = resnet18(spatial_dims=3, n_input_channels=1, feed_forward=False)
model = SimSiam(backbone)

device = "cuda" if torch.cuda.is_available() else "cpu"
model.to(device)

transform = VolumePipeline(tuple(options.input_size))  # or of MONAI
transform = DiRATransform(  # DiRA: the first line
    transform, spatial_dims=3, window=options.window
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

criterion = NegativeCosineSimilarity()
optimizer = torch.optim.SGD(model.parameters(), lr=0.06)
dira = DiRA(model.backbone, optimizer)  # DiRA: the second line

print("Starting Training")
for epoch in range(options.epochs):
    total_loss = 0
    for batch in dataloader:
        x0, x1 = batch[0]
        x0 = x0.to(device)
        x1 = x1.to(device)
        z0, p0 = model(x0)
        z1, p1 = model(x1)
        loss = 0.5 * (criterion(z0, p1) + criterion(z1, p0))
        loss = dira(loss, batch)  # DiRA: the third line
        total_loss += loss.detach()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    avg_loss = total_loss / len(dataloader)
    print(f"epoch: {epoch:>02}, loss: {avg_loss:.5f}")
