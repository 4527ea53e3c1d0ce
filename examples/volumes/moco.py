"""MoCo around a 3-D encoder of MONAI, plus the three lines of DiRA marked below.

python examples/volumes/moco.py [--data FOLDER] [--window LOW HIGH] [--epochs N]

FOLDER holds NIfTI or NumPy files, or folders of DICOM series, for example CT with
--window -1000 400. Without one, cubes of the MNI152 brain are used.
"""

import argparse
import copy

import torch
from lightly.loss import NTXentLoss
from lightly.models.modules import MoCoProjectionHead
from lightly.models.utils import deactivate_requires_grad, update_momentum
from lightly.utils.scheduler import cosine_schedule
from monai.networks.nets import resnet18
from torch import nn

from lightly_dira import DiRA, DiRATransform
from lightly_dira.data import VolumeFiles
from lightly_dira.evaluation.data import MNI152Cubes
from lightly_dira.transforms import VolumePipeline


class MoCo(nn.Module):
    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone
        self.projection_head = MoCoProjectionHead(512, 512, 128)
        self.backbone_momentum = copy.deepcopy(self.backbone)
        self.projection_head_momentum = copy.deepcopy(self.projection_head)
        deactivate_requires_grad(self.backbone_momentum)
        deactivate_requires_grad(self.projection_head_momentum)

    def forward(self, x):
        query = self.backbone(x).flatten(start_dim=1)
        query = self.projection_head(query)
        return query

    def forward_momentum(self, x):
        key = self.backbone_momentum(x).flatten(start_dim=1)
        key = self.projection_head_momentum(key).detach()
        return key


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
model = MoCo(backbone)

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

criterion = NTXentLoss(memory_bank_size=(512, 128))
optimizer = torch.optim.SGD(model.parameters(), lr=0.06)
dira = DiRA(model.backbone, optimizer)  # DiRA: the second line

print("Starting Training")
for epoch in range(options.epochs):
    total_loss = 0
    momentum_val = cosine_schedule(epoch, options.epochs, 0.996, 1)
    for batch in dataloader:
        x_query, x_key = batch[0]
        update_momentum(model.backbone, model.backbone_momentum, m=momentum_val)
        update_momentum(
            model.projection_head, model.projection_head_momentum, m=momentum_val
        )
        x_query = x_query.to(device)
        x_key = x_key.to(device)
        query = model(x_query)
        with torch.no_grad():
            key = model.forward_momentum(x_key)
        loss = criterion(query, key)
        loss = dira(loss, batch)  # DiRA: the third line
        total_loss += loss.detach()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    avg_loss = total_loss / len(dataloader)
    print(f"epoch: {epoch:>02}, loss: {avg_loss:.5f}")
