from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from lightly_dira.evaluation.labelled import LabelledImages
from lightly_dira.evaluation.localisation import (
    class_activation_maps,
    localisation_scores,
    score_localisation,
)
from lightly_dira.evaluation.networks import Classifier


class TestLocalisation:
    @pytest.fixture
    def data(self) -> LabelledImages:
        """A bright patch makes the class "patch"."""
        random = np.random.default_rng(0)
        images = random.integers(0, 64, (6, 64, 96), dtype=np.uint8)
        boxes = []
        for image in images:
            x, y = random.integers(8, 40, 2)
            image[y : y + 16, x : x + 24] = 255
            boxes.append(np.array([[x, y, 24, 16], [0, 0, 2, 2]]))
        return LabelledImages(
            images,
            labels=np.ones(6, dtype=int),
            boxes=boxes,
            box_labels=[np.array(["patch", "something else"])] * 6,
            label_names=("nothing", "patch"),
        )

    @pytest.fixture
    def model(self) -> nn.Module:
        """Sees brightness."""
        model = nn.Sequential(
            nn.Conv2d(3, 1, 4, 4),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(1, 2),
        )
        with torch.no_grad():
            model[0].weight.fill_(1 / 48)
            model[0].bias.fill_(-0.5)
            model[4].weight.copy_(torch.tensor([[-1.0], [1.0]]))
        return model

    def test_finds_what_a_classifier_looks_at(self, data, model) -> None:
        scores = score_localisation(model, data, 64, layer=model[1])
        assert scores["boxed"] == 6, "other boxes do not count"
        assert scores["pointing"] == 1
        assert scores["iou"] > 0.5
        assert scores["iou>=0.25"] == 1

    def test_nothing_speaks_for_the_other_class(self, data, model) -> None:
        other = dataclasses.replace(data, label_names=("patch", "nothing"))
        scores = score_localisation(model, other, 64, layer=model[1])
        assert (scores["pointing"], scores["iou"]) == (0, 0)

    def test_no_boxes_of_the_labels(self, data, model) -> None:
        other = dataclasses.replace(data, label_names=("a", "b"))
        with pytest.raises(ValueError, match="among the labels, a, b"):
            score_localisation(model, other, 64)

    def test_overlaps_by_hand(self) -> None:
        heat = np.zeros((2, 16, 16))
        heat[0, 4:8, 4:8] = 1
        heat[0, 12:14, 12:14] = 0.9  # as warm, but not around the peak
        heat[1, 0, 0] = 1
        boxes = [np.array([[0, 0, 2, 2], [4, 4, 4, 8]]), np.array([[8, 8, 4, 4]])]
        assert localisation_scores(heat, boxes) == {
            "pointing": 0.5,
            "iou": 0.25,
            "iou>=0.1": 0.5,
            "iou>=0.25": 0.5,
            "iou>=0.5": 0.5,
        }

    def test_every_image_needs_a_box(self) -> None:
        with pytest.raises(ValueError, match=r"at least one each, got \[0\]"):
            localisation_scores(np.ones((1, 4, 4)), [np.zeros((0, 4))])

    def test_model_is_left_as_it_was(self) -> None:
        model = torchvision.models.resnet18(num_classes=2).train()
        model.requires_grad_(False)
        class_activation_maps(model, torch.rand(1, 3, 64, 64), 0)
        assert model.training
        assert not any(p.requires_grad for p in model.parameters())
        assert not any(module._forward_hooks for module in model.modules())


def test_numbers_as_names_of_boxes() -> None:
    """Found: an error after the fine-tuning."""
    data = LabelledImages(
        np.zeros((2, 32, 32), np.uint8),
        labels=np.array([0, 1]),
        boxes=[np.array([[2, 2, 8, 8]]), np.array([[4, 4, 8, 8]])],
        box_labels=[np.array([0]), np.array([1])],
        label_names=("0", "1"),
    )
    model = Classifier(torchvision.models.resnet18(), 1000, 2)
    assert score_localisation(model, data, 32)["boxed"] == 2


def test_boxes_of_larger_images() -> None:
    """Found: boxes of 1024 pixels were compared with images of 224."""
    data = LabelledImages(
        np.zeros((1, 32, 32), np.uint8),
        labels=np.array([1]),
        boxes=[np.array([[20, 20, 40, 40]])],
        box_labels=[np.array(["1"])],
        label_names=("0", "1"),
    )
    model = Classifier(torchvision.models.resnet18(), 1000, 2)
    with pytest.raises(ValueError, match=r"a box of 0 leaves its image of 32 x 32"):
        score_localisation(model, data, 32)
