"""BYOL as in Lightly's Lightning examples, made DiRA by mixin and transform.

python examples/pytorch_lightning/byol.py [--data FOLDER] [--devices N]
"""

import argparse
import copy

import pytorch_lightning as pl
import torch
import torchvision
from lightly.loss import NegativeCosineSimilarity
from lightly.models.modules import BYOLPredictionHead, BYOLProjectionHead
from lightly.models.utils import deactivate_requires_grad, update_momentum
from lightly.transforms import BYOLTransform, BYOLView1Transform, BYOLView2Transform
from lightly.utils.scheduler import cosine_schedule
from torch import nn

from lightly_dira import DiRATransform
from lightly_dira.data import ImageFiles
from lightly_dira.evaluation.data import MNI152Slices
from lightly_dira.lightning.mixin import DiRAMixin


class BYOL(pl.LightningModule):
    def __init__(self):
        super().__init__()
        resnet = torchvision.models.resnet18()
        self.backbone = nn.Sequential(*list(resnet.children())[:-1])
        self.projection_head = BYOLProjectionHead(512, 1024, 256)
        self.prediction_head = BYOLPredictionHead(256, 1024, 256)

        self.backbone_momentum = copy.deepcopy(self.backbone)
        self.projection_head_momentum = copy.deepcopy(self.projection_head)

        deactivate_requires_grad(self.backbone_momentum)
        deactivate_requires_grad(self.projection_head_momentum)

        self.criterion = NegativeCosineSimilarity()

    def forward(self, x):
        y = self.backbone(x).flatten(start_dim=1)
        z = self.projection_head(y)
        p = self.prediction_head(z)
        return p

    @torch.no_grad()
    def forward_momentum(self, x):
        y = self.backbone_momentum(x).flatten(start_dim=1)
        z = self.projection_head_momentum(y)
        return z

    def training_step(self, batch, batch_idx):
        momentum = cosine_schedule(
            self.current_epoch, self.trainer.max_epochs, 0.996, 1
        )
        update_momentum(self.backbone, self.backbone_momentum, m=momentum)
        update_momentum(self.projection_head, self.projection_head_momentum, m=momentum)
        x0, x1 = batch[0]
        p0 = self.forward(x0)
        z0 = self.forward_momentum(x0)
        p1 = self.forward(x1)
        z1 = self.forward_momentum(x1)
        loss = 0.5 * (self.criterion(p0, z1) + self.criterion(p1, z0))
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.06)


class DiRABYOL(DiRAMixin, BYOL):  # DiRA: the mixin
    pass


parser = argparse.ArgumentParser()
parser.add_argument("--data", help="folder of images; the MNI152 brain without one")
parser.add_argument("--epochs", type=int, default=10)
parser.add_argument("--input-size", type=int, default=64, help="pixels")
parser.add_argument("--devices", type=int, default=1, help="one process for each")
parser.add_argument("--strategy", default="auto", help="of Lightning: ddp, fsdp, ...")
options = parser.parse_args()

model = DiRABYOL()

transform = BYOLTransform(
    view_1_transform=BYOLView1Transform(input_size=options.input_size),
    view_2_transform=BYOLView2Transform(input_size=options.input_size),
)
transform = DiRATransform(transform)  # DiRA: the transform
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

accelerator = "gpu" if torch.cuda.is_available() else "cpu"

# Each device has a process with its own part of the images. BatchNorm joins its
# statistics where PyTorch can, on GPUs.
trainer = pl.Trainer(
    max_epochs=options.epochs,
    devices=options.devices,
    accelerator=accelerator,
    strategy=options.strategy,
    sync_batchnorm=accelerator == "gpu",
)
trainer.fit(model=model, train_dataloaders=dataloader)
