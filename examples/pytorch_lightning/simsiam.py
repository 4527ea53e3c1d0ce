"""SimSiam as in Lightly's Lightning examples, made DiRA by mixin and transform.

python examples/pytorch_lightning/simsiam.py [--data FOLDER] [--devices N]
"""

import argparse

import pytorch_lightning as pl
import torch
import torchvision
from lightly.loss import NegativeCosineSimilarity
from lightly.models.modules import SimSiamPredictionHead, SimSiamProjectionHead
from lightly.transforms import SimSiamTransform
from torch import nn

from lightly_dira import DiRATransform
from lightly_dira.data import ImageFiles
from lightly_dira.evaluation.data import MNI152Slices
from lightly_dira.lightning.mixin import DiRAMixin


class SimSiam(pl.LightningModule):
    def __init__(self):
        super().__init__()
        resnet = torchvision.models.resnet18()
        self.backbone = nn.Sequential(*list(resnet.children())[:-1])
        self.projection_head = SimSiamProjectionHead(512, 512, 128)
        self.prediction_head = SimSiamPredictionHead(128, 64, 128)
        self.criterion = NegativeCosineSimilarity()

    def forward(self, x):
        f = self.backbone(x).flatten(start_dim=1)
        z = self.projection_head(f)
        p = self.prediction_head(z)
        z = z.detach()
        return z, p

    def training_step(self, batch, batch_idx):
        x0, x1 = batch[0]
        z0, p0 = self.forward(x0)
        z1, p1 = self.forward(x1)
        loss = 0.5 * (self.criterion(z0, p1) + self.criterion(z1, p0))
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.06)


class DiRASimSiam(DiRAMixin, SimSiam):  # DiRA: the mixin
    pass


parser = argparse.ArgumentParser()
parser.add_argument("--data", help="folder of images; the MNI152 brain without one")
parser.add_argument("--epochs", type=int, default=10)
parser.add_argument("--input-size", type=int, default=64, help="pixels")
parser.add_argument("--devices", type=int, default=1, help="one process for each")
parser.add_argument("--strategy", default="auto", help="of Lightning: ddp, fsdp, ...")
options = parser.parse_args()

model = DiRASimSiam()

transform = SimSiamTransform(input_size=options.input_size)
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
