"""What holds for images holds for volumes: gradients, resuming, Lightning."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from lightning_modules import assert_same, state, trainer
from methods import MoCo, SimSiam
from monai.networks import nets
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from lightly_dira import DiRA, DiRALoss, DiRATransform, DiRAViews
from lightly_dira.lightning import CollapseWatch, DiRAMixin, RestorationLogger

pytestmark = pytest.mark.slow

SIZE = 12, 16, 20


class Encoder(nn.Module):
    """Three maps; the strides differ by axis."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        widths, strides = (1, width, 2 * width, 4 * width), ((1, 2, 2), 2, 2)
        self.stages = nn.ModuleList(
            nn.Sequential(
                nn.Conv3d(before, after, 3, stride, 1), nn.BatchNorm3d(after), nn.ReLU()
            )
            for before, after, stride in zip(widths, widths[1:], strides, strict=False)
        )

    def maps(self, x: Tensor) -> list[Tensor]:
        found = []
        for stage in self.stages:
            x = stage(x)
            found.append(x)
        return found

    def forward(self, x: Tensor) -> Tensor:
        return self.maps(x)[-1].mean(dim=(2, 3, 4))


def batch_of(seed: int, dtype: torch.dtype = torch.float64) -> DiRAViews:
    generator = torch.Generator().manual_seed(seed)
    views = torch.rand(2, 4, 1, *SIZE, generator=generator, dtype=dtype)
    return DiRAViews(
        [*views], torch.rand(4, 1, *SIZE, generator=generator, dtype=dtype)
    )


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=1e-4)


def test_one_backward_equals_two_alternating_passes() -> None:
    torch.manual_seed(0)
    ours = SimSiam(Encoder(), 16).double()
    theirs = copy.deepcopy(ours)
    optimizer = sgd(ours.parameters())
    loss = DiRALoss(adversarial_weight=0.5)
    dira = DiRA(ours.backbone, optimizer, loss=loss, discriminator_lr=2e-3)
    head, critic = copy.deepcopy(dira.head), copy.deepcopy(dira.discriminator)
    generator_step = sgd([*theirs.parameters(), *head.parameters()])
    critic_step = torch.optim.Adam(critic.parameters(), 2e-3, betas=(0.5, 0.999))
    for seed in range(4):
        views = batch_of(seed)
        x0, x1 = views
        total = dira(ours.loss(x0, x1), views)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()

        restored = head(theirs.backbone.maps(x0), SIZE)
        theirs_total = (
            theirs.loss(x0, x1)
            + 10 * F.mse_loss(restored, views.target)
            + 0.5 * (critic(restored) - 1).square().mean()
        )
        # The pass for the maps moves running statistics, which training does not use.
        generator_step.zero_grad()
        theirs_total.backward()
        generator_step.step()
        critic_loss = 0.5 * (
            (critic(views.target) - 1).square().mean()
            + critic(restored.detach()).square().mean()
        )
        critic_step.zero_grad()
        critic_loss.backward()
        critic_step.step()
    for mine, reference in (
        (ours, theirs),
        (dira.head, head),
        (dira.discriminator, critic),
    ):
        pairs = zip(mine.named_parameters(), reference.parameters(), strict=True)
        for (name, one), other in pairs:
            torch.testing.assert_close(one, other, rtol=0, atol=1e-8, msg=name)


def run(steps, model, optimizer, dira) -> None:
    for seed in steps:
        views = batch_of(seed, torch.float32)
        total = dira(model.loss(*views), views)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()


def made():
    torch.manual_seed(0)
    resnet = nets.resnet10(n_input_channels=1, feed_forward=False, widen_factor=1 / 16)
    model = MoCo(resnet, 32)
    optimizer = sgd([p for p in model.parameters() if p.requires_grad])
    dira = DiRA(
        model.backbone, optimizer, criterion=model.criterion, adversarial_start=2
    )
    return model, optimizer, dira


def test_resumes_bit_for_bit() -> None:
    parts = made()
    run(range(3), *parts)
    saved = copy.deepcopy([part.state_dict() for part in parts])
    run(range(3, 5), *parts)
    again = made()
    for part, kept in zip(again, saved, strict=True):
        part.load_state_dict(kept)
    run(range(3, 5), *again)
    for one, other in ((parts[0], again[0]), (parts[2], again[2])):
        assert_same(state(one), state(other))


@pytest.mark.parametrize("way", ["autocast", "compiled", "channels last", "checkpoint"])
def test_other_ways_to_run(way: str) -> None:
    """Give the same terms, up to their precision."""
    model, optimizer, dira = made()
    views = batch_of(0, torch.float32)
    reference = dira(model.loss(*views), views)
    model, optimizer, dira = made()
    call = model.backbone
    if way == "compiled":
        model.backbone = torch.compile(call, backend="eager")
    if way == "channels last":
        model.to(memory_format=torch.channels_last_3d)
        dira.head.to(memory_format=torch.channels_last_3d)
    if way == "checkpoint":
        dira.head.checkpoint = True
    with torch.autocast("cpu", torch.bfloat16, enabled=way == "autocast"):
        total = dira(model.loss(*views), views)
    total.backward()
    optimizer.step()
    tolerance = 0.05 if way == "autocast" else 1e-5
    torch.testing.assert_close(total, reference, rtol=tolerance, atol=tolerance)
    assert dira.steps == 1


class Cubes(Dataset):
    def __init__(self) -> None:
        base = DiRATransform(spatial_dims=3, input_size=SIZE)
        random = np.random.default_rng(0)
        volumes = random.random((12, 16, 20, 24), dtype=np.float32)
        self.items = [(base(volume), 0) for volume in volumes]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int):
        return self.items[index]


class Volumes(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = Encoder()
        self.method = SimSiam(self.backbone, 16)

    def training_step(self, batch, batch_index):
        return self.method.loss(*batch[0])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


class DiRAVolumes(DiRAMixin, Volumes):
    pass


@pytest.mark.filterwarnings("ignore::UserWarning:pytorch_lightning")
def test_lightning_with_pictures(tmp_path) -> None:
    torch.manual_seed(0)
    model = DiRAVolumes()
    callbacks = [RestorationLogger(n=2), CollapseWatch()]
    fit = trainer(tmp_path, callbacks=callbacks, max_epochs=1, logger=False)
    fit.fit(model, DataLoader(Cubes(), 4))
    assert model.dira.steps == 3
    assert model.dira.head.spatial_dims == 3
    (picture,) = tmp_path.glob("restorations/*.png")
    from PIL import Image

    # Four columns of three slices, two rows, and lines of two pixels around.
    width, height = Image.open(picture).size
    assert (width, height) == (4 * (2 * 20 + 16 + 2) + 2, 2 * (16 + 2) + 2)
