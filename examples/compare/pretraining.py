"""Pre-training of one encoder, which goes on where it was killed."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import albumentations as A
import torch
import torchvision
from discriminative import METHODS
from lightly.models import ResNetGenerator
from restorative import HOSTS
from settings import STAGES, Settings
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from lightly_dira import DiRA, DiRALoss, DiRATransform, PatchDiscriminator
from lightly_dira.evaluation.labelled import LabelledImages
from lightly_dira.transforms.grey_curves import NonLinearIntensity
from lightly_dira.transforms.mixtures import published_mixture, published_volume_mixture
from lightly_dira.transforms.published_pipeline import PublishedPipeline
from lightly_dira.transforms.volume_pipeline import VolumePipeline
from lightly_dira.weights.pretrained import save_pretrained

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def memory_format(settings: Settings) -> torch.memory_format:
    """Returns the faster one, by a fifth on CPUs."""
    return torch.channels_last_3d if settings.cube else torch.channels_last


def make_transforms(settings: Settings) -> dict[str, DiRATransform]:
    """Returns the transform of each stage."""
    views: VolumePipeline | PublishedPipeline
    distort: A.BasicTransform | A.BaseCompose
    if settings.cube:
        depth, height, width = settings.cube
        low, high = settings.zoom
        views = VolumePipeline(
            (depth, height, width),
            scale=(low, high),
            curve=settings.intensity,
            inverted=0.0,
        )
        distort = published_volume_mixture(settings.displacement)
    else:
        views = PublishedPipeline(
            settings.size,
            scale=(settings.smallest_crop, 1.0),
            jitter=tuple(settings.jitter * most for most in PublishedPipeline.jitter),
        )
        distort = published_mixture()
        if settings.intensity:
            curve = NonLinearIntensity(inverted=0.0, p=settings.intensity)
            distort = A.Sequential([curve, distort], p=1)
    dims = 3 if settings.cube else 2
    return {
        stage: DiRATransform(views, distortion=distortion, spatial_dims=dims)
        # Even `NoOp` draws a seed, so that all stages see the same crops.
        for stage, distortion in zip(STAGES, (A.NoOp(), distort, distort), strict=True)
    }


def make_encoder(settings: Settings, seed: int) -> nn.Module:
    """Returns an encoder with its global pooling; its weights depend on the seed."""
    torch.manual_seed(seed)
    if settings.cube:
        from monai.networks import nets  # images do without MONAI

        encoder = getattr(nets, settings.encoder)(
            n_input_channels=1,
            feed_forward=False,
            conv1_t_stride=1,
            widen_factor=settings.width,
        )
        return encoder.to(DEVICE)
    if settings.encoder == "vit":
        vit = VisionTransformer(
            img_size=settings.size,
            patch_size=8,
            embed_dim=192,
            depth=6,
            num_heads=3,
            num_classes=0,
        )
        return vit.to(DEVICE)
    if "-" in settings.encoder:
        resnet = ResNetGenerator(settings.encoder, width=settings.width)
        convolve, normalise, *layers, _ = resnet.children()
        pool = nn.AdaptiveAvgPool2d(1)
        return nn.Sequential(convolve, normalise, nn.ReLU(), *layers, pool).to(DEVICE)
    resnet = getattr(torchvision.models, settings.encoder)()
    return nn.Sequential(*list(resnet.children())[:-1]).to(DEVICE)


def pretrain(
    settings: Settings,
    method: str,
    stage: str,
    seed: int,
    images: LabelledImages,
    run: Path,
    progress: tqdm,
) -> None:
    """Pre-trains an encoder, and resumes after the last epoch that was saved."""
    if (run / "config.json").exists():
        progress.update(settings.epochs)
        return
    layout = memory_format(settings)
    backbone = make_encoder(settings, seed)
    with torch.no_grad():
        sides = settings.cube or (settings.size, settings.size)
        blank = torch.zeros(1, 1 if settings.cube else 3, *sides, device=DEVICE)
        width = backbone.eval()(blank).shape[1]
    host = method in HOSTS
    model = (METHODS | HOSTS)[method](
        backbone.train(), width, **settings.options.get(method, {})
    ).to(DEVICE, memory_format=layout)
    optimizer = make_optimizer(settings, stage, model)
    loader = DataLoader(
        images,
        settings.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=settings.workers,
    )
    steps = settings.epochs * len(loader)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min(
            1.0,
            (step + 1) / (0.1 * steps),
            0.5 + 0.5 * math.cos(math.pi * step / steps),
        ),
    )
    critic = PatchDiscriminator(
        3 if host else 1,
        channels=[int(settings.critic * width) for width in (64, 128, 256, 512)],
        spatial_dims=len(sides),
    )
    dira = DiRA(
        model.backbone,
        optimizer,
        discriminator=critic.to(DEVICE),
        loss=DiRALoss(
            restorative_weight=settings.restorative_weight,
            adversarial_weight=settings.adversarial_weight,
            balanced=settings.balanced,
        ),
        criterion=model.criterion,
        restorative_start=math.inf if stage == "di" else 0,
        adversarial_start=settings.adversary_from * steps
        if stage == "dira"
        else math.inf,
        restores=not host,
        target_channels=critic.in_channels,
        last_layer=model.last_layer if host else None,
    )
    parts = {"model": model, "dira": dira, "optimizer": optimizer, "lr": schedule}
    mixed = settings.precision == "bf16-mixed"
    first = 0
    path = run.with_suffix(".pt")
    if path.exists():
        kept = torch.load(path, weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(kept[name])
        first = kept["epoch"]
        progress.update(first)
    for epoch in range(first, settings.epochs):
        # Every epoch has its own seed: if it is killed, it is repeated unchanged.
        torch.manual_seed(1000 * seed + epoch)
        for batch in loader:
            x0, x1 = (view.to(DEVICE, memory_format=layout) for view in batch[0])
            with torch.autocast(DEVICE.type, torch.bfloat16, enabled=mixed):
                if host:
                    loss, restored = model(x0, x1, bare=stage == "di")
                    loss = dira(loss, restored=restored, target=x0)
                else:
                    loss = dira(model(x0, x1), batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        state = {name: part.state_dict() for name, part in parts.items()}
        save(state | {"epoch": epoch + 1}, path)
        progress.update()
    save_pretrained(run, model.backbone, None if host else dira.head)
    path.unlink()


def make_optimizer(
    settings: Settings, stage: str, model: nn.Module
) -> torch.optim.Optimizer:
    parameters = [p for p in model.parameters() if p.requires_grad]
    lr = settings.lr * (settings.bare_lr if stage == "di" else 1)
    common = dict(lr=lr, weight_decay=settings.weight_decay)
    if settings.optimizer == "SGD":
        return torch.optim.SGD(parameters, momentum=0.9, **common)
    return getattr(torch.optim, settings.optimizer)(parameters, **common)


def save(state: dict[str, Any], path: Path) -> None:
    """Writes a file whole or not at all."""
    beside = path.with_suffix(".part")
    torch.save(state, beside)
    os.replace(beside, path)
