"""Frozen and fine-tuned encoders of volumes."""

from __future__ import annotations

import copy

import pytest
import torch
from monai.inferers import sliding_window_inference
from monai.metrics import DiceMetric
from monai.networks.nets import resnet10
from torch.utils.data import TensorDataset

from lightly_dira import DiRA
from lightly_dira.evaluation.dense import dense_probe, encode_pixels
from lightly_dira.evaluation.finetuning import finetune_unet, score_unet
from lightly_dira.evaluation.networks import UNet
from lightly_dira.evaluation.probes import encode, linear_probe

SIZE = 12, 16, 20


def balls(count: int, seed: int = 0) -> TensorDataset:
    """Bright balls in noise, with their masks."""
    generator = torch.Generator().manual_seed(seed)
    volumes = 0.3 * torch.rand(count, 1, *SIZE, generator=generator)
    grid = torch.stack(torch.meshgrid(*map(torch.arange, SIZE), indexing="ij"))
    masks = torch.zeros(count, *SIZE, dtype=torch.long)
    for volume, mask in zip(volumes, masks, strict=True):
        centre = 4 + torch.rand(3, generator=generator) * (torch.tensor(SIZE) - 8)
        mask[(grid - centre[:, None, None, None]).square().sum(0) < 16] = 1
        volume[0][mask == 1] += 0.6
    return TensorDataset(volumes, masks)


@pytest.fixture
def encoder() -> torch.nn.Module:
    torch.manual_seed(0)
    return resnet10(n_input_channels=1, feed_forward=False, widen_factor=1 / 8)


def test_pixels_are_those_of_the_voxels() -> None:
    """Maps that hold every voxel's own place are returned at those places."""
    data = balls(3)
    places = torch.stack(torch.meshgrid(*map(torch.arange, SIZE), indexing="ij"))
    numbers = torch.arange(places[0].numel()).reshape(SIZE).float()

    def maps(volumes):
        return [
            numbers.expand(len(volumes), 1, *SIZE),
            places.expand(len(volumes), -1, *SIZE),
        ]

    encoded, classes = encode_pixels(maps, data, pixels=50).tensors
    assert encoded.shape == (3, 50, 4)
    voxels = encoded[..., 0].round().long()
    assert torch.equal(classes, data.tensors[1].flatten(1).gather(1, voxels))
    expected = torch.stack(torch.unravel_index(voxels, SIZE), dim=-1)
    torch.testing.assert_close(encoded[..., 1:], expected.float(), rtol=0, atol=1e-3)


def test_probes(encoder) -> None:
    train, test = balls(12), balls(6, seed=1)
    dice = dense_probe(encode_pixels(encoder, train), encode_pixels(encoder, test))
    assert dice[1] > 0.7, "bright balls are easy"
    labels = [
        TensorDataset(d.tensors[0], torch.arange(len(d)) % 2) for d in (train, test)
    ]
    for data in labels:
        data.tensors[0][1::2] += 0.5
    scores = linear_probe(*(encode(encoder, data) for data in labels))
    assert scores["auc"] == 1


@pytest.mark.parametrize("pretrained", [False, True])
def test_unet(encoder, pretrained: bool) -> None:
    train, test = balls(12), balls(6, seed=1)
    head = DiRA(copy.deepcopy(encoder)).head if pretrained else None
    unet = finetune_unet(
        encoder, train, test, head=head, steps=40, batch_size=4, lr=3e-3
    )
    assert isinstance(unet, UNet)
    assert unet.head.spatial_dims == 3
    score = score_unet(unet, test)["dice"]
    assert score > 0.7
    # Dice as MONAI has it, of a volume larger than the window.
    volume, mask = torch.zeros(1, 1, 24, 16, 20), torch.zeros(1, 24, 16, 20)
    volume[:, :, 6:18], mask[:, 6:18] = test.tensors[0][:1], test.tensors[1][:1].float()
    with torch.no_grad():
        logits = sliding_window_inference(volume, SIZE, 2, unet, overlap=0.5)
    metric = DiceMetric(include_background=False)
    found = torch.nn.functional.one_hot(logits.argmax(1), 2).movedim(-1, 1)
    expected = torch.nn.functional.one_hot(mask.long(), 2).movedim(-1, 1)
    assert metric(found, expected).item() > 0.6
