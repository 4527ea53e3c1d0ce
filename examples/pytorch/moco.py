"""MoCo as in Lightly's examples, plus the three lines of DiRA marked below.

python examples/pytorch/moco.py [--data FOLDER] [--epochs N]
"""

import argparse
import copy

import torch
import torchvision
from lightly.loss import NTXentLoss
from lightly.models.modules import MoCoProjectionHead
from lightly.models.utils import deactivate_requires_grad, update_momentum
from lightly.transforms import MoCoV2Transform
from lightly.utils.scheduler import cosine_schedule
from torch import nn

from lightly_dira import DiRA, DiRATransform
from lightly_dira.data import ImageFiles
from lightly_dira.evaluation.data import MNI152Slices


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

    @torch.no_grad()
    def forward_momentum(self, x):
        key = self.backbone_momentum(x).flatten(start_dim=1)
        key = self.projection_head_momentum(key)
        return key


parser = argparse.ArgumentParser()
parser.add_argument("--data", help="folder of images; the MNI152 brain without one")
parser.add_argument("--epochs", type=int, default=10)
parser.add_argument("--input-size", type=int, default=64, help="pixels")
options = parser.parse_args()

resnet = torchvision.models.resnet18()
backbone = nn.Sequential(*list(resnet.children())[:-1])
model = MoCo(backbone)

device = "cuda" if torch.cuda.is_available() else "cpu"
model.to(device)

transform = MoCoV2Transform(input_size=options.input_size)
transform = DiRATransform(transform)  # DiRA: the first line
if options.data:
    dataset = ImageFiles(options.data, transform)
else:
    dataset = MNI152Slices("train", transform=transform)

dataloader = torch.utils.data.DataLoader(
    dataset,
    batch_size=32,
    shuffle=True,
    drop_last=True,
)

criterion = NTXentLoss(memory_bank_size=(4096, 128)).to(device)
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
        key = model.forward_momentum(x_key)
        loss = criterion(query, key)
        loss = dira(loss, batch)  # DiRA: the third line
        total_loss += loss.detach()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    avg_loss = total_loss / len(dataloader)
    print(f"epoch: {epoch:>02}, loss: {avg_loss:.5f}")
