from __future__ import annotations

import copy
import dataclasses

import nibabel
import numpy as np
import pandas as pd
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from lightly.utils.benchmarking import knn_predict
from PIL import Image
from scipy import stats
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score, jaccard_score, roc_auc_score
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.utils.data import TensorDataset

from lightly_dira import DiRA
from lightly_dira.evaluation import finetuning
from lightly_dira.evaluation.data import MNI152Slices
from lightly_dira.evaluation.dense import dense_probe, encode_pixels
from lightly_dira.evaluation.finetuning import (
    UNet,
    finetune_classifier,
    finetune_unet,
    score_classifier,
    score_unet,
)
from lightly_dira.evaluation.label_fractions import FRACTIONS, label_fractions
from lightly_dira.evaluation.labelled import LabelledImages, Samples
from lightly_dira.evaluation.localisation import (
    class_activation_maps,
    localisation_scores,
    score_localisation,
)
from lightly_dira.evaluation.probes import encode, knn_probe, linear_probe
from lightly_dira.evaluation.protocol import Task, evaluate
from lightly_dira.evaluation.read_tables import (
    CHESTXRAY14,
    read_chestxray14,
    read_table,
)
from lightly_dira.evaluation.read_volumes import read_mni152, read_nifti
from lightly_dira.evaluation.readers import read_medmnist, read_npz
from lightly_dira.evaluation.scores import classification_scores, segmentation_scores
from lightly_dira.evaluation.statistics import compare_paired, summarise


def small_encoder(channels: int = 1) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(channels, 8, 3, 2, 1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, 2, 1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
    )


def bars(count: int, size: int = 32, seed: int = 0) -> LabelledImages:
    """Upright bars (class 1) or bars across (class 0), bright on noise."""
    random = np.random.default_rng(seed)
    images = random.integers(0, 100, (count, size, size), dtype=np.uint8)
    labels = np.arange(count) % 2
    masks, boxes = np.zeros_like(images), []
    for image, mask, label in zip(images, masks, labels, strict=True):
        x, y = random.integers(0, size // 2, 2)
        width, height = (size // 8, size // 2)[:: 1 if label else -1]
        mask[y : y + height, x : x + width] = 1
        image[mask == 1] = 255
        boxes.append(np.array([[x, y, width, height]]))
    splits = np.array(["train", "train", "val", "test"])[np.arange(count) // 2 % 4]
    return LabelledImages(
        images, labels=labels, masks=masks, boxes=boxes, splits=splits
    )


class TestMNI152Slices:
    def test_slabs_share_no_voxel(self) -> None:
        """Every test slice differs from every training slice, in any direction."""
        train, test = MNI152Slices("train"), MNI152Slices("test")
        assert len(train) > 300
        assert len(test) > 200
        seen = {row.tobytes() for image in train.images for row in image if row.any()}
        assert not any(
            row.tobytes() in seen
            for image in test.images
            for row in image
            if np.count_nonzero(row) > 20
        )

    def test_every_slice_shows_brain(self) -> None:
        data = MNI152Slices("test")
        assert ((data.images > 0).mean(axis=(1, 2)) >= 0.1).all()
        assert set(np.unique(data.tissues)) == {0, 1, 2}
        assert set(data.directions) == {0, 1, 2}
        grey, white = (data.images[data.tissues == tissue].mean() for tissue in (1, 2))
        assert grey < white, "in a T1 image white matter is brighter"

    def test_items(self) -> None:
        image, direction, name = MNI152Slices("test", lambda image: image.mode)[0]
        assert (image, direction) == ("RGB", 0)
        assert name.startswith("sagittal-")

    def test_bad_split(self) -> None:
        with pytest.raises(ValueError, match="'train' or 'test', got 'val'"):
            MNI152Slices("val")


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


class TestStatistics:
    @pytest.fixture
    def rows(self) -> pd.DataFrame:
        random = np.random.default_rng(0)
        return pd.DataFrame(
            [
                {"task": task, "stage": stage, "seed": seed, "value": random.random()}
                for task in ("a", "b", "c")
                for stage in ("di", "dira")
                for seed in range(5)
            ]
        )

    def values(self, rows: pd.DataFrame, task: str, stage: str) -> np.ndarray:
        return rows[(rows.task == task) & (rows.stage == stage)].value.to_numpy()

    def test_intervals_as_scipy(self, rows) -> None:
        for row in summarise(rows, ["task", "stage"]).itertuples():
            values = self.values(rows, row.task, row.stage)
            low, high = stats.t.interval(
                0.95, len(values) - 1, values.mean(), stats.sem(values)
            )
            assert (row.low, row.high) == (pytest.approx(low), pytest.approx(high))
            assert (row.runs, row.mean) == (5, pytest.approx(values.mean()))

    def test_tests_as_scipy(self, rows) -> None:
        # Pairs belong together by their seeds, not by their order.
        shuffled = rows.sample(frac=1, random_state=0)
        table = compare_paired(shuffled, "stage", "dira", "di", by=["task"])
        table = table.set_index("task").loc[["a", "b", "c"]]
        expected = []
        for row in table.itertuples():
            first, second = (self.values(rows, row.Index, s) for s in ("dira", "di"))
            test = stats.ttest_rel(first, second)
            assert row.p == pytest.approx(test.pvalue)
            assert row.difference == pytest.approx((first - second).mean())
            interval = test.confidence_interval()
            assert (row.low, row.high) == pytest.approx((interval.low, interval.high))
            expected.append(test.pvalue)
        # Holm: the smallest of m times m, the next times m - 1, never falling, up to 1.
        order = np.argsort(expected)
        corrected = np.maximum.accumulate(np.array(expected)[order] * [3, 2, 1])
        found = table.p_holm.to_numpy()[order]
        np.testing.assert_allclose(found, np.minimum(corrected, 1))

    def test_unpaired_rows_do_not_count(self, rows) -> None:
        few = rows[(rows.stage == "di") | (rows.seed == 0)]
        table = compare_paired(few, "stage", "dira", "di", by=["task"])
        assert table.pairs.tolist() == [1, 1, 1]
        assert table[["low", "high", "p", "p_holm"]].isna().all(axis=None)

    def test_ambiguous_rows(self, rows) -> None:
        with pytest.raises(ValueError, match="several values for one stage and seed"):
            compare_paired(rows.assign(x=0), "stage", "dira", "di", by=["x"])


class TestFractions:
    @settings(max_examples=50, deadline=None)
    @given(st.integers(0, 100), st.integers(1, 5), st.booleans(), st.booleans())
    def test_nested_stratified_and_repeatable(
        self, seed: int, classes: int, several: bool, by_patient: bool
    ) -> None:
        random = np.random.default_rng(seed)
        count = int(random.integers(20, 200))
        labels = random.integers(0, classes, count)
        if several:
            labels = random.integers(0, 2, (count, classes))
        patients = random.integers(0, count, count) if by_patient else None
        parts = label_fractions(labels, patients=patients, seed=seed)
        again = label_fractions(labels, patients=patients, seed=seed)
        smaller: set[int] = set()
        for fraction in FRACTIONS:
            part = parts[fraction]
            assert np.array_equal(part, again[fraction])
            assert len(np.unique(part)) == len(part) >= fraction * count - 1e-9
            assert smaller <= set(part.tolist())
            smaller = set(part.tolist())
            if by_patient:
                others = np.delete(patients, part)
                assert not set(patients[part]) & set(others)
            elif not several:
                for label in np.unique(labels):
                    exact = fraction * (labels == label).sum()
                    assert 0 <= (labels[part] == label).sum() - exact < 1
        assert len(parts[1.0]) == count

    def test_seeds_differ(self) -> None:
        first, second = (label_fractions([0] * 99, [0.1], seed=s) for s in (0, 1))
        assert set(first[0.1]) != set(second[0.1])

    @pytest.mark.parametrize("fraction", [0, 1.1, -1])
    def test_out_of_range(self, fraction: float) -> None:
        with pytest.raises(ValueError, match="above 0 and at most 1"):
            label_fractions([0, 1], [fraction])

    def test_patients_of_other_images(self) -> None:
        with pytest.raises(ValueError, match="2 labels need as many patients, got 3"):
            label_fractions([0, 1], patients=[1, 2, 3])


class TestLabelledImages:
    def test_selections_keep_what_belongs_together(self) -> None:
        data = bars(16)
        test = data.split("test")
        chosen = np.flatnonzero(data.splits == "test")
        assert test.names == [str(number) for number in chosen]
        for index, number in enumerate(chosen):
            assert np.array_equal(test.pixels(index), data.images[number])
            assert np.array_equal(test.mask(index), data.masks[number])
            assert np.array_equal(test.boxes[index], data.boxes[number])
        assert test.labels.tolist() == data.labels[chosen].tolist()

    def test_items_are_those_of_lightly(self) -> None:
        image, label, name = bars(16).with_transform(lambda image: image.size)[1]
        assert (image, label, name) == ((32, 32), 1, "1")

    def test_unequal_lengths(self) -> None:
        with pytest.raises(ValueError, match="4 images need as many labels, got 3"):
            LabelledImages(np.zeros((4, 32, 32), np.uint8), labels=np.zeros(3))

    def test_unknown_split(self) -> None:
        with pytest.raises(ValueError, match=r"no split 'other'; there are \['test'"):
            bars(16).split("other")

    def test_samples_of_16_bits(self) -> None:
        grey = np.linspace(0, 65535, 32 * 32, dtype=np.uint16).reshape(32, 32)
        data = LabelledImages([grey], labels=np.array([1]))
        image, label = Samples(data, 32, channels=1)[0]
        assert label == 1
        np.testing.assert_allclose(image[0], grey / 65535, atol=1e-6)

    def test_augmentation_moves_mask_with_image(self) -> None:
        data = bars(16)
        augment = torchvision.transforms.v2.RandomHorizontalFlip(p=1)
        plain = Samples(data, 32, "mask")
        flipped = Samples(data, 32, "mask", augment=augment)
        for before, after in zip(plain[3], flipped[3], strict=True):
            assert torch.equal(before.flip(-1), after)
            assert type(after) is torch.Tensor

    def test_unknown_target(self) -> None:
        data = LabelledImages(np.zeros((1, 32, 32), np.uint8))
        with pytest.raises(ValueError, match="'mask' is not among what is known"):
            Samples(data, 32, "mask")


class TestProbes:
    @pytest.fixture
    def data(self) -> tuple[TensorDataset, TensorDataset]:
        generator = torch.Generator().manual_seed(0)
        features = torch.randn(120, 8, generator=generator)
        noise = 0.5 * torch.randn(120, 3, generator=generator)
        labels = (features[:, :3] + noise).argmax(dim=1)
        return (
            TensorDataset(features[:80], labels[:80]),
            TensorDataset(features[80:], labels[80:]),
        )

    def test_knn_as_lightly(self, data) -> None:
        (x, y), (x_test, y_test) = (part.tensors for part in data)
        x, x_test = (nn.functional.normalize(part) for part in (x, x_test))
        found = knn_predict(x_test, x.T, y, num_classes=3, knn_k=20)[:, 0]
        accuracy = (found == y_test).float().mean().item()
        assert knn_probe(*data)["accuracy"] == pytest.approx(accuracy)
        assert accuracy > 0.4

    def test_linear_as_scikit_learn(self, data) -> None:
        (x, y), (x_test, y_test) = ([t.numpy() for t in part.tensors] for part in data)
        scale = StandardScaler().fit(x)
        model = LogisticRegression(C=0.1, tol=1e-3, max_iter=1000)
        probabilities = model.fit(scale.transform(x), y).predict_proba(
            scale.transform(x_test)
        )
        expected = roc_auc_score(y_test, probabilities, multi_class="ovr")
        assert linear_probe(*data)["auc"] == pytest.approx(expected, abs=1e-9)

    def test_several_findings(self, data) -> None:
        several = [
            TensorDataset(x, nn.functional.one_hot(y, 3))
            for x, y in (part.tensors for part in data)
        ]
        for probe in (linear_probe, knn_probe):
            assert set(probe(*several)) == {"auc"}
            assert probe(*several)["auc"] > 0.7

    def test_a_class_without_labels(self, data) -> None:
        """Few labels may miss a class that the test set has."""
        train, test = data
        x, y = train.tensors
        few = TensorDataset(x[y != 2], y[y != 2])
        assert 0.5 < linear_probe(few, test)["auc"] < linear_probe(*data)["auc"]
        one = TensorDataset(x[y == 0], y[y == 0])
        assert linear_probe(one, test)["auc"] == 0.5

    def test_encoder_is_left_as_it_was(self) -> None:
        backbone = small_encoder().train()
        before = copy.deepcopy(backbone.state_dict())
        samples = Samples(bars(8), 32, channels=1)
        encoded = encode(backbone, samples, batch_size=3)
        assert encoded.tensors[0].shape == (8, 16)
        assert backbone.training
        for name, value in backbone.state_dict().items():
            assert torch.equal(value, before[name])
        whole = torch.stack([image for image, _ in samples])
        with torch.no_grad():
            expected = backbone.eval()(whole).flatten(1)
        torch.testing.assert_close(encoded.tensors[0], expected)


class TestDenseProbe:
    @pytest.fixture
    def data(self) -> TensorDataset:
        generator = torch.Generator().manual_seed(0)
        images = torch.rand(20, 1, 16, 16, generator=generator)
        masks = (images[:, 0] > 0.4).long() + (images[:, 0] > 0.7).long()
        return TensorDataset(images, masks)

    def test_finds_what_is_there(self, data) -> None:
        pixels = encode_pixels(lambda x: [torch.cat([x, x**2, x**3], 1)], data)
        scores = dense_probe(pixels, pixels)
        assert set(scores) == {1, 2}
        assert 0.9 < min(scores.values()) <= max(scores.values()) <= 1

    def test_finds_nothing_in_noise(self, data) -> None:
        torch.manual_seed(0)
        pixels = encode_pixels(lambda x: [torch.rand(len(x), 4, 16, 16)], data)
        others = encode_pixels(lambda x: [torch.rand(len(x), 4, 16, 16)], data)
        assert max(dense_probe(pixels, others).values()) < 0.6

    def test_coarse_maps_are_interpolated_as_when_enlarged(self, data) -> None:
        images, masks = data.tensors
        coarse = lambda x: [nn.functional.avg_pool2d(x, 4)]  # noqa: E731
        found, classes = encode_pixels(coarse, data, pixels=256, seed=3).tensors
        large = nn.functional.interpolate(
            coarse(images)[0], size=(16, 16), mode="bilinear"
        )
        random = np.random.default_rng(3)
        order = torch.from_numpy(np.stack([random.permutation(256) for _ in images]))
        expected = large.flatten(1).gather(1, order)
        torch.testing.assert_close(found[..., 0], expected, atol=1e-5, rtol=0)
        assert torch.equal(classes, masks.flatten(1).gather(1, order))

    def test_masks_must_fit(self, data) -> None:
        images, masks = data.tensors
        with pytest.raises(ValueError, match=r"need masks \(16, 16, 16\)"):
            encode_pixels(lambda x: [x], TensorDataset(images, masks[:, :8]))

    def test_one_class(self, data) -> None:
        images, masks = data.tensors
        pixels = encode_pixels(lambda x: [x], TensorDataset(images, 0 * masks))
        with pytest.raises(ValueError, match="all training pixels are of one class"):
            dense_probe(pixels, pixels)


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

        def score(*arguments) -> dict[str, float]:
            scores = score_classifier(*arguments)
            seen.append(scores["auc"])
            return scores

        monkeypatch.setattr(finetuning, "score_classifier", score)
        model = finetune_classifier(small_encoder(), samples, samples, steps=10, lr=1.0)
        assert len(seen) == 10
        assert score_classifier(model, samples)["auc"] == max(seen) > seen[-1]

    def test_decoder_starts_from_the_restoration_head(self) -> None:
        backbone = small_encoder()
        dira = DiRA(backbone)
        images = torch.rand(2, 1, 32, 32)
        dira.restore(images)
        unet = UNet(backbone, 3, dira.head)
        assert unet.eval()(images).shape == (2, 3, 32, 32)
        weights = dira.head.state_dict()
        taken = [
            name
            for name, value in unet.head.state_dict().items()
            if torch.equal(value, weights[name])
        ]
        new = {name for name in weights if name not in taken}
        assert {name.split(".")[0] for name in new} == {"to_image"}

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

    def test_too_few_steps(self) -> None:
        samples = Samples(bars(16), 32, channels=1)
        with pytest.raises(ValueError, match="at least 10, got 9"):
            finetune_classifier(small_encoder(), samples, samples, steps=9)


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


class TestEvaluate:
    def test_same_seed_same_rows(self) -> None:
        protocols = ("linear", "knn", "fine-tuned", "dense", "frozen U-Net", "U-Net")
        task = Task("bars", bars(64), 32, protocols, (0.25, 1.0), steps=10)
        backbone = small_encoder(channels=3)
        rows, again = (list(evaluate(task, backbone, seed=1)) for _ in range(2))
        assert rows == again
        assert [*dict.fromkeys(row["protocol"] for row in rows)] == list(protocols)
        assert {row["images"] for row in rows} == {8, 32}
        assert all(0 <= row["value"] <= 1 for row in rows)
        other = list(evaluate(task, backbone, seed=2))
        assert rows != other

    def test_draws_are_averaged(self) -> None:
        data, backbone = bars(64), small_encoder(channels=3)
        task = Task("bars", data, 32, ("linear",), (0.1, 1.0), draws=3)
        rows = list(evaluate(task, backbone, seed=1))
        assert [(row["fraction"], row["images"]) for row in rows[::3]] == [
            (0.1, 4),
            (1.0, 32),
        ]
        single = dataclasses.replace(task, draws=1)
        values = np.array(
            [
                [row["value"] for row in evaluate(single, backbone, seed=seed)]
                for seed in (3, 4, 5)
            ]
        )
        assert len(np.unique(values[:, 0])) > 1
        assert [row["value"] for row in rows] == pytest.approx(values.mean(axis=0))
        with pytest.raises(ValueError, match="draws must be at least 1, got 0"):
            Task("bars", data, 32, ("linear",), draws=0)

    def test_unknown_protocol(self) -> None:
        with pytest.raises(ValueError, match=r"protocols are linear, knn.*'magic'"):
            Task("bars", bars(8), 32, ("magic",))


class TestReaders:
    def test_npz_of_medmnist(self, tmp_path) -> None:
        arrays = {}
        for number, split in enumerate(("train", "val", "test"), start=1):
            arrays[f"{split}_images"] = np.full((number, 28, 28), number, np.uint8)
            arrays[f"{split}_labels"] = np.full((number, 1), number % 2)
        np.savez(tmp_path / "pneumoniamnist.npz", **arrays)
        data = read_npz(tmp_path / "pneumoniamnist.npz")
        assert data.splits.tolist() == ["train", "val", "val", "test", "test", "test"]
        assert data.labels.tolist() == [1, 0, 0, 1, 1, 1]
        assert data.split("test").pixels(0).max() == 3

    def test_medmnist_finds_what_was_downloaded(self, tmp_path, monkeypatch) -> None:
        import medmnist

        arrays = {}
        for split in ("train", "val", "test"):
            arrays[f"{split}_images"] = np.zeros((2, 28, 28), np.uint8)
            arrays[f"{split}_labels"] = np.array([[0], [1]])
        np.savez(tmp_path / "pneumoniamnist.npz", **arrays)
        # The sum of the real file, which cannot be downloaded here.
        monkeypatch.setattr(
            medmnist.dataset.MedMNIST, "download", lambda self: None, raising=True
        )
        data = read_medmnist("pneumoniamnist", folder=tmp_path)
        assert len(data) == 6
        assert data.label_names == ("normal", "pneumonia")
        with pytest.raises(ValueError, match="'nothing' is not a set"):
            read_medmnist("nothing")

    def test_npz_of_arrays(self, tmp_path) -> None:
        path = tmp_path / "scans.npz"
        np.savez(
            path,
            images=np.zeros((3, 32, 32), np.uint8),
            tb_label=[0, 1, 1],
            patient_id=["a", "b", "b"],
            split=["train", "test", "test"],
            bbox_image_index=[1, 1],
            bbox_xywh=[[1, 2, 3, 4], [5, 6, 7, 8]],
            bbox_label=["Mass", "Nodule"],
        )
        data = read_npz(path, label="tb_label")
        assert data.labels.tolist() == [0, 1, 1]
        assert [len(boxes) for boxes in data.boxes] == [0, 2, 0]
        assert data.box_labels[1].tolist() == ["Mass", "Nodule"]
        with pytest.raises(ValueError, match="no array 'other'"):
            read_npz(path, label="other")
        np.savez(path, nothing=np.zeros(3))
        with pytest.raises(ValueError, match="expected arrays `images`"):
            read_npz(path)

    def test_npz_runs_no_code(self, tmp_path) -> None:
        np.savez(tmp_path / "bad.npz", images=np.array([{}], dtype=object))
        with pytest.raises(ValueError, match="allow_pickle"):
            read_npz(tmp_path / "bad.npz")

    def make_folder(self, folder, count: int = 40) -> pd.DataFrame:
        random = np.random.default_rng(0)
        rows = []
        for number in range(count):
            pixels = random.integers(0, 65535, (32, 32), dtype=np.uint16)
            Image.fromarray(pixels).save(folder / f"{number}.png")
            mask = np.zeros((32, 32), np.uint8)
            mask[: number % 32] = 255
            Image.fromarray(mask).save(folder / f"{number}-mask.png")
            rows.append(
                {
                    "image": f"{number}.png",
                    "label": "ill" if number % 3 else "healthy",
                    "mask": f"{number}-mask.png",
                    "patient": number // 4,
                }
            )
        table = pd.DataFrame(rows)
        table.to_csv(folder / "labels.csv", index=False)
        return table

    def test_table(self, tmp_path) -> None:
        table = self.make_folder(tmp_path)
        data = read_table(
            tmp_path / "labels.csv", tmp_path, mask="mask", patient="patient"
        )
        assert data.label_names == ("healthy", "ill")
        assert data.labels.tolist() == (table.label == "ill").astype(int).tolist()
        assert data.pixels(5).dtype == np.uint16
        assert data.mask(5).sum() == 5 * 32
        by_split = {
            name: set(data.split(name).patients) for name in ("train", "val", "test")
        }
        assert {name: len(patients) for name, patients in by_split.items()} == {
            "train": 7,
            "val": 1,
            "test": 2,
        }
        assert len(set.union(*by_split.values())) == 10, "no patient is in two splits"
        image, mask = Samples(data, 16, "mask")[3]
        assert image.shape == (3, 16, 16)
        assert set(mask.unique().tolist()) <= {0, 1}

    def test_table_of_findings(self, tmp_path) -> None:
        table = self.make_folder(tmp_path, 4)
        table["nodule"], table["mass"] = [0, 1, 0, 1], [1, 1, 0, 0]
        table["fold"] = ["train", "train", "val", "test"]
        table.to_csv(tmp_path / "labels.csv")
        data = read_table(
            tmp_path / "labels.csv",
            tmp_path,
            labels=["nodule", "mass"],
            split="fold",
        )
        assert data.labels.tolist() == [[0, 1], [1, 1], [0, 0], [1, 0]]
        assert data.splits.tolist() == table.fold.tolist()

    def test_table_errors(self, tmp_path) -> None:
        self.make_folder(tmp_path, 4)
        with pytest.raises(ValueError, match="has no column cancer; it has image, l"):
            read_table(tmp_path / "labels.csv", tmp_path, labels="cancer")
        (tmp_path / "2.png").unlink()
        with pytest.raises(FileNotFoundError, match=r"1 of 4 files.*2\.png"):
            read_table(tmp_path / "labels.csv", tmp_path)

    def test_chestxray14(self, tmp_path) -> None:
        names = [f"{number:08d}_000.png" for number in range(30)]
        findings = ["No Finding", "Mass|Nodule", "Hernia"]
        pd.DataFrame(
            {
                "Image Index": names,
                "Finding Labels": [findings[i % 3] for i in range(30)],
                "Patient ID": [i // 2 for i in range(30)],
            }
        ).to_csv(tmp_path / "Data_Entry_2017_v2020.csv", index=False)
        (tmp_path / "train_val_list.txt").write_text("\n".join(names[:20]))
        (tmp_path / "test_list.txt").write_text("\n".join(names[20:]))
        (tmp_path / "BBox_List_2017.csv").write_text(
            "Image Index,Finding Label,Bbox [x,y,w,h],,,\n"
            f"{names[21]},Mass,10.5,20,30,40,,,\n"
        )
        folder = tmp_path / "images_001" / "images"
        folder.mkdir(parents=True)
        for name in names[:-1]:
            Image.new("L", (64, 64), 128).save(folder / name)
        data = read_chestxray14(tmp_path)
        assert len(data) == 29, "one is not there"
        assert data.label_names == CHESTXRAY14
        assert data.labels[0].sum() == 0
        named = [CHESTXRAY14[i] for i in np.flatnonzero(data.labels[1])]
        assert named == ["Mass", "Nodule"]
        assert [len(data.split(name)) for name in ("train", "val", "test")] == [
            18,
            2,
            9,
        ]
        own = {name: set(data.split(name).patients) for name in ("train", "val")}
        assert not own["train"] & own["val"]
        assert data.boxes[21].tolist() == [[10.5, 20, 30, 40]]
        assert data.box_labels[21].tolist() == ["Mass"]
        assert sum(map(len, data.boxes)) == 1
        assert data.pixels(0).shape == (64, 64)

    def test_chestxray14_without_images(self, tmp_path) -> None:
        with pytest.raises(FileNotFoundError, match=r"no Data_Entry_2017\*\.csv below"):
            read_chestxray14(tmp_path)

    def test_nifti(self, tmp_path) -> None:
        """Slices are upright whatever the axes of the file, and of its type."""
        volume = np.arange(16 * 18 * 20, dtype=np.int16).reshape(16, 18, 20) - 1000
        turned = nibabel.Nifti1Image(volume, np.diag([-1, 1, 1, 1]))  # to the left
        nibabel.save(turned, tmp_path / "a.nii.gz")
        nibabel.save(
            nibabel.Nifti1Image(volume[::-1].copy(), np.eye(4)), tmp_path / "b.nii"
        )
        mask = (volume > 0).astype(np.uint8)
        nibabel.save(nibabel.Nifti1Image(mask, np.eye(4)), tmp_path / "mask.nii.gz")
        data = read_nifti([tmp_path / "a.nii.gz", tmp_path / "b.nii"], axis=1)
        assert len(data) == 36
        assert data.pixels(0).dtype == np.int16
        assert data.pixels(0).shape == (20, 16)
        for index in range(18):
            assert np.array_equal(data.pixels(index), data.pixels(18 + index))
        # The head is above the feet, and the right hand on the right.
        highest = volume[:, 4, -1]
        assert np.array_equal(data.pixels(4)[0], highest[::-1])
        assert data.names[21] == "b-003"
        assert set(data.patients) == {"a", "b"}

        paths = [tmp_path / "b.nii"]
        masked = read_nifti(paths, masks=[tmp_path / "mask.nii.gz"], window=(-1000, 0))
        assert masked.mask(19).sum() == mask[:, :, 19].sum()
        image, _ = Samples(masked, 16, "mask")[0]
        assert 0 <= image.min() < image.max() <= 1
        with pytest.raises(ValueError, match=r"DiRATransform\(..., window=") as error:
            Samples(dataclasses.replace(masked, window=None), 16, "mask")[0]
        assert "int16" in str(error.value)

    def test_nifti_errors(self, tmp_path) -> None:
        for name, shape in (("a", (16, 16, 4)), ("b", (16, 16, 5)), ("c", (16, 16))):
            image = nibabel.Nifti1Image(np.zeros(shape, np.uint8), np.eye(4))
            nibabel.save(image, tmp_path / f"{name}.nii")
        a, b, c = (tmp_path / f"{name}.nii" for name in "abc")
        with pytest.raises(ValueError, match="different grids"):
            read_nifti([a], masks=[b])
        with pytest.raises(ValueError, match="three dimensions"):
            read_nifti([c])

    def test_mni152_has_room_between_splits(self) -> None:
        data = read_mni152()
        rows = {
            name: {
                row.tobytes()
                for image in data.split(name).images
                for row in image
                if np.count_nonzero(row) > 20
            }
            for name in ("train", "val", "test")
        }
        assert not rows["train"] & rows["val"]
        assert not rows["train"] & rows["test"]
        assert not rows["val"] & rows["test"]
