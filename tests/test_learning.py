"""The pieces together, on real images: does it learn?"""

from __future__ import annotations

import pytest
import torch
import torchvision
from lightly.transforms import SimSiamTransform
from methods import SimSiam
from torch import nn
from torch.utils.data import DataLoader, default_collate
from torchvision.transforms import v2

from lightly_dira import DiRA, DiRALoss, DiRATransform
from lightly_dira.evaluation.data import MNI152Slices
from lightly_dira.transforms.paintings import InPainting

pytestmark = pytest.mark.slow

SIZE = 32


def test_restores_held_out_slices_in_60_steps() -> None:
    torch.manual_seed(0)
    base = SimSiamTransform(input_size=SIZE, min_scale=0.5, normalize=None)
    train = MNI152Slices("train", DiRATransform(base, distortion=InPainting()))
    tensor = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
    plain = v2.Compose([v2.Resize((SIZE, SIZE)), *tensor])
    test = MNI152Slices("test", DiRATransform(plain, distortion=InPainting()))

    resnet = torchvision.models.resnet18()
    model = SimSiam(nn.Sequential(*list(resnet.children())[:-1]), 512)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 60)
    dira = DiRA(model.backbone, optimizer, loss=DiRALoss(adversarial_weight=0.01))
    critic = []
    while dira.steps < 60:
        for batch in DataLoader(train, 16, shuffle=True, drop_last=True):
            loss = dira(model.loss(*batch[0]), batch)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step()
            critic.append(dira.components.discriminator.item())
            if dira.steps == 60:
                break

    views = default_collate([test[index][0] for index in range(0, len(test), 3)])
    distorted, clean = views[0], views.target
    mean = default_collate([train[i][0] for i in range(0, len(train), 3)]).target.mean(
        0
    )

    def error(images: torch.Tensor) -> float:
        return (images - clean).square().mean().item()

    restored = error(dira.restore(distorted))
    assert restored < error(distorted[:, :1])
    assert restored < error(mean)
    start, end = critic[0], sum(critic[-10:]) / 10
    assert end < 0.9 * start, "the discriminator learns"
    assert 0.01 < end < 1, "nor does it win outright or diverge"
