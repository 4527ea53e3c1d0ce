"""The published training step, plainly, from the method's description.

A U-Net of segmentation_models_pytorch with a momentum twin, both of which decode; two
optimisers; the generator's backward pass also computes the discriminator's gradients,
which are thrown away.
"""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager, nullcontext

import segmentation_models_pytorch as smp
import torch
from torch import Tensor, nn
from torch.nn import functional as F

FULL = nullcontext()  # no autocast


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = smp.Unet("resnet50", encoder_weights=None, activation="sigmoid")
        self.projector = nn.Sequential(
            nn.Linear(2048, 2048), nn.ReLU(), nn.Linear(2048, 128)
        )

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.net.encoder(images)
        restored = self.net.segmentation_head(self.net.decoder(features))
        query = self.projector(features[-1].mean(dim=(2, 3)))
        return F.normalize(query), restored


def discriminator() -> nn.Sequential:
    layers: list[nn.Module] = []
    widths, strides = (1, 64, 128, 256, 512), (2, 2, 2, 1)
    for number, stride in enumerate(strides):
        layers.append(nn.Conv2d(widths[number], widths[number + 1], 3, stride, 1))
        if number:
            layers.append(nn.InstanceNorm2d(widths[number + 1]))
        layers.append(nn.LeakyReLU(0.2, inplace=True))
    return nn.Sequential(*layers, nn.Conv2d(512, 1, 3, padding=1))


class PublishedStep:
    def __init__(self, queue: int = 65536) -> None:
        self.query, self.critic = UNet(), discriminator()
        self.key = copy.deepcopy(self.query).requires_grad_(False)
        self.optimizer = torch.optim.SGD(
            self.query.parameters(), lr=0.03, momentum=0.9, weight_decay=1e-4
        )
        self.critic_optimizer = torch.optim.Adam(
            self.critic.parameters(), lr=2e-4, betas=(0.5, 0.999)
        )
        self.queue = F.normalize(torch.randn(128, queue), dim=0)
        self.place = 0

    def __call__(
        self,
        views: list[Tensor],
        targets: list[Tensor],
        precision: AbstractContextManager = FULL,
    ) -> float:
        (x_query, x_key), target = views, targets[0]
        with precision:
            loss, restored = self.generator_loss(x_query, x_key, target)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

        with precision:
            real = (self.critic(target).float() - 1).square().mean()
            fake = self.critic(restored.detach()).float().square().mean()
            critic_loss = 0.5 * (real + fake)
        self.critic_optimizer.zero_grad()
        critic_loss.backward()
        self.critic_optimizer.step()
        return loss.item() + critic_loss.item()

    def generator_loss(
        self, x_query: Tensor, x_key: Tensor, target: Tensor
    ) -> tuple[Tensor, Tensor]:
        query, restored = self.query(x_query)
        with torch.no_grad():
            for slow, fast in zip(
                self.key.parameters(), self.query.parameters(), strict=True
            ):
                slow.mul_(0.999).add_(fast, alpha=0.001)
            key, _ = self.key(x_key)
        positive = (query * key).sum(dim=1, keepdim=True)
        negative = query @ self.queue.clone()
        logits = torch.cat([positive, negative], dim=1) / 0.2
        labels = torch.zeros(len(logits), dtype=torch.long)
        key = key.to(self.queue)
        self.queue[:, self.place : self.place + len(key)] = key.T
        self.place = (self.place + len(key)) % self.queue.shape[1]

        restored = restored.float()
        adversarial = (self.critic(restored).float() - 1).square().mean()
        loss = F.cross_entropy(logits, labels) + 10 * F.mse_loss(restored, target)
        return loss + 0.001 * adversarial, restored
