"""Runs of Lightning that resume from each of their checkpoints, to the bit."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import torch
from lightning_modules import DiRASimSiam, Images, assert_same, state, trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, Dataset

from lightly_dira import DiRAViews


class Dimmed(Dataset):
    """Views times a number that a function draws."""

    def __init__(self, draw=lambda: 1.0) -> None:
        self.images, self.draw = Images(), draw

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int):
        views, *rest = self.images[index]
        factor = 0.5 + 0.5 * float(self.draw())
        return DiRAViews([factor * view for view in views], views.target), *rest


def loaded(data=None, **options) -> DataLoader:
    return DataLoader(data or Dimmed(), batch_size=4, **options)


def fit(folder: Path, make, *, path: Path | None = None, kind=DiRASimSiam, **flags):
    """Trains three epochs of six steps, with a checkpoint after every fourth."""
    seed = 0 if path is None else 1
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)
    model = kind()
    saving = ModelCheckpoint(folder, "{step}", every_n_train_steps=4, save_top_k=-1)
    run = trainer(
        folder,
        max_epochs=3,
        callbacks=[saving],
        enable_checkpointing=True,
        **flags,
    )
    data = make()
    run.fit(model, *(data if isinstance(data, tuple) else (data,)), ckpt_path=path)
    return state(model)


def assert_resumes(folder: Path, make, steps=(4, 8, 12, 16), **flags) -> None:
    whole = fit(folder, make, **flags)
    for step in steps:
        path = folder / f"step={step}.ckpt"
        resumed = fit(folder / str(step), make, path=path, **flags)
        assert_same(resumed, whole)
