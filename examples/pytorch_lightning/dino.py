"""DINO as in Lightly's Lightning examples, made DiRA by mixin and transform.

python examples/pytorch_lightning/dino.py [--data FOLDER] [--devices N]
"""

import argparse
import copy

import pytorch_lightning as pl
import torch
import torchvision
from lightly.loss import DINOLoss
from lightly.models.modules import DINOProjectionHead
from lightly.models.utils import deactivate_requires_grad, update_momentum
from lightly.transforms import DINOTransform
from lightly.utils.scheduler import cosine_schedule
from torch import nn

from lightly_dira import DiRATransform
from lightly_dira.data import ImageFiles
from lightly_dira.evaluation.data import MNI152Slices
from lightly_dira.lightning.mixin import DiRAMixin


class DINO(pl.LightningModule):
    def __init__(self):
        super().__init__()
        resnet = torchvision.models.resnet18()
        backbone = nn.Sequential(*list(resnet.children())[:-1])
        self.student_backbone = backbone
        self.student_head = DINOProjectionHead(
            512, 512, 64, 2048, freeze_last_layer=1, norm_last_layer=True
        )
        self.teacher_backbone = copy.deepcopy(backbone)
        self.teacher_head = DINOProjectionHead(512, 512, 64, 2048)

        deactivate_requires_grad(self.teacher_backbone)
        deactivate_requires_grad(self.teacher_head)

        self.criterion = DINOLoss(output_dim=2048, warmup_teacher_temp_epochs=5)

    def forward(self, x):
        y = self.student_backbone(x).flatten(start_dim=1)
        z = self.student_head(y)
        return z

    @torch.no_grad()
    def forward_teacher(self, x):
        y = self.teacher_backbone(x).flatten(start_dim=1)
        z = self.teacher_head(y)
        return z

    def training_step(self, batch, batch_idx):
        momentum = cosine_schedule(
            self.current_epoch, self.trainer.max_epochs, 0.996, 1
        )
        update_momentum(self.student_backbone, self.teacher_backbone, m=momentum)
        update_momentum(self.student_head, self.teacher_head, m=momentum)
        views = batch[0]
        global_views = views[:2]
        teacher_out = [self.forward_teacher(view) for view in global_views]
        student_out = [self.forward(view) for view in views]
        loss = self.criterion(teacher_out, student_out, epoch=self.current_epoch)
        return loss

    def on_after_backward(self):
        self.student_head.cancel_last_layer_gradients(current_epoch=self.current_epoch)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.001)


class DiRADINO(DiRAMixin, DINO):  # DiRA: the mixin
    pass


parser = argparse.ArgumentParser()
parser.add_argument("--data", help="folder of images; the MNI152 brain without one")
parser.add_argument("--epochs", type=int, default=10)
parser.add_argument("--input-size", type=int, default=64, help="pixels")
parser.add_argument("--devices", type=int, default=1, help="one process for each")
parser.add_argument("--strategy", default="auto", help="of Lightning: ddp, fsdp, ...")
options = parser.parse_args()

model = DiRADINO()

transform = DINOTransform(
    global_crop_size=options.input_size, local_crop_size=options.input_size // 2
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
