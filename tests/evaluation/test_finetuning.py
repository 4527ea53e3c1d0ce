"""Fine-tuned encoders of images."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torchvision
from small import bars, small_encoder
from torch.utils.data import TensorDataset

from lightly_dira.evaluation import finetuning
from lightly_dira.evaluation.finetuning import (
    finetune_classifier,
    finetune_unet,
    score_classifier,
    score_unet,
)
from lightly_dira.evaluation.labelled import LabelledImages, Samples


class TestFinetuning:
    @pytest.mark.parametrize("several", [False, True])
    def test_classifier_learns(self, several: bool) -> None:
        data = bars(64)
        if several:
            both = np.stack([data.labels, 1 - data.labels], axis=1)
            data = LabelledImages(data.images, labels=both, splits=data.splits)
        train, val, test = (
            Samples(data.split(name), 32, channels=1)
            for name in ("train", "val", "test")
        )
        backbone = small_encoder()
        before = copy.deepcopy(backbone.state_dict())
        model = finetune_classifier(backbone, train, val, steps=60, lr=0.02)
        assert score_classifier(model, test)["auc"] > 0.9
        for name, value in backbone.state_dict().items():
            assert torch.equal(value, before[name])

    @pytest.mark.parametrize("frozen", [False, True])
    def test_unet_learns(self, frozen: bool) -> None:
        data = bars(64)
        train, val, test = (
            Samples(data.split(name), 32, "mask", channels=1)
            for name in ("train", "val", "test")
        )
        backbone = small_encoder()
        model = finetune_unet(backbone, train, val, steps=40, lr=0.01, frozen=frozen)
        assert score_unet(model, test)["dice"] > 0.9
        same = [
            torch.equal(value, model.encoder.state_dict()[name])
            for name, value in backbone.state_dict().items()
        ]
        assert all(same) if frozen else not all(same)

    def test_the_best_weights_are_kept(self, monkeypatch) -> None:
        """With a rate that ruins the network on its way."""
        samples = Samples(bars(64), 32, channels=1)
        seen: list[float] = []

        def score(*arguments, **options) -> dict[str, float]:
            scores = score_classifier(*arguments, **options)
            seen.append(scores["auc"])
            return scores

        monkeypatch.setattr(finetuning, "score_classifier", score)
        model = finetune_classifier(small_encoder(), samples, samples, steps=10, lr=1.0)
        assert len(seen) == 10
        assert score_classifier(model, samples)["auc"] == max(seen) > seen[-1]

    def test_same_seed_same_network(self) -> None:
        samples = Samples(bars(16), 32, channels=1)
        models = []
        for _ in range(2):
            torch.rand(3)  # what was drawn before does not matter
            models.append(
                finetune_classifier(small_encoder(), samples, samples, steps=10)
            )
        first, second = (model.state_dict() for model in models)
        assert all(torch.equal(first[name], second[name]) for name in first)

    def test_one_image(self) -> None:
        """Found: BatchNorm refused a coarsest map of one position."""
        data = TensorDataset(torch.rand(1, 3, 32, 32), torch.zeros(1, 32, 32).long())
        unet = finetune_unet(torchvision.models.resnet18(), data, data, steps=10)
        assert unet(data.tensors[0]).shape == (1, 2, 32, 32)

    def test_passes_are_as_large_as_steps(self) -> None:
        """Found: 64 volumes at a time where scores were measured."""
        samples, seen = Samples(bars(32), 32, "mask", channels=1), set()
        encoder = small_encoder()
        encoder.register_forward_pre_hook(lambda _, given: seen.add(len(given[0])))
        unet = finetune_unet(encoder, samples, samples, steps=10, batch_size=4)
        score_unet(unet, samples, batch_size=8)
        assert seen - {1, 2} == {4, 8}

    def test_too_few_steps(self) -> None:
        samples = Samples(bars(16), 32, channels=1)
        with pytest.raises(ValueError, match="at least 10, got 9"):
            finetune_classifier(small_encoder(), samples, samples, steps=9)
