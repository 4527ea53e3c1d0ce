"""Frozen and fine-tuned encoders of volumes."""

from __future__ import annotations

import copy

import pytest
import torch
from monai.inferers import sliding_window_inference
from monai.metrics import DiceMetric
from monai.networks.nets import resnet10
from small import SIZE, balls, labelled_balls
from torch.utils.data import TensorDataset

from lightly_dira import DiRA
from lightly_dira.evaluation.dense import dense_probe, encode_pixels
from lightly_dira.evaluation.finetuning import finetune_unet, score_unet
from lightly_dira.evaluation.networks import UNet
from lightly_dira.evaluation.probes import encode, linear_probe
from lightly_dira.evaluation.protocol import Task, evaluate


@pytest.fixture
def encoder() -> torch.nn.Module:
    torch.manual_seed(0)
    return resnet10(n_input_channels=1, feed_forward=False, widen_factor=1 / 8)


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


def test_sliding_window(encoder) -> None:
    """Volumes of any size, each scored as it is; one window is the whole network."""
    train, test = balls(12), balls(3, seed=1)
    unet = finetune_unet(encoder, train, test, steps=40, batch_size=4, lr=3e-3)
    whole, windowed = (score_unet(unet, test, window=w) for w in (None, SIZE))
    assert whole.keys() == windowed.keys() > {"dice", "iou", "surface distance"}
    for name, value in whole.items():
        assert windowed[name] == pytest.approx(value, abs=1e-5), name
    larger = [
        (torch.nn.functional.pad(v, (0, 7, 3, 0, 8, 1)), torch.nn.functional.pad(m, p))
        for (v, m), p in zip(test, 3 * [(0, 7, 3, 0, 8, 1)], strict=True)
    ]
    mixed = [test[0], *larger]
    scores = score_unet(unet, mixed, window=SIZE)
    assert scores["dice"] > 0.6


class TestLabelledVolumes:
    def test_evaluate(self, encoder) -> None:
        protocols = ("linear", "knn", "fine-tuned", "dense", "frozen U-Net", "U-Net")
        task = Task(
            "balls", labelled_balls(), SIZE, protocols, (0.5,), steps=10, batch_size=4
        )
        rows = list(evaluate(task, encoder))
        assert [*dict.fromkeys(row["protocol"] for row in rows)] == list(protocols)
        assert rows == list(evaluate(task, encoder))
        metrics = {row["metric"] for row in rows if row["protocol"] == "U-Net"}
        assert metrics == {"dice", "iou", "surface distance", "hausdorff 95"}
