"""Labels are classes or findings, and masks hold classes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from lightly_dira.evaluation.classes import check_labels, foreground_of, whole
from lightly_dira.evaluation.labelled import LabelledImages
from lightly_dira.evaluation.probes import knn_probe, linear_probe


@pytest.mark.parametrize(
    "labels",
    [
        np.array([0, 2, 1]),
        np.array([True, False]),
        np.array([0.0, 1.0]),
        np.array([[0, 1], [1, 1]], np.uint8),
        np.zeros((0, 3)),
    ],
)
def test_classes_and_findings(labels: np.ndarray) -> None:
    check_labels("it", labels)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.array([0, -1, 1]), "classes from 0 on, got -1 of image 1"),
        (np.array([[0, 1], [1, -1]]), "0 or 1 for each finding, got -1 of image 1"),
        (np.array([[0.0, np.nan]]), "got nan of image 0"),
        (np.array([0.0, np.inf]), "got inf of image 1"),
        (np.array([0.7, 0.0]), r"got 0.7 of image 0.*`labels > 0.5`"),
        (np.array([[2, 0]]), "0 or 1 for each finding, got 2"),
        (np.array(["cat", "dog"]), r"must be numbers, got \['cat'\].*numpy.unique"),
    ],
)
def test_others(labels: np.ndarray, message: str) -> None:
    """Found: 0.7 became 0, NaN the lowest integer and -1 a class of its own."""
    with pytest.raises(ValueError, match=f"LabelledImages: .*{message}"):
        LabelledImages(np.zeros((len(labels), 32, 32), np.uint8), labels=labels)


@pytest.mark.parametrize("probe", [linear_probe, knn_probe])
def test_probes(probe) -> None:
    """Found: probabilities of class 1 were those of -1, without a word."""
    features, labels = torch.randn(30, 4), torch.arange(30) % 3 - 1
    right = TensorDataset(features, labels + 1)
    for pair in ((TensorDataset(features, labels), right), (right, right)):
        if pair[0] is right:
            assert "auc" in probe(*pair)
            continue
        with pytest.raises(ValueError, match="probe: labels are classes from 0 on"):
            probe(*pair)


def test_whole() -> None:
    """Files that scale whole numbers give them back with rounding errors."""
    scaled = np.array([0.0, 1.0000000591, 2.0000001182])
    assert whole(scaled).tolist() == [0, 1, 2]
    fractions = np.array([0.0, 1.0, 0.5])
    assert whole(fractions) is fractions


class TestMasksOfFiles:
    def test_black_and_one_other(self) -> None:
        mask = np.zeros((4, 4, 3), np.uint8)
        mask[1:3] = 255, 0, 0
        for each in (mask, mask[..., 0], mask[..., 0] > 0):
            assert foreground_of(each, "a.png").sum() == 8
        assert not foreground_of(mask[:1, :, 0], "a.png").any()

    @pytest.mark.parametrize("values", [[0, 1, 2], [0, 3, 250, 255], [-1, 0]])
    def test_several_are_not_guessed(self, values) -> None:
        """Found: classes, and the noise of JPEG, became one class in silence."""
        mask = np.resize(np.array(values), (6, 6))
        with pytest.raises(ValueError, match=r"the mask a\.png holds .*threshold"):
            foreground_of(mask, "a.png")

    def test_two_colours(self) -> None:
        mask = np.zeros((4, 4, 3), np.uint8)
        mask[0], mask[1] = (255, 0, 0), (0, 255, 0)
        with pytest.raises(ValueError, match="holds 3 values"):
            foreground_of(mask, "a.png")
