from __future__ import annotations

import copy

import pytest
import timm
import torch
import torchvision
from lightly.utils.benchmarking import knn_predict
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler
from small import bars, small_encoder
from torch import nn
from torch.utils.data import TensorDataset

from lightly_dira.evaluation.labelled import Samples
from lightly_dira.evaluation.probes import encode, knn_probe, linear_probe


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

    def test_one_class(self) -> None:
        data = TensorDataset(torch.rand(6, 2), torch.zeros(6, dtype=torch.long))
        for probe in (linear_probe, knn_probe):
            assert probe(data, data)["accuracy"] == 1

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


class TestLayouts:
    """Found: maps with their channels last were averaged over width and channels."""

    images = TensorDataset(torch.rand(2, 3, 64, 64), torch.arange(2))

    def test_channels_last(self) -> None:
        swin = torchvision.models.swin_t().features.eval()
        encoded = encode(swin, self.images).tensors[0]
        with torch.no_grad():
            expected = swin(self.images.tensors[0]).mean(dim=(1, 2))
        assert encoded.shape == (2, 768)
        torch.testing.assert_close(encoded, expected)

    def test_tokens(self) -> None:
        vit = timm.create_model("vit_tiny_patch16_224", img_size=64).eval()
        vit.forward = vit.forward_features
        encoded = encode(vit, self.images).tensors[0]
        with torch.no_grad():
            tokens = vit(self.images.tensors[0])
        torch.testing.assert_close(encoded, tokens[:, 1:].mean(dim=1))

    def test_a_network_without_maps(self) -> None:
        flat = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64 * 64, 5))
        assert encode(flat, self.images).tensors[0].shape == (2, 5)
