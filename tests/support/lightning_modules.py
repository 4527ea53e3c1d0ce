"""Lightning modules, their data and trainers."""

from __future__ import annotations

import copy

import pytorch_lightning as pl
import torch
from lightly.loss import NegativeCosineSimilarity, NTXentLoss
from lightly.models.modules import MoCoProjectionHead, SimSiamPredictionHead
from lightly.models.utils import deactivate_requires_grad, update_momentum
from lightly.utils.lars import LARS
from methods import tiny_backbone
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lightly_dira import DiRAViews
from lightly_dira.lightning.mixin import DiRAMixin


class Images(Dataset):
    """Views that are the same whenever they are asked for."""

    def __init__(self, count: int = 24, dtype: torch.dtype = torch.float32) -> None:
        generator = torch.Generator().manual_seed(0)
        self.views = torch.rand(count, 2, 3, 16, 16, generator=generator, dtype=dtype)
        self.targets = torch.rand(count, 1, 16, 16, generator=generator, dtype=dtype)

    def __len__(self) -> int:
        return len(self.views)

    def __getitem__(self, index: int):
        return DiRAViews(self.views[index], self.targets[index]), 0, f"{index}.png"


class SimSiam(pl.LightningModule):
    def __init__(self, optimizers: str = "one", output: str = "tensor") -> None:
        super().__init__()
        self.backbone = tiny_backbone()
        self.prediction_head = SimSiamPredictionHead(16, 8, 16)
        self.criterion = NegativeCosineSimilarity()
        self.optimizers_form, self.output_form = optimizers, output

    def training_step(self, batch, batch_index):
        x0, x1 = batch[0]
        z0, z1 = self.backbone(x0), self.backbone(x1)
        p0, p1 = self.prediction_head(z0), self.prediction_head(z1)
        loss = self.criterion(z0.detach(), p1) + self.criterion(z1.detach(), p0)
        if self.output_form == "nothing":
            return None
        return {"loss": loss, "extra": 1} if self.output_form == "dict" else loss

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
        plan = {"scheduler": scheduler, "interval": "step"}
        return {
            "one": optimizer,
            "lars": LARS(self.parameters(), lr=0.05),
            "list": [optimizer],
            "lists": ([optimizer], [scheduler]),
            "plans": ([optimizer], [plan]),
            "dict": {"optimizer": optimizer, "lr_scheduler": plan},
            "none": None,
        }[self.optimizers_form]


class MoCo(pl.LightningModule):
    """With all that is hard to resume: a twin and a queue."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = tiny_backbone()
        self.projection_head = MoCoProjectionHead(16, 16, 8)
        self.backbone_momentum = copy.deepcopy(self.backbone)
        self.projection_head_momentum = copy.deepcopy(self.projection_head)
        deactivate_requires_grad(self.backbone_momentum)
        deactivate_requires_grad(self.projection_head_momentum)
        self.criterion = NTXentLoss(memory_bank_size=(64, 8))

    def training_step(self, batch):
        x0, x1 = batch[0]
        update_momentum(self.backbone, self.backbone_momentum, m=0.9)
        update_momentum(self.projection_head, self.projection_head_momentum, m=0.9)
        query = self.projection_head(self.backbone(x0))
        with torch.no_grad():
            key = self.projection_head_momentum(self.backbone_momentum(x1))
        return self.criterion(query, key)

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


class DiRASimSiam(DiRAMixin, SimSiam):
    pass


class DiRAMoCo(DiRAMixin, MoCo):
    pass


def trainer(tmp_path, **settings) -> pl.Trainer:
    defaults = dict(
        max_epochs=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
        default_root_dir=tmp_path,
    )
    return pl.Trainer(**defaults | settings)


def loader(batch_size: int = 4, **settings) -> DataLoader:
    return DataLoader(Images(), batch_size=batch_size, **settings)


def state(module: nn.Module) -> dict[str, Tensor]:
    tensors = {name: value.clone() for name, value in module.named_parameters()}
    tensors |= {name: value.clone() for name, value in module.named_buffers()}
    return tensors


def assert_same(
    first: dict[str, Tensor], second: dict[str, Tensor], **settings
) -> None:
    assert list(first) == list(second)
    for name in first:
        torch.testing.assert_close(
            first[name], second[name], msg=name, **dict(rtol=0, atol=0) | settings
        )
