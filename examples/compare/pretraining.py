"""Pre-training of the encoders of one seed, which goes on where it was killed."""

from __future__ import annotations

import itertools
import math
import os
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from discriminative import METHODS
from encoders import DEVICE, make_started_encoder
from recipe import recipe
from restorative import HOSTS
from settings import BARE, Run, Settings, views_of
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from lightly_dira import Adversary, DiRA, DiRALoss, DiRAViews, PatchDiscriminator
from lightly_dira.evaluation.labelled import LabelledImages
from lightly_dira.features import FeaturePyramid
from lightly_dira.models import light_head
from lightly_dira.training import Ramp, Schedule
from lightly_dira.views import find_views
from lightly_dira.weights.pretrained import save_pretrained

# Widths of the published critic.
CRITIC = (64, 128, 256, 512)


def pretrain(
    settings: Settings,
    runs: list[Run],
    images: LabelledImages,
    folder: Path,
    progress: tqdm,
) -> None:
    """Pre-trains encoders of one seed on the same views, which are made only once.

    Every step of a run has a seed of its own, so that an encoder does not depend on
    which others are trained beside it. A run that was killed resumes after its last
    epoch that was saved.
    """
    loader = DataLoader(
        images,
        settings.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=settings.workers,
    )
    trainings = []
    for run in runs:
        if (path_of(folder, run) / "config.json").exists():
            progress.update(settings.epochs)
            continue
        options = options_of(run, images)
        trainings.append(Training(settings, run, len(loader), folder, **options))
        progress.update(trainings[-1].epoch)
    layout = memory_format(settings)
    # A process that is killed while it saves leaves runs one epoch apart.
    trainings.sort(key=attrgetter("epoch"))
    for first, group in itertools.groupby(trainings, key=attrgetter("epoch")):
        together = list(group)
        for epoch in range(first, settings.epochs):
            # Every epoch has its own seed: if it is killed, it is repeated unchanged.
            torch.manual_seed(1000 * together[0].seed + epoch)
            for made, labels, _ in loader:
                views = [
                    each.to(DEVICE, memory_format=layout) for each in find_views(made)
                ]
                labels = labels.to(DEVICE)
                for training in together:
                    training.step(views, labels)
            for training in together:
                training.save(epoch + 1)
                progress.update()
    for training in trainings:
        training.finish()


def options_of(run: Run, images: LabelledImages | None) -> dict[str, int]:
    """Returns what a method must know of the images that it learns from."""
    if views_of(run) != "words":
        return {}
    assert images is not None
    assert images.labels is not None
    return {"words": int(images.labels.max()) + 1}


def path_of(folder: Path, run: Run) -> Path:
    """Returns where the encoder of a run is kept."""
    method, stage, seed = run
    return folder / f"{method}-{stage}-{seed}"


class Training:
    """A method around its encoder, in a stage of DiRA."""

    def __init__(
        self,
        settings: Settings,
        run: Run,
        steps_of_epoch: int,
        folder: Path,
        **options: Any,
    ) -> None:
        method, self.stage, self.seed = run
        self.path = path_of(folder, run)
        self.host = method in HOSTS
        self.mixed = settings.precision == "bf16-mixed"
        backbone = make_started_encoder(settings, self.seed)
        dims = len(settings.cube) or 2
        sides = settings.cube or (settings.size, settings.size)
        with torch.no_grad():
            blank = torch.zeros(1, 1 if dims == 3 else 3, *sides, device=DEVICE)
            width = backbone.eval()(blank).flatten(1).shape[1]
        model = (METHODS | HOSTS)[method](
            backbone.train(), width, **settings.options.get(method, {}), **options
        )
        self.model = model.to(DEVICE, memory_format=memory_format(settings))
        steps = settings.epochs * steps_of_epoch
        self.optimizer = make_optimizer(settings, self.stage, self.model)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer,
            lambda step: min(
                1.0,
                (step + 1) / (0.1 * steps),
                0.5 + 0.5 * math.cos(math.pi * step / steps),
            ),
        )
        self.dira = self.wrap(settings, steps)
        self.parts = {
            "model": self.model,
            "dira": self.dira,
            "optimizer": self.optimizer,
            "lr": self.schedule,
        }
        self.epoch = 0
        if self.kept.exists():
            kept = torch.load(self.kept, weights_only=True, map_location=DEVICE)
            for name, part in self.parts.items():
                part.load_state_dict(kept[name])
            self.epoch = kept["epoch"]

    def wrap(self, settings: Settings, steps: int) -> DiRA | Adversary:
        """Wraps the model as its stage asks."""
        if self.stage in ("recipe", "published"):
            make = recipe if self.stage == "recipe" else DiRA
            own = {"criterion": self.model.criterion}
            return make(self.model.backbone, self.optimizer, **own)
        dims = len(settings.cube) or 2
        channels = self.model.channels if self.host else 1
        seen = (1 if dims == 3 else 3) if settings.conditional else 0
        options: dict[str, Any] = {
            "discriminator": PatchDiscriminator(
                channels + seen,
                channels=[int(settings.critic * width) for width in CRITIC],
                spatial_dims=dims,
            ).to(DEVICE)
        }
        # A host names its last layer itself.
        kind, network = (
            (Adversary, self.model) if self.host else (DiRA, self.model.backbone)
        )
        if self.stage == "lean":
            features = FeaturePyramid(network)
            options = {
                "features": features,
                "restored_share": settings.restored_share,
                "adversarial_start": None,
            }
            if cost := settings.head_cost:
                options["head"] = light_head(features, cost=cost).to(DEVICE)
        never, restore = math.inf, settings.restorative_from * steps
        oppose = settings.adversary_from * steps
        return kind(
            network,
            self.optimizer,
            loss=DiRALoss(
                restorative_weight=settings.restorative_weight,
                adversarial_weight=settings.adversarial_weight,
                adversary=settings.adversary,
                balanced=settings.balanced,
            ),
            criterion=self.model.criterion,
            schedule=Schedule(
                restorative=Ramp(never if self.stage in BARE else restore),
                adversarial=Ramp(oppose if self.stage == "dira" else never),
            ),
            target_channels=channels,
            conditional=settings.conditional,
            **options,
        )

    @property
    def kept(self) -> Path:
        """Where the state of an unfinished run lies."""
        return self.path.with_suffix(".pt")

    def step(self, views: list[DiRAViews], labels: Tensor) -> None:
        # Whatever the method draws must not change the views to come.
        with torch.random.fork_rng(range(torch.cuda.device_count())):
            torch.manual_seed(1_000_000 * self.seed + self.dira.steps)
            with torch.autocast(DEVICE.type, torch.bfloat16, enabled=self.mixed):
                loss = self.loss_of(views, labels)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.schedule.step()

    def loss_of(self, views: list[DiRAViews], labels: Tensor) -> Tensor:
        """Returns the loss of views, or of plain and of distorted ones (`apart`)."""
        if not self.host:
            loss = self.model(*views[0])
            if self.stage == "apart":
                self.model.backbone(views[1][0])
            return self.dira(loss, views[-1])
        bare = self.stage == "di"
        loss, images, target, view = self.model(views[0], labels, bare=bare)
        return self.dira(loss, restored=images, target=target, view=view)

    def save(self, epoch: int) -> None:
        state: dict[str, Any] = {n: part.state_dict() for n, part in self.parts.items()}
        beside = self.kept.with_suffix(".part")
        torch.save(state | {"epoch": epoch}, beside)
        os.replace(beside, self.kept)

    def finish(self) -> None:
        head = None if self.host else self.dira.head
        save_pretrained(self.path, self.model.backbone, head)
        self.kept.unlink()


def memory_format(settings: Settings) -> torch.memory_format:
    """Returns the faster one, by a fifth on CPUs."""
    return torch.channels_last_3d if settings.cube else torch.channels_last


def make_optimizer(
    settings: Settings, stage: str, model: nn.Module
) -> torch.optim.Optimizer:
    parameters = [p for p in model.parameters() if p.requires_grad]
    lr = settings.lr * (settings.bare_lr if stage in BARE else 1)
    common = dict(lr=lr, weight_decay=settings.weight_decay)
    if settings.optimizer == "SGD":
        return torch.optim.SGD(parameters, momentum=0.9, **common)
    return getattr(torch.optim, settings.optimizer)(parameters, **common)
