"""What the processes of test_processes.py do: processes.py FOLDER."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightly.loss import NTXentLoss, VICRegLoss
from lightning_modules import DiRASimSiam, Images
from methods import tiny_backbone, tiny_critic
from rebuilding import RebuildingDDP
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler

from lightly_dira import Adversary, DiRA, DiRAViews

STEPS = 6
STAGES = dict(restorative_start=2, adversarial_start=4)


class Loss(nn.Module):
    """A method whose forward pass gives its loss, for DistributedDataParallel."""

    def __init__(self, criterion: str) -> None:
        super().__init__()
        backbone = tiny_backbone(spatial_dims=len(SIDES.get(criterion, (1, 1))))
        self.backbone, self.project = backbone, nn.Linear(16, 8)
        self.criterion = CRITERIA[criterion]()

    def forward(self, x0: Tensor, x1: Tensor) -> Any:
        if self.criterion is None:  # a host that restores by itself
            restored = self.backbone[:3](x0).mean(dim=1, keepdim=True)
            restored = F.interpolate(restored, x0.shape[2:])
            loss = self.project(self.backbone(x1)).square().mean()
            return loss + restored.square().mean(), restored
        z0, z1 = self.project(self.backbone(x0)), self.project(self.backbone(x1))
        return self.criterion(z0, z1)


def pairwise(z0: Tensor, z1: Tensor) -> Tensor:
    """A loss of each image by itself."""
    return (z0 - z1).square().mean() - z0.square().mean()


CRITERIA = {
    "pairwise": lambda: pairwise,
    "of volumes": lambda: pairwise,
    "of a host": lambda: None,
    "contrastive": lambda: NTXentLoss(gather_distributed=True),
    "vicreg": lambda: VICRegLoss(gather_distributed=True),
}


# Sides of what the backbone sees, images of 16 x 16 pixels if they are not here.
SIDES = {"of volumes": (16, 24, 16)}


def frozen(*modules: nn.Module) -> None:
    """Puts BatchNorm, which sees one process alone, into evaluation mode for good."""
    for module in modules:
        for part in module.modules():
            if isinstance(part, nn.modules.batchnorm._BatchNorm):
                part.eval()
                part.train = lambda mode=True: None


def gradients(*modules: nn.Module) -> list[Tensor]:
    parameters = [p for module in modules for p in module.parameters()]
    return [
        torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in parameters
    ]


def run_all(rank: int, world: int, folder: Path, cases: list[tuple[str, str]]) -> None:
    """Trains in all these cases, and saves what each did."""
    if world > 1:
        torch.distributed.init_process_group(
            "gloo", f"file://{folder}/store", rank=rank, world_size=world
        )
    for criterion, wrapped in cases:
        path = folder / f"{criterion}-{wrapped}-{world}-{rank}.pt"
        torch.save(run(rank, world, criterion, wrapped), path)
    if world > 1:
        torch.distributed.destroy_process_group()


def run(rank: int, world: int, criterion: str, wrapped: str) -> dict[str, list]:
    """Trains plainly, on this process's part of every batch.

    The model is "replicated" by DistributedDataParallel, also "accumulated" over two
    micro-batches, and DiRA "alone" is not, or the model is "sharded" by `fully_shard`,
    or "flat", by FullyShardedDataParallel.
    """
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model: Any = Loss(criterion).double()
    critic = tiny_critic(len(SIDES.get(criterion, (1, 1))))
    dira: Any
    if criterion == "of a host":
        start = STAGES["adversarial_start"]
        dira = Adversary(model.backbone, discriminator=critic, adversarial_start=start)
    else:
        dira = DiRA(model.backbone, discriminator=critic, **STAGES)
    frozen(model, dira)
    call_model, call_dira = model, dira
    if world > 1:
        mesh = init_device_mesh("cpu", (world,))
        if wrapped == "sharded":
            fully_shard(model, mesh=mesh)
        elif wrapped == "flat":
            cpu = torch.device("cpu")
            call_model = FullyShardedDataParallel(
                model, device_id=cpu, device_mesh=mesh, use_orig_params=True
            )
        else:
            call_model = DistributedDataParallel(model)
        call_dira = dira if wrapped == "alone" else DistributedDataParallel(dira)
    optimizer = torch.optim.SGD(
        call_model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.1
    )
    dira.attach(optimizer)
    seen = []
    for _ in range(STEPS):
        sides = SIDES.get(criterion, (16, 16))
        x0, x1 = torch.rand(2, 4, 3, *sides, dtype=torch.float64)
        target = torch.rand(4, 1, *sides, dtype=torch.float64)
        x0, x1, target = (value[rank::world] for value in (x0, x1, target))
        optimizer.zero_grad()
        parts = 2 if wrapped == "accumulated" and world > 1 else 1
        for part in range(parts):
            views = [x[part::parts] for x in (x0, x1)]
            with contextlib.ExitStack() as waiting:
                if part < parts - 1:
                    waiting.enter_context(call_model.no_sync())
                    waiting.enter_context(call_dira.no_sync())
                batch = DiRAViews(views, target[part::parts])
                if criterion == "of a host":
                    loss, restored = call_model(*views)
                    images = dict(restored=restored, target=batch.target)
                    total = call_dira(loss, **images)
                else:
                    total = call_dira(call_model(*views), batch)
                (total / parts).backward()
        if wrapped in ("replicated", "accumulated"):
            seen.append(gradients(model, dira))
        optimizer.step()
    with contextlib.ExitStack() as stack:
        if wrapped == "flat" and world > 1:
            whole = FullyShardedDataParallel.summon_full_params(call_model)
            stack.enter_context(whole)
        weights = [
            getattr(p, "full_tensor", lambda p=p: p)().detach().clone()
            for module in (model, dira)
            for p in module.parameters()
        ]
    return {"gradients": seen, "weights": weights}


def fit(
    folder: Path, devices: int, accumulated: int = 1, rebuilds: bool = False
) -> None:
    """Trains by Lightning, in as many processes.

    A strategy that `rebuilds` its batches does as that of several GPUs does.
    """
    torch.manual_seed(0)

    class Staged(DiRASimSiam):
        def configure_dira(self) -> DiRA:
            return DiRA(self.backbone, discriminator=tiny_critic(), **STAGES)

        def on_train_batch_start(self, batch, index) -> None:
            frozen(self)

        def train_dataloader(self) -> DataLoader:
            data = Images(dtype=torch.float64)
            sampler = DistributedSampler(data, devices, trainer.global_rank, False)
            size = 8 // devices // accumulated
            return DataLoader(data, batch_size=size, sampler=sampler)

    model = Staged().double()
    model.dira.double()
    strategy: Any = "ddp" if devices > 1 else "auto"
    if rebuilds and devices > 1:
        strategy = RebuildingDDP(process_group_backend="gloo")
    trainer = pl.Trainer(
        max_epochs=2,
        accelerator="cpu",
        devices=devices,
        strategy=strategy,
        accumulate_grad_batches=accumulated,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model)
    weights = [p.detach().clone() for p in model.parameters()]
    assert model.dira.stage == "dira"
    torch.save(weights, folder / f"fit-{devices}-{trainer.global_rank}.pt")


if __name__ == "__main__":
    fit(Path(sys.argv[1]), *map(int, sys.argv[2:]))
