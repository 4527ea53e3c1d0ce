"""Steps of a batch's views: known, left out, or refused."""

from __future__ import annotations

from typing import Any

import kornia.augmentation as K
import pytest
import torch
from pictures import batch_of
from torch import Tensor, nn
from torchvision.transforms import v2

from lightly_dira.transforms import BatchDistortion, DiRABatchTransform, InPainting


class Darker(K.IntensityAugmentationBase2D):
    def apply_transform(self, input: Any, *args: Any, **options: Any) -> Any:
        return input.mul_(0.5)


half = v2.Lambda(lambda image: image.mul_(0.5))


@pytest.mark.parametrize(
    "steps",
    [
        [v2.RandomGrayscale(p=0.0), v2.RandomErasing(p=1.0, inplace=True)],
        [v2.RandomApply([v2.RandomErasing(p=1.0, inplace=True)], p=1.0)],
        [v2.RandomApply([v2.Normalize([0.5] * 3, [0.5] * 3, inplace=True)], p=1.0)],
        [v2.RandomGrayscale(p=0.0), half],
        [v2.RandomHorizontalFlip(p=0.0), half],
        [Darker(p=1.0)],
    ],
)
def test_in_place_behind_a_step_that_did_nothing(steps: list[Any]) -> None:
    """Found: a step that returns its input looked like one that made something new."""
    images = batch_of(2)
    kept = images.clone()
    views = DiRABatchTransform(
        [v2.Compose(steps)],
        distortion=None,
        target_channels=3,
        kinds={half: "photometric"},
    )(images)
    assert images.equal(kept)
    assert views.target.equal(kept)
    assert not views[0].equal(kept)


def test_a_distortion_in_place_behind_a_step_that_did_nothing() -> None:
    images = batch_of(2)
    kept = images.clone()
    distortion = BatchDistortion(InPainting(), inplace=True)
    step = v2.RandomGrayscale(p=0.0)
    views = DiRABatchTransform([step], distortion=distortion, target_channels=3)(images)
    assert images.equal(kept)
    assert views.target.equal(kept)


def test_conversions_are_left_out() -> None:
    """Found: bytes were clamped to [0, 1]."""
    steps = [v2.ToImage(), v2.ToDtype(torch.uint8, scale=True), v2.RandomCrop(32)]
    steps += [v2.ToDtype(torch.float32, scale=True), v2.ToPureTensor()]
    images = batch_of(2)
    views = DiRABatchTransform([v2.Compose(steps)], distortion=None, target_channels=3)(
        images
    )
    assert views[0].equal(images)
    assert type(views[0]) is Tensor

    def to_bytes(batch: Tensor) -> Tensor:
        return (255 * batch).byte()

    with pytest.raises(TypeError, match="uint8"):
        DiRABatchTransform(to_bytes, kinds={to_bytes: "photometric"})(images)


def test_colours_cannot_fill_views_and_targets_together() -> None:
    turn = v2.RandomRotation(10, fill=[0.5, 0.4, 0.3])
    DiRABatchTransform(v2.Compose([turn, v2.ColorJitter(0.4)]))(batch_of(2))
    with pytest.raises(ValueError, match="fills with"):
        DiRABatchTransform(v2.Compose([v2.ColorJitter(0.4), turn]))


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (lambda batch: batch, "not known"),
        (K.RandomMixUpV2(), "mixes images"),
        (v2.MixUp(num_classes=2), "mixes images"),
        (v2.RandAugment(), "several things"),
        (K.auto.RandAugment(2, 5), "not known"),
        (v2.RandomApply([v2.RandomCrop(8), v2.ColorJitter()]), "several things"),
    ],
)
def test_steps_that_cannot_be_told_are_errors(step: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        DiRABatchTransform(step)


def test_a_container_with_a_forward_of_its_own_is_not_taken_apart() -> None:
    class Twice(nn.Sequential):
        def forward(self, batch: Tensor) -> Tensor:
            return super().forward(super().forward(batch))  # type: ignore[no-any-return]

    with pytest.raises(ValueError, match="Twice"):
        DiRABatchTransform(Twice(v2.RandomHorizontalFlip()))
    some = K.AugmentationSequential(
        K.RandomHorizontalFlip(), K.RandomVerticalFlip(), random_apply=1
    )
    views = DiRABatchTransform(some, distortion=None, target_channels=3)(batch_of(2))
    assert views.target.equal(views[0])
