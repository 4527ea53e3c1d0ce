"""Half precision, memory formats and compilation, beside plain float32."""

from __future__ import annotations

import functools

import pytest
import torch
from methods import SimSiam, tiny_backbone
from torch import Tensor, nn
from torch.nn import functional as F

from lightly_dira import DiRA, DiRAViews, PatchDiscriminator, RestorationHead


def batches(count: int):
    """Smooth images, so that there is something to learn."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        coarse = torch.rand(8, 1, 4, 4, generator=generator)
        clean = F.interpolate(coarse, size=(16, 16), mode="bilinear")
        noise = torch.rand(2, 8, 3, 16, 16, generator=generator)
        yield DiRAViews(list(0.8 * clean + 0.2 * noise), clean)


CLOSE = dict(rtol=1e-4, atol=1e-4)


class Encoder(nn.Module):
    """Passes written out, since a map that ends a graph in a loop is not compiled."""

    def __init__(self) -> None:
        super().__init__()
        self.stage1, self.stage2, self.stage3, *_ = tiny_backbone(8)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stage1(images)
        x = self.stage2(x)
        x = self.stage3(x)
        return x.mean(dim=(2, 3))


class Graphs(list):
    """A compiler that counts what it is given."""

    def __call__(self, graph, inputs):
        self.append(graph)
        return graph.forward


@functools.cache
def train(
    dtype: torch.dtype = torch.float32,
    *,
    inside: bool = True,
    scale: float = 1,
    channels_last: bool = False,
    compiled: tuple[str, ...] = (),
    steps: int = 50,
) -> Tensor:
    """Returns all terms of all steps, (steps, 5)."""
    torch.manual_seed(0)
    torch._dynamo.reset()
    model = SimSiam(Encoder(), 32)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    dira = DiRA(
        model.backbone,
        optimizer,
        head=RestorationHead([8, 16, 32], decoder_channels=(16, 8, 8)),
        discriminator=PatchDiscriminator(channels=(8, 16), strides=(2, 2)),
        adversarial_start=10,
    )
    call_loss, call_dira = model.loss, dira
    if channels_last:
        model.to(memory_format=torch.channels_last)
        dira.to(memory_format=torch.channels_last)
    graphs = {part: Graphs() for part in compiled}
    if "model" in compiled:
        model.backbone = torch.compile(model.backbone, backend=graphs["model"])
    if "dira" in compiled:
        call_dira = torch.compile(dira, backend=graphs["dira"])
    scaler = torch.amp.GradScaler("cpu", init_scale=scale, enabled=scale > 1)
    terms = []
    for views in batches(steps):
        if channels_last:
            views = views.to(memory_format=torch.channels_last)
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            loss = call_loss(*views)
            if inside:
                loss = call_dira(loss, views)
        if not inside:
            loss = call_dira(loss, views)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        terms.append(torch.stack([term.float() for term in dira.components]))
    assert dira.steps == steps
    assert all(graphs.values())
    return torch.stack(terms)


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_tracks_float32(dtype: torch.dtype, inside: bool) -> None:
    """Averages of steps 25 to 50; the runs themselves drift apart, as any two do.

    SimSiam's loss by 0.05 even between float32 on one thread and on two, in bfloat16 by
    0.09 or 0.11 as the discriminator's gradients are scaled before or after.
    """
    scale = 1024.0 if dtype == torch.float16 else 1
    half = train(dtype, inside=inside, scale=scale)[25:].mean(dim=0)
    full = train()[25:].mean(dim=0)
    bounds = torch.tensor([0.15, 0.15, 0.15 * full[2], 0.02, 0.02])
    assert ((half - full).abs() < bounds).all()
    # It has learnt meanwhile.
    assert full[2] < 0.2 * train()[0, 2]


def test_channels_last() -> None:
    options = dict(channels_last=True)
    torch.testing.assert_close(train(steps=3, **options), train(steps=3), **CLOSE)


@pytest.mark.slow
@pytest.mark.parametrize("compiled", [("model",), ("dira",), ("model", "dira")])
def test_compiled(compiled: tuple[str, ...]) -> None:
    options = dict(steps=12)
    assert torch.equal(train(compiled=compiled, **options), train(**options))


def test_synchronised_statistics() -> None:
    """`convert_sync_batchnorm` puts other modules in the place of captured ones."""
    layers = [[nn.Conv2d(3, 3, 3, 2, 1), nn.BatchNorm2d(3)] for _ in range(3)]
    backbone = nn.Sequential(*layers[0], *layers[1], *layers[2]).eval()
    dira = DiRA(backbone)
    assert dira.features.layers == ["1", "3", "5"]
    images = torch.rand(2, 3, 16, 16)
    before = dira.restore(images)
    nn.SyncBatchNorm.convert_sync_batchnorm(backbone)
    assert isinstance(backbone[1], nn.SyncBatchNorm)
    assert torch.equal(dira.restore(images), before)
