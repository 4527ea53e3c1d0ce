"""Hosts that restore by themselves: DiRA adds the adversary, and nothing else."""

from __future__ import annotations

import copy
import io
import math

import pytest
import pytorch_lightning as pl
import torch
from lightly.models import utils
from lightly.models.modules import (
    MaskedCausalVisionTransformer,
    MaskedVisionTransformerDecoderTIMM,
    MaskedVisionTransformerTIMM,
)
from monai.networks.nets import UNet
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lightly_dira import Adversary, DiRA, DiRALoss, PatchDiscriminator
from lightly_dira.lightning import DiRAMixin
from lightly_dira.models import fill_masked_patches
from lightly_dira.training import Ramp, Schedule


class MAE(nn.Module):
    """That of Lightly's examples, small."""

    def __init__(self) -> None:
        super().__init__()
        vit = VisionTransformer(
            img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=2
        )
        self.backbone = MaskedVisionTransformerTIMM(vit=vit)
        self.length = self.backbone.sequence_length
        self.embed = nn.Linear(24, 16)
        self.decoder = MaskedVisionTransformerDecoderTIMM(
            num_patches=16, embed_dim=16, depth=1, num_heads=2, mlp_ratio=2.0
        )
        self.predict = nn.Linear(16, 8 * 8 * 3)

    def forward(self, images: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """Returns loss and whole images."""
        generator = torch.Generator().manual_seed(seed)
        order = torch.rand(len(images), self.length - 1, generator=generator).argsort()
        keep, mask = order[:, :4] + 1, order[:, 4:] + 1
        keep = torch.cat([torch.zeros(len(images), 1, dtype=torch.long), keep], dim=1)
        tokens = self.embed(self.backbone.encode(images=images, idx_keep=keep))
        whole = tokens.new_zeros(len(images), self.length, tokens.shape[-1])
        whole = utils.set_at_index(whole, keep, tokens)
        decoded = utils.get_at_index(self.decoder(whole, idx_mask=mask), mask)
        predictions = self.predict(decoded)
        target = utils.get_at_index(utils.patchify(images, 8), mask - 1)
        restored = fill_masked_patches(images, predictions, mask, 8)
        return F.mse_loss(predictions, target), restored


class AIM(nn.Module):
    """That of Lightly's examples, small: predicts all patches, without class token."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = MaskedCausalVisionTransformer(
            img_size=32,
            patch_size=8,
            embed_dim=24,
            depth=2,
            num_heads=2,
            class_token=False,
            no_embed_class=True,
            global_pool="avg",
        )
        self.predict = nn.Linear(24, 8 * 8 * 3)

    def forward(self, images: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        torch.manual_seed(seed)
        mask = utils.random_prefix_mask((len(images), 16), 15, images.device)
        predictions = self.predict(self.backbone.forward_features(images, mask=mask))
        target = utils.normalize_mean_var(utils.patchify(images, 8), dim=-1)
        every = torch.arange(16).expand(len(images), -1)
        restored = fill_masked_patches(
            images, predictions, every, 8, prefix_tokens=0, normalized=True
        )
        return F.mse_loss(predictions, target), restored


class UNetHost(nn.Module):
    """Models Genesis in small: MONAI's U-Net restores distorted cubes."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = UNet(3, 1, 1, channels=(4, 8), strides=(2,), norm="batch")

    def forward(self, cubes: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        noise = torch.rand(cubes.shape, generator=torch.Generator().manual_seed(seed))
        restored = self.backbone(cubes + noise.to(cubes.dtype)).sigmoid()
        return F.mse_loss(restored, cubes), restored


HOSTS = {
    "MAE": (MAE, (3, 32, 32)),
    "AIM": (AIM, (3, 32, 32)),
    "U-Net": (UNetHost, (1, 16, 16, 24)),
}


@pytest.fixture(params=HOSTS)
def host(request):
    """A host, and batches of clean images by their seed."""
    make, shape = HOSTS[request.param]
    torch.manual_seed(0)

    def images(seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(100 + seed)
        return torch.rand(4, *shape, generator=generator, dtype=torch.float64)

    return make().double(), images


def wrapped(model: nn.Module, optimizer=None, **options) -> Adversary:
    channels = 1 if isinstance(model, UNetHost) else 3
    return Adversary(model.backbone, optimizer, target_channels=channels, **options)


def sgd(parameters) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=1e-3)


def train(model, optimizer, dira, images, steps) -> list[float]:
    losses = []
    for step in steps:
        clean = images(step)
        loss, restored = model(clean, step)
        if dira is not None:
            loss = dira(loss, restored=restored, target=clean)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def assert_equal(ours: nn.Module, theirs: nn.Module, **tolerance) -> None:
    pairs = zip(ours.named_parameters(), theirs.parameters(), strict=True)
    for (name, one), other in pairs:
        torch.testing.assert_close(
            one, other, **(dict(rtol=0, atol=0) | tolerance), msg=name
        )


@pytest.mark.parametrize("start", [dict(adversarial_start=math.inf), {}])
def test_nothing_is_added_before_the_adversary(host, start) -> None:
    model, images = host
    bare = copy.deepcopy(model)
    optimizer, plain = sgd(model.parameters()), sgd(bare.parameters())
    if not start:
        start = dict(schedule=Schedule.stepwise(6, restorative=0.5, adversarial=1.0))
    dira = wrapped(model, optimizer, **start)
    held = {id(p) for g in optimizer.param_groups for p in g["params"]}
    assert held == {id(p) for p in model.parameters()}
    losses = train(model, optimizer, dira, images, range(3))
    assert losses == train(bare, plain, None, images, range(3))
    assert_equal(model, bare)
    loss, restored = model(images(3), 3)
    assert dira(loss, restored=restored, target=images(3)) is loss
    clean = images(3)
    assert dira.components.restorative == pytest.approx(
        F.mse_loss(restored, clean).item()
    )


def test_one_backward_equals_two_alternating_passes(host) -> None:
    ours, images = host
    theirs = copy.deepcopy(ours)
    optimizer, plain = sgd(ours.parameters()), sgd(theirs.parameters())
    weights = DiRALoss(
        discriminative_weight=2.0, restorative_weight=7.0, adversarial_weight=0.5
    )
    dira = wrapped(ours, optimizer, loss=weights, discriminator_lr=2e-3)
    critic = copy.deepcopy(dira.discriminator)
    adam = torch.optim.Adam(critic.parameters(), 2e-3, betas=(0.5, 0.999))
    train(ours, optimizer, dira, images, range(4))
    for step in range(4):
        clean = images(step)
        loss, restored = theirs(clean, step)
        plain.zero_grad()
        (2 * loss + 0.5 * (critic(restored) - 1).square().mean()).backward()
        plain.step()
        real, fake = critic(clean), critic(restored.detach())
        adam.zero_grad()
        (0.5 * ((real - 1).square().mean() + fake.square().mean())).backward()
        adam.step()
    assert_equal(ours, theirs, atol=1e-8)
    assert_equal(dira.discriminator, critic, atol=1e-8)
    assert dira.components.restorative > 0, "measured"


@pytest.mark.parametrize("scale", [1024.0, 2**-4])
def test_the_scale_of_the_loss_does_not_reach_the_critic(host, scale: float) -> None:
    model, images = host
    critics = []
    for factor in (1.0, scale):
        twin = copy.deepcopy(model)
        optimizer = sgd(twin.parameters())
        torch.manual_seed(1)
        dira = wrapped(twin, optimizer)
        for step in range(2):
            optimizer.zero_grad()
            for _ in range(2):  # accumulated over two backward passes
                loss, restored = twin(images(step), step)
                total = dira(loss, restored=restored, target=images(step))
                (factor / 2 * total).backward()
            for parameter in twin.parameters():
                if parameter.grad is not None:
                    parameter.grad /= factor
            optimizer.step()
        critics.append(dira.discriminator)
    assert_equal(*critics, atol=1e-12)


def test_resumes_bit_for_bit(host) -> None:
    model, images = host
    schedule = Schedule.stepwise(8, ramp=0.25)

    def start():
        twin = copy.deepcopy(model)
        optimizer = sgd(twin.parameters())
        torch.manual_seed(5)
        return twin, optimizer, wrapped(twin, optimizer, schedule=schedule)

    whole = start()
    losses = train(*whole, images, range(8))
    first = start()
    assert train(*first, images, range(5)) == losses[:5]
    file = io.BytesIO()
    torch.save([part.state_dict() for part in first], file)
    file.seek(0)
    second = start()
    for part, state in zip(second, torch.load(file), strict=True):
        part.load_state_dict(state)
    assert train(*second, images, range(5, 8)) == losses[5:]
    assert_equal(second[2].discriminator, whole[2].discriminator)


class TestErrors:
    def test_arguments(self, host) -> None:
        model, images = host
        dira = wrapped(model, sgd(model.parameters()))
        loss, restored = model(images(0), 0)
        with pytest.raises(TypeError, match=r"missing 1 required .* 'target'"):
            dira(loss, images(0))
        with pytest.raises(ValueError, match=r"of one shape .*fill_masked_patches"):
            dira(loss, restored=restored[:2], target=images(0))
        with pytest.raises(ValueError, match=r"of one shape .*fill_masked_patches"):
            dira(loss, restored=restored.flatten(2), target=images(0).flatten(2))
        with pytest.raises(TypeError, match="host must be the torch"):
            Adversary(model.parameters())

    def test_no_adversary(self) -> None:
        with pytest.raises(ValueError, match="there is nothing to wrap"):
            Adversary(MAE().backbone, adversarial_start=None)

    def test_channels(self) -> None:
        model = MAE()
        dira = Adversary(model.backbone, sgd(model.parameters()))
        loss, restored = model(torch.rand(2, 3, 32, 32), 0)
        with pytest.raises(ValueError, match=r"Adversary\(..., target_channels=3\)"):
            dira(loss, restored=restored, target=restored)

    def test_a_schedule_and_starts(self) -> None:
        with pytest.raises(ValueError, match="not both"):
            Adversary(MAE().backbone, schedule=Schedule.joint(), adversarial_start=3)


def test_dimensions_of_the_critic() -> None:
    for make, dims in ((MAE, 2), (UNetHost, 3)):
        critic = wrapped(make()).discriminator
        assert isinstance(critic, PatchDiscriminator)
        assert critic.spatial_dims == dims


class Module(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.host = MAE()

    def training_step(self, batch: Tensor, index: int):
        loss, restored = self.host(batch, index)
        return {"loss": loss, "restored": restored, "target": batch}

    def configure_optimizers(self):
        return sgd(self.parameters())

    def train_dataloader(self) -> DataLoader:
        return DataLoader(torch.rand(8, 3, 32, 32), batch_size=4)


class DiRAModule(DiRAMixin, Module):
    schedule_in_epochs = Schedule.stepwise(4, restorative=0.25, adversarial=0.5)

    def configure_dira(self) -> DiRA:
        return wrapped(self.host)


def test_lightning(tmp_path) -> None:
    module = DiRAModule()
    critic = copy.deepcopy(module.dira.discriminator)
    seen = []

    class Watch(pl.Callback):
        def on_train_batch_start(self, trainer, module, *arguments) -> None:
            seen.append(module.dira.stage)

    trainer = pl.Trainer(
        max_epochs=3,
        accelerator="cpu",
        callbacks=[Watch()],
        default_root_dir=tmp_path,
        enable_progress_bar=False,
        logger=False,
        enable_checkpointing=False,
    )
    trainer.fit(module)
    assert seen == ["di", "di", "dir", "dir", "dira", "dira"]
    pairs = zip(
        critic.parameters(), module.dira.discriminator.parameters(), strict=True
    )
    assert any(not torch.equal(one, other) for one, other in pairs)


def test_the_distance_is_of_one_form_throughout() -> None:
    """Found: the mean square before the adversary starts, and L1 after it."""
    host = nn.Conv2d(1, 1, 3, padding=1)
    optimizer = torch.optim.SGD(host.parameters(), lr=0.0)
    loss = DiRALoss(restoration="l1")
    adversary = Adversary(host, optimizer, loss=loss, adversarial_start=1)
    target, stages = torch.rand(2, 1, 32, 32), []
    for _ in range(2):
        restored = host(target)
        stages.append(adversary.stage)
        distance = F.l1_loss(restored, target)
        adversary(distance, restored, target).backward()
        torch.testing.assert_close(adversary.components.restorative, distance.detach())
        optimizer.step()
        optimizer.zero_grad()
    assert stages == ["dir", "dira"]


def test_schedules_of_its_own_factors() -> None:
    """Found: a restorative factor, which no host has, held the adversary up."""
    host = nn.Conv2d(1, 1, 3, padding=1)
    optimizer = torch.optim.SGD(host.parameters(), lr=0.1)
    schedule = Schedule(restorative=Ramp(6), adversarial=Ramp(2))
    adversary = Adversary(host, optimizer, schedule=schedule)
    stages = []
    for _ in range(4):
        images = torch.rand(2, 1, 32, 32)
        restored = host(images)
        stages.append(adversary.stage)
        adversary(F.mse_loss(restored, images), restored, images).backward()
        optimizer.step()
    assert stages == ["dir", "dir", "dira", "dira"]
