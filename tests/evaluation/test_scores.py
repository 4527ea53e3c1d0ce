from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.metrics import DiceMetric
from sklearn.metrics import f1_score, jaccard_score, roc_auc_score

from lightly_dira.evaluation.scores import (
    classification_scores,
    segmentation_scores,
    surface_scores,
)


class TestScores:
    def test_classes_as_scikit_learn(self) -> None:
        random = np.random.default_rng(0)
        targets = random.integers(0, 4, 200)
        probabilities = random.dirichlet(np.ones(4), 200)
        expected = roc_auc_score(
            targets, probabilities, multi_class="ovr", average="macro"
        )
        scores = classification_scores(targets, probabilities)
        assert scores["auc"] == pytest.approx(expected, abs=1e-12)
        assert scores["accuracy"] == (probabilities.argmax(1) == targets).mean()

    def test_findings_as_scikit_learn(self) -> None:
        random = np.random.default_rng(0)
        targets = random.integers(0, 2, (100, 5))
        probabilities = random.random((100, 5))
        expected = roc_auc_score(targets, probabilities, average="macro")
        assert classification_scores(targets, probabilities) == {
            "auc": pytest.approx(expected, abs=1e-12)
        }

    def test_findings_that_nobody_has_are_left_out(self) -> None:
        random = np.random.default_rng(0)
        targets = random.integers(0, 2, (100, 3))
        targets[:, 1] = 0
        probabilities = random.random((100, 3))
        expected = roc_auc_score(targets[:, ::2], probabilities[:, ::2])
        found = classification_scores(targets, probabilities)["auc"]
        assert found == pytest.approx(expected, abs=1e-12)
        nobody = classification_scores(targets[:, 1:2], probabilities[:, :1])
        assert np.isnan(nobody["auc"])

    def test_other_classes(self) -> None:
        with pytest.raises(ValueError, match=r"of \(4, 2\), got \(4, 3\)"):
            classification_scores(np.zeros((4, 2)), np.zeros((4, 3)))

    def test_masks_as_scikit_learn(self) -> None:
        generator = torch.Generator().manual_seed(0)
        masks, found = torch.randint(0, 3, (2, 6, 8, 8), generator=generator)
        scores = segmentation_scores(masks, found)
        for name, score in (("dice", f1_score), ("iou", jaccard_score)):
            each = [
                score(m.ravel(), f.ravel(), labels=[1, 2], average="macro")
                for m, f in zip(masks, found, strict=True)
            ]
            assert scores[name] == pytest.approx(np.mean(each), abs=1e-6)

    def test_what_an_image_does_not_show_does_not_count(self) -> None:
        masks = torch.zeros(2, 4, 4, dtype=torch.long)
        masks[0, :2] = 1
        masks[1, :2] = 2
        assert segmentation_scores(masks, masks) == {"dice": 1.0, "iou": 1.0}
        nothing = segmentation_scores(masks, torch.zeros_like(masks))
        assert nothing == {"dice": 0.0, "iou": 0.0}

    @pytest.mark.parametrize("shape", [(4, 1), (4,), (4, 2)])
    def test_probabilities_of_too_few_classes(self, shape) -> None:
        """Found: of one column, class 0 was scored."""
        with pytest.raises(ValueError, match=r"3 classes need .*\(N, 3\)"):
            classification_scores(np.array([0, 1, 2, 1]), np.full(shape, 0.5))
        with pytest.raises(ValueError, match=r"np\.stack\(\[1 - p, p\]"):
            classification_scores(np.array([0, 1]), np.full((2, 1), 0.5))

    @pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.bool])
    def test_masks_of_any_integers(self, dtype) -> None:
        masks = (torch.arange(64).reshape(1, 8, 8) % 3 == 1).to(dtype)
        assert segmentation_scores(masks, masks) == {"dice": 1.0, "iou": 1.0}
        assert surface_scores(masks, masks)["hausdorff 95"] == 0

    def test_masks_that_cannot_be_scored(self) -> None:
        masks = torch.zeros(1, 8, 8, dtype=torch.long)
        for score in (segmentation_scores, surface_scores):
            with pytest.raises(ValueError, match="expected classes, integers"):
                score(masks, masks.float())
            with pytest.raises(ValueError, match=r"\(1, 8, 8\) and \(1, 4, 8\)"):
                score(masks, masks[:, :4])


class TestSurfaceScores:
    """Against distances known by construction."""

    def cubes(self, shift: int) -> tuple[torch.Tensor, torch.Tensor]:
        mask = torch.zeros(1, 12, 12, 12, dtype=torch.long)
        mask[:, 3:8, 3:8, 3:8] = 1
        return mask, mask.roll(shift, dims=1)

    @pytest.mark.parametrize("shift", [0, 1, 2])
    def test_shifted(self, shift: int) -> None:
        mask, moved = self.cubes(shift)
        assert surface_scores(mask, moved)["hausdorff 95"] == shift
        apart = surface_scores(mask, moved, spacing=(2.5, 1, 1))
        assert apart["hausdorff 95"] == 2.5 * shift
        assert (surface_scores(mask, moved)["surface distance"] == 0) == (shift == 0)

    def test_nothing_found_is_the_diagonal(self) -> None:
        mask, _ = self.cubes(0)
        nothing = torch.zeros_like(mask)
        for pair in ((mask, nothing), (nothing, mask)):
            assert surface_scores(*pair)["surface distance"] == pytest.approx(
                12 * 3**0.5
            )
        both = torch.cat([mask, nothing]), torch.cat([mask, nothing])
        assert surface_scores(*both)["surface distance"] == 0, "absent: not counted"

    def test_classes_are_averaged(self) -> None:
        mask, moved = self.cubes(1)
        mask[:, 9:, 9:, 9:] = 2
        moved[:, 9:, 9:, 9:] = 2
        assert surface_scores(mask, moved)["hausdorff 95"] == 0.5

    def test_dice_is_that_of_monai(self) -> None:
        random = torch.Generator().manual_seed(0)
        masks = torch.randint(0, 3, (4, 6, 7, 8), generator=random)
        found = torch.randint(0, 3, (4, 6, 7, 8), generator=random)
        hot = [torch.nn.functional.one_hot(m, 3).movedim(-1, 1) for m in (found, masks)]
        expected = DiceMetric(include_background=False)(*hot).mean().item()
        assert segmentation_scores(masks, found)["dice"] == pytest.approx(expected)
