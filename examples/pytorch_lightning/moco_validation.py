"""DiRA-MoCo with a validation loop, keeping the checkpoint that restores best.

The published run chooses its checkpoint by the loss on held-out images. The three terms
of held-out views are logged as `val/...`; pictures of them and the critic's accuracies
come from two callbacks. Lightly's linear classifier, which does not train the encoder,
learns the direction of the brain's slices beside it.

python examples/pytorch_lightning/moco_validation.py [--data FOLDER] [--epochs N]
"""

import argparse
import copy

import pytorch_lightning as pl
import torch
import torchvision
from lightly.loss import NTXentLoss
from lightly.models.modules import MoCoProjectionHead
from lightly.models.utils import deactivate_requires_grad, update_momentum
from lightly.utils.benchmarking import OnlineLinearClassifier
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, random_split

from lightly_dira import DiRATransform
from lightly_dira.data import ImageFiles
from lightly_dira.evaluation.data import MNI152Slices
from lightly_dira.lightning import CollapseWatch, RestorationLogger
from lightly_dira.lightning.mixin import DiRAMixin


class MoCo(pl.LightningModule):
    def __init__(self, classes):
        super().__init__()
        self.classes = classes  # of the labels, or 0 if there are none
        resnet = torchvision.models.resnet18()
        self.backbone = nn.Sequential(*list(resnet.children())[:-1])
        self.projection_head = MoCoProjectionHead(512, 512, 128)
        self.backbone_momentum = copy.deepcopy(self.backbone)
        self.projection_head_momentum = copy.deepcopy(self.projection_head)
        deactivate_requires_grad(self.backbone_momentum)
        deactivate_requires_grad(self.projection_head_momentum)
        self.criterion = NTXentLoss(memory_bank_size=(4096, 128))
        self.online_classifier = OnlineLinearClassifier(512, max(classes, 1), topk=(1,))

    def loss(self, views):
        x_query, x_key = views
        features = self.backbone(x_query).flatten(start_dim=1)
        query = self.projection_head(features)
        with torch.no_grad():
            key = self.backbone_momentum(x_key).flatten(start_dim=1)
            key = self.projection_head_momentum(key)
        return self.criterion(query, key), features

    def training_step(self, batch, batch_idx):
        update_momentum(self.backbone, self.backbone_momentum, m=0.999)
        update_momentum(self.projection_head, self.projection_head_momentum, m=0.999)
        views, labels, _ = batch
        loss, features = self.loss(views)
        if self.classes:
            probe = self.online_classifier.training_step((features, labels), batch_idx)
            self.log_dict(probe[1], prog_bar=True)
            loss = loss + probe[0]  # which dira/discriminative then holds
        return loss

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(
            self.parameters(), lr=0.03, momentum=0.9, weight_decay=1e-4
        )
        steps = self.trainer.estimated_stepping_batches
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


class DiRAMoCo(DiRAMixin, MoCo):
    def validation_step(self, batch, batch_idx):
        loss, features = self.loss(batch[0])
        total = self.dira(loss, batch)
        if self.classes:
            pair = features, batch[1]
            probe = self.online_classifier.validation_step(pair, batch_idx)
            self.log_dict(probe[1], prog_bar=True, sync_dist=True)
        terms = self.dira.components._asdict()
        del terms["discriminator"], terms["total"]
        self.log_dict({f"val/{name}": terms[name] for name in terms}, sync_dist=True)
        # The discriminator's own loss says nothing of the encoder.
        self.log("val/loss", total - self.dira.components.discriminator, sync_dist=True)


parser = argparse.ArgumentParser()
parser.add_argument("--data", help="folder of images; the MNI152 brain without one")
parser.add_argument("--epochs", type=int, default=10)
parser.add_argument("--input-size", type=int, default=64, help="pixels")
options = parser.parse_args()

pl.seed_everything(0, workers=True)
model = DiRAMoCo(classes=0 if options.data else 3)
model.adversarial_start_epoch = options.epochs / 2

transform = DiRATransform(input_size=options.input_size)
if options.data:
    dataset = ImageFiles(options.data, transform)
    train, held_out = random_split(dataset, [0.9, 0.1])
else:
    train = MNI152Slices("train", transform=transform)
    held_out = MNI152Slices("test", transform=transform)

best = ModelCheckpoint(monitor="val/loss", save_last=True)
trainer = pl.Trainer(
    max_epochs=options.epochs,
    callbacks=[best, RestorationLogger(), CollapseWatch()],
    log_every_n_steps=1,
)
trainer.fit(
    model,
    DataLoader(train, batch_size=32, shuffle=True, drop_last=True),
    DataLoader(held_out, batch_size=32),
)
print(f"best: {best.best_model_path}, validation loss {best.best_model_score:.4f}")
