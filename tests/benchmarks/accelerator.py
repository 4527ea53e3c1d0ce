"""What DiRA costs on an accelerator: python tests/benchmarks/accelerator.py

One file that needs torch, torchvision, lightly and lightly_dira only. On an
accelerator: ResNet-50, 128 images of 224 pixels, at most ten minutes. Without one it
checks itself on the CPU, at the size of a toy. Parts, the most useful first; what does
not fit into `--minutes` is listed as left out:

    waits    set_sync_debug_mode("error") from the second step on, in every stage
    steps    images/s and peak memory of bare, lean, dir, dira and the published step
    compile  the same with a compiled backbone
    loader   images/s that workers deliver, with views made on the host or on the device
    nccl     two processes on two cards give the losses of one
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import gc
import json
import math
import os
import statistics
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from lightly_dira import DiRA, DiRATransform, DiRAViews, PatchDiscriminator
from lightly_dira.features import FeaturePyramid
from lightly_dira.models import light_head
from lightly_dira.transforms import DiRABatchTransform

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
STAGES = ("bare", "di", "lean", "dir", "dira", "published")
rows: list[dict[str, Any]] = []
left_out: list[str] = []


class MoCo(nn.Module):
    """MoCo, whose queue keeps its place on the host: Lightly's own reads it there."""

    def __init__(self, backbone: nn.Module, width: int, queue: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.projector = nn.Sequential(
            nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 128)
        )
        own = nn.ModuleList([self.backbone, self.projector])
        self.key = copy.deepcopy(own).requires_grad_(False)
        self.register_buffer("queue", F.normalize(torch.randn(queue, 128), dim=1))
        self.place = 0

    def loss(
        self, x0: Tensor, x1: Tensor, encode: Callable[[Tensor], Tensor]
    ) -> Tensor:
        fast = [*self.backbone.parameters(), *self.projector.parameters()]
        query = F.normalize(self.projector(encode(x0)).float(), dim=1)
        with torch.no_grad():
            for slow, new in zip(self.key.parameters(), fast, strict=True):
                slow.lerp_(new, 0.001)
            key = self.key[0](x1)
            # A U-Net's key branch decodes as well.
            key = self.key[1](key[0] if isinstance(key, tuple) else key.flatten(1))
            key = F.normalize(key.float(), dim=1)
        positive = (query * key).sum(dim=1, keepdim=True)
        logits = torch.cat([positive, query @ self.queue.clone().T], dim=1) / 0.2
        self.queue[self.place : self.place + len(key)] = key
        self.place = (self.place + len(key)) % len(self.queue)
        labels = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
        return F.cross_entropy(logits, labels)


class PlainUNet(nn.Module):
    """The published decoder: nearest upsampling, concatenation, two convolutions."""

    def __init__(self, encoder: nn.Sequential, maps: list[int]) -> None:
        super().__init__()
        self.encoder, self.blocks = encoder, nn.ModuleList()
        skips, width = [*maps[-2::-1], 0], maps[-1]
        for skip, out in zip(skips, (256, 128, 64, 32, 16), strict=True):
            layers: list[nn.Module] = []
            for inputs in (width + skip, out):
                convolution = nn.Conv2d(inputs, out, 3, padding=1, bias=False)
                layers += [convolution, nn.BatchNorm2d(out), nn.ReLU(inplace=True)]
            self.blocks.append(nn.Sequential(*layers))
            width = out
        self.last = nn.Conv2d(16, 1, 3, padding=1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        maps: list[Tensor] = []
        for number, layer in enumerate(self.encoder):
            x = layer(x)
            if number in (2, 4, 5, 6, 7):
                maps.append(x)
        y = maps.pop()
        for block in self.blocks:
            y = F.interpolate(y, scale_factor=2.0)
            y = block(torch.cat([y, maps.pop()], dim=1) if maps else y)
        return x.flatten(1), torch.sigmoid(self.last(y))


class Run:
    """One step of a stage, from a batch in page-locked memory of the host."""

    def __init__(
        self,
        stage: str,
        *,
        precision: torch.dtype | None = torch.bfloat16,
        compiled: bool = False,
        passing: str = "batch",
        seed: int = 0,
    ) -> None:
        torch.manual_seed(seed)
        net = getattr(torchvision.models, options.arch)()
        encoder = nn.Sequential(*list(net.children())[:-1])
        self.stage, self.precision, self.passing = stage, precision, passing
        size = options.batch, 3, options.size, options.size
        views = [torch.rand(size) for _ in range(2)]
        targets = {i: torch.rand(size)[:, :1].contiguous() for i in range(2)}
        batch = DiRAViews(views, targets, target_view=None)
        self.batch = batch.pin_memory() if CUDA else batch
        self.dira: DiRA | None = None
        last = dict(device=DEVICE, memory_format=torch.channels_last)
        width, maps = net.fc.in_features, FeaturePyramid(net).channels
        used = PlainUNet(encoder, maps) if stage == "published" else encoder
        self.model = MoCo(used, width, options.queue).to(**last)
        if stage == "published":
            self.critic = PatchDiscriminator().to(**last)
            self.adam = torch.optim.Adam(self.critic.parameters(), 2e-4, (0.5, 0.999))
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.SGD(trained, 0.03, 0.9, weight_decay=1e-4)
        if stage in ("di", "lean", "dir", "dira"):
            own: dict[str, Any] = {}
            if stage in ("lean", "dir"):
                own["adversarial_start"] = None
            if stage == "lean":
                watched = FeaturePyramid(self.model.backbone)
                head = light_head(watched)
                own |= {"features": watched, "head": head, "restored_share": 0.25}
            if stage == "di":
                own["restorative_start"] = math.inf
            self.dira = DiRA(self.model.backbone, self.optimizer, **own)
            self.dira.to(memory_format=torch.channels_last)
        backbone = self.model.backbone
        self.backbone = torch.compile(backbone) if compiled else backbone

    def __call__(self) -> Tensor:
        last = dict(device=DEVICE, memory_format=torch.channels_last)
        if self.passing == "batch":  # as Lightning and accelerate move it
            views: DiRAViews = self.batch.to(non_blocking=True, **last)
            x0, x1 = views
        else:  # as a plain loop does
            views = self.batch
            x0, x1 = (x.to(non_blocking=True, **last) for x in self.batch)
        half = torch.autocast(
            DEVICE.type, self.precision, enabled=self.precision is not None
        )
        if self.stage == "published":
            return self._published(x0, x1, half)
        with half:
            loss = self.model.loss(x0, x1, lambda x: self.backbone(x).flatten(1))
            if self.dira is not None:
                named = {"view": x0} if self.passing == "view=" else {}
                loss = self.dira(loss, views, **named)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()

    def _published(self, x0: Tensor, x1: Tensor, half: Any) -> Tensor:
        target = self.batch.target.to(DEVICE, non_blocking=True)
        restored: list[Tensor] = []

        def encode(x: Tensor) -> Tensor:
            features, image = self.model.backbone(x)
            restored.append(image.float())
            return features

        with half:
            loss = self.model.loss(x0, x1, encode)
            fooled = (self.critic(restored[0]).float() - 1).square().mean()
            loss = loss + 10 * F.mse_loss(restored[0], target) + 0.001 * fooled
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        with half:
            real = (self.critic(target).float() - 1).square().mean()
            fake = self.critic(restored[0].detach()).float().square().mean()
        self.adam.zero_grad()
        (0.5 * (real + fake)).backward()
        self.adam.step()
        return loss.detach()


# ------------------------------------------------------------------ measuring


def wait() -> None:
    if CUDA:
        torch.cuda.synchronize()


def say(part: str, name: str, **found: Any) -> None:
    rows.append({"part": part, "name": name, **found})
    shown = (
        f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in found.items()
    )
    print(f"{part:8} {name:46} {'  '.join(shown)}", flush=True)


def has_time(name: str, seconds: float) -> bool:
    left = 60 * options.minutes - (time.perf_counter() - started)
    if not CUDA or left > seconds:
        return True
    left_out.append(name)
    return False


@contextlib.contextmanager
def freed(part: str, name: str) -> Iterator[None]:
    """Frees memory afterwards; one failure must not cost the other rows."""
    try:
        yield
    except Exception as error:
        traceback.print_exc()
        say(part, name, failed=f"{type(error).__name__}: {str(error)[:200]}")
    finally:
        torch._dynamo.reset()
        gc.collect()
        if CUDA:
            torch.cuda.empty_cache()


def measured(step: Callable[[], object], warm: int = 4) -> dict[str, float]:
    """Images per second of steps in a row, host time of a step, and peak memory."""
    count = 20 if CUDA else 2
    for _ in range(warm if CUDA else 1):
        step()
    wait()
    if CUDA:
        torch.cuda.reset_peak_memory_stats()
    host = []
    begin = time.perf_counter()
    for _ in range(count):
        start = time.perf_counter()
        step()
        host.append(time.perf_counter() - start)
    wait()
    seconds = (time.perf_counter() - begin) / count
    found = {
        "images/s": options.batch / seconds,
        "host ms": 1e3 * statistics.median(host),
    }
    if CUDA:
        found["peak GiB"] = torch.cuda.max_memory_allocated() / 2**30
    return found


def table(part: str, name: str, needs: float, **settings: Any) -> None:
    """Measures the stages, and their ratios to the bare step."""
    bare: dict[str, float] = {}
    for stage in STAGES if not settings.get("compiled") else STAGES[:-1]:
        title = f"{name}: {stage}"
        if not has_time(f"{part}, {title}", needs):
            continue
        with freed(part, title):
            found = measured(Run(stage, **settings))
            if stage == "bare":
                bare = dict(found)
            elif bare:
                found["time x bare"] = bare["images/s"] / found["images/s"]
                if CUDA:
                    found["memory x bare"] = found["peak GiB"] / bare["peak GiB"]
            say(part, title, **found)


# ------------------------------------------------------------------ the parts


def steps() -> None:
    table("steps", "bf16", 10, precision=torch.bfloat16)
    table("steps", "TF32" if CUDA else "fp32", 12, precision=None)


def compiled() -> None:
    table("compile", "bf16, compiled backbone", 70, compiled=True)


def waits() -> None:
    """The line that waits for the device, if there is one."""
    for stage in ("di", "lean", "dir", "dira"):
        for passing in ("batch", "one by one", "view="):
            title = f"{stage}, views moved {passing}"
            if not has_time(f"waits, {title}", 5):
                continue
            with freed("waits", title):
                run = Run(stage, passing=passing)
                run()
                wait()
                if CUDA:
                    torch.cuda.set_sync_debug_mode("error")
                try:
                    for _ in range(3):
                        run()
                    say("waits", title, found="never" if CUDA else "not checked")
                finally:
                    if CUDA:
                        torch.cuda.set_sync_debug_mode("default")


class Noise(Dataset[Any]):
    """Grey images of 1024 pixels, as they come decoded from files."""

    def __init__(self, transform: Callable[[Any], Any], side: int) -> None:
        self.image = (255 * torch.rand(side, side)).byte().numpy()
        self.transform = transform

    def __len__(self) -> int:
        return 10**6

    def __getitem__(self, index: int) -> Any:
        return self.transform(self.image)


def loader() -> None:
    side, crop = (1024, options.size) if CUDA else (128, 32)
    shrink = v2.Compose([v2.ToImage(), v2.Resize(round(crop * 8 / 7), antialias=True)])
    make_views = DiRABatchTransform(
        [v2.RandomResizedCrop(crop), v2.RandomResizedCrop(crop)]
    ).to(DEVICE)
    on_host = DiRATransform(input_size=crop)
    for workers in (1, 4, 12) if CUDA else (1,):
        for name, transform in (("host", on_host), ("device", shrink)):
            title = f"views on the {name}, {workers} workers"
            if not has_time(f"loader, {title}", 15):
                continue
            with freed("loader", title):
                batches = iter(
                    DataLoader(
                        Noise(transform, side),
                        batch_size=options.batch,
                        num_workers=workers,
                        pin_memory=CUDA,
                    )
                )
                for _ in range(2 * workers + 1):  # what was loaded meanwhile
                    next(batches)
                count, begin = 0, time.perf_counter()
                while count < 2 or time.perf_counter() - begin < (5 if CUDA else 0):
                    batch = next(batches)
                    if name == "device":
                        make_views(batch.to(DEVICE, non_blocking=True))
                    count += 1
                wait()
                pace = count * options.batch / (time.perf_counter() - begin)
                say("loader", title, **{"images/s": pace})
                del batches


def nccl() -> None:
    if torch.cuda.device_count() < 2:
        say("nccl", "two cards", found=f"{torch.cuda.device_count()} here")
        return
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29531"}
    with freed("nccl", "two cards"):
        torch.multiprocessing.spawn(_on_a_card, (options,), nprocs=2)
        say("nccl", "two cards", found="equal weights after five steps of dira")


def _on_a_card(rank: int, given: argparse.Namespace) -> None:
    global options, DEVICE
    options, DEVICE = given, torch.device("cuda", rank)
    torch.cuda.set_device(rank)
    dist.init_process_group("nccl", rank=rank, world_size=2)
    run = Run("dira")
    assert run.dira is not None
    model = nn.parallel.DistributedDataParallel(run.model.backbone, device_ids=[rank])
    wrapper = nn.parallel.DistributedDataParallel(run.dira, device_ids=[rank])
    run.backbone, run.dira = model, wrapper
    for _ in range(5):
        run()
    weights = torch.cat([p.detach().flatten() for p in wrapper.parameters()])
    others = [torch.empty_like(weights) for _ in range(2)]
    dist.all_gather(others, weights)
    assert torch.equal(*others), "weights of the two processes differ"
    dist.destroy_process_group()


PARTS = {
    "waits": waits,
    "steps": steps,
    "compile": compiled,
    "loader": loader,
    "nccl": nccl,
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--only", nargs="+", default=[*PARTS], choices=[*PARTS])
    parser.add_argument("--arch", default="resnet50" if CUDA else "resnet18")
    parser.add_argument("--size", type=int, default=224 if CUDA else 32)
    parser.add_argument("--batch", type=int, default=128 if CUDA else 4)
    parser.add_argument("--queue", type=int, default=65536 if CUDA else 64)
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    options = parser.parse_args()
    started = time.perf_counter()
    name = torch.cuda.get_device_name() if CUDA else "no accelerator"
    if CUDA:
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True
    say("device", name, torch=torch.__version__, batch=options.batch, size=options.size)
    for part in options.only:
        PARTS[part]()
    if left_out:
        say("left out", "; ".join(left_out))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))
