"""Views that a Lightning module makes of a batch on its device."""

from __future__ import annotations

from typing import Any

import kornia.augmentation as K
import pytest
import pytorch_lightning as pl
import torch
from lightning_modules import SimSiam
from torch import Tensor
from torch.utils.data import DataLoader

from lightly_dira.lightning import DiRAMixin
from lightly_dira.transforms import DiRABatchTransform


def augmentations() -> Any:
    return K.AugmentationSequential(
        K.RandomResizedCrop((16, 16)),
        K.RandomHorizontalFlip(),
        K.RandomGaussianBlur((3, 3), (0.1, 2.0)),
        data_keys=["input"],
    )


class InTheStep(SimSiam):
    """A step that makes views itself, as torchgeo's `SimCLRTask` does."""

    def __init__(self) -> None:
        super().__init__()
        self.augmentations = augmentations()

    def training_step(self, batch: dict[str, Tensor], batch_index: int) -> Any:
        x = batch["image"]
        with torch.no_grad():
            x0 = self.augmentations(x)
            x1 = self.augmentations(x)
        return super().training_step([[x0, x1]], batch_index)


class ItsViews(SimSiam):
    """The same with three lines changed, and the fourth below."""

    def __init__(self) -> None:
        super().__init__()
        self.augmentations = DiRABatchTransform(augmentations())  # the first

    def training_step(self, batch: dict[str, Tensor], batch_index: int) -> Any:
        x = batch["image"]
        views = self.augmentations(x)  # the second, in place of three
        loss = super().training_step([views], batch_index)
        return {"loss": loss, "views": views}  # the third


class InTheStepWithDiRA(DiRAMixin, ItsViews):  # the fourth
    pass


class AfterTransfer(DiRAMixin, SimSiam):
    def __init__(self) -> None:
        super().__init__()
        self.make_views = DiRABatchTransform(augmentations())

    def on_after_batch_transfer(self, batch: Any, dataloader_index: int) -> Any:
        return [self.make_views(batch["image"])]


def fit(model: pl.LightningModule) -> None:
    torch.manual_seed(0)
    images = [{"image": image} for image in torch.rand(24, 3, 32, 32)]
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, DataLoader(images, batch_size=8))


def test_bare_step() -> None:
    fit(InTheStep())


@pytest.mark.parametrize("make", [InTheStepWithDiRA, AfterTransfer])
def test_restores_views_of_the_device(make: Any) -> None:
    model = make()
    fit(model)
    assert model.dira.steps == 3
    assert model.dira.components.restorative > 0
    assert "augmentations" not in " ".join(model.state_dict())
