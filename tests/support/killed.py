"""Runs that kill themselves, for lightning/test_mid_epoch.py: killed.py FOLDER ..."""

from __future__ import annotations

import argparse
import itertools
import os
import signal
from pathlib import Path

import pytorch_lightning as pl
import torch
from lightning_modules import DiRAMoCo, DiRASimSiam, Images, state
from methods import MoCo, SimSiam, tiny_backbone, tiny_critic
from pytorch_lightning.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, Dataset

from lightly_dira import DiRA, DiRAViews

EPOCHS, STEPS = 3, 18
STAGES = dict(restorative_start=3, adversarial_start=7)


class Noisy(Dataset):
    """Views that are others every time, as a transform's are."""

    def __init__(self, count: int) -> None:
        self.images = Images(count)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int):
        views, *rest = self.images[index]
        noise = torch.rand(()).item()
        return DiRAViews([noise * view for view in views], views.target), *rest


def kill_at(step: int, now: int) -> None:
    if step == now:
        os.kill(os.getpid(), signal.SIGKILL)


class Kill(pl.Callback):
    def __init__(self, step: int | None) -> None:
        self.step = step

    def on_before_optimizer_step(self, trainer, module, optimizer) -> None:
        kill_at(self.step, trainer.global_step)


def checkpoints(folder: Path) -> list[Path]:
    return sorted(
        folder.glob("step=*.ckpt"), key=lambda path: int(path.stem.split("=")[1])
    )


def fit(
    folder: Path,
    method: str,
    *,
    kill: int | None = None,
    resume: bool = False,
    every: int = 2,
    workers: int = 0,
    validation: float = 0,
    devices: int = 1,
    **flags: object,
) -> dict[str, torch.Tensor]:
    """Trains by Lightning, from the latest checkpoint in the folder, if `resume`."""

    class Method({"moco": DiRAMoCo, "simsiam": DiRASimSiam}[method]):
        def configure_dira(self) -> DiRA:
            return DiRA(self.backbone, discriminator=tiny_critic(), **STAGES)

        def validation_step(self, batch, index) -> None:
            torch.rand(1)

    torch.manual_seed(1 if resume else 0)
    model = Method()
    trainer = pl.Trainer(
        **dict(max_epochs=EPOCHS) | flags,
        accelerator="cpu",
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        callbacks=[
            ModelCheckpoint(folder, "{step}", every_n_train_steps=every, save_top_k=-1),
            Kill(kill),
        ],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        val_check_interval=validation or 1.0,
    )
    loader = DataLoader(
        Noisy(24 * devices), batch_size=4, shuffle=True, num_workers=workers
    )
    held_out = DataLoader(Images(8), batch_size=4) if validation else None
    path = checkpoints(folder)[-1] if resume else None
    trainer.fit(model, loader, held_out, ckpt_path=path)
    trainer.save_checkpoint(folder / "last.ckpt")
    if devices > 1:
        torch.save(state(model), folder / f"end-{trainer.global_rank}.pt")
    return state(model)


def loop(
    folder: Path,
    method: str,
    *,
    kill: int | None = None,
    resume: bool = False,
    every: int = 2,
) -> dict[str, torch.Tensor]:
    """The same by hand, with `dira.state_dict()`."""
    torch.manual_seed(1 if resume else 0)
    model = {"moco": MoCo, "simsiam": SimSiam}[method](tiny_backbone(), 16)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    dira = DiRA(
        model.backbone,
        optimizer,
        discriminator=tiny_critic(),
        criterion=model.criterion,
        **STAGES,
    )
    parts = dict(model=model, optimizer=optimizer, scheduler=scheduler, dira=dira)
    shuffled = torch.Generator()
    loader = DataLoader(Noisy(24), batch_size=4, shuffle=True, generator=shuffled)
    step = 0
    saved = None
    if resume:
        saved = torch.load(checkpoints(folder)[-1])
        step = saved["step"]
        for name, part in parts.items():
            part.load_state_dict(saved[name])
    for epoch in range(step // len(loader), EPOCHS):
        shuffled.manual_seed(epoch)
        batches = iter(loader)
        if saved is not None:
            list(itertools.islice(batches, step % len(loader)))
            torch.set_rng_state(saved.pop("random"))
            saved = None
        for batch in batches:
            loss = dira(model.loss(*batch[0]), batch)
            optimizer.zero_grad()
            loss.backward()
            kill_at(kill, step)
            optimizer.step()
            scheduler.step()
            step += 1
            if step % every == 0:
                states = {name: part.state_dict() for name, part in parts.items()}
                states |= {"step": step, "random": torch.get_rng_state()}
                torch.save(states, folder / f"step={step}.ckpt")
    assert dira.steps == STEPS
    return state(torch.nn.ModuleList([model, dira]))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("run", choices=["fit", "loop"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("method")
    parser.add_argument("--kill", type=int, default=argparse.SUPPRESS)
    parser.add_argument("--devices", type=int, default=argparse.SUPPRESS)
    parser.add_argument("--resume", action="store_true", default=argparse.SUPPRESS)
    options = vars(parser.parse_args())
    globals()[options.pop("run")](**options)
