"""Networks to fine-tune: what is taken over from an encoder and a head."""

from __future__ import annotations

import pytest
import torch
import torchvision
from small import small_encoder
from torch.utils.data import TensorDataset

from lightly_dira import DiRA
from lightly_dira.evaluation.finetuning import finetune_classifier
from lightly_dira.evaluation.networks import Classifier, UNet


class TestFinetuning:
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


class TestLayouts:
    """Found: maps with their channels last were averaged over width and channels."""

    images = TensorDataset(torch.rand(2, 3, 64, 64), torch.arange(2))

    def test_classifiers(self) -> None:
        model = Classifier(torchvision.models.swin_t().features, 768, 2).eval()
        with torch.no_grad():
            assert model(self.images.tensors[0]).shape == (2, 2)
        tuned = finetune_classifier(
            torchvision.models.swin_t().features,
            self.images,
            self.images,
            steps=10,
            batch_size=2,
        )
        assert tuned.classify.in_features == 768


def test_a_classifier_is_a_mean_and_a_linear_layer() -> None:
    """By hand; and the encoder is copied, so that fine-tuning leaves it alone."""
    backbone = small_encoder()[:-1].eval()
    model = Classifier(backbone, 16, 3).eval()
    images = torch.rand(2, 1, 32, 32)
    with torch.no_grad():
        features = backbone(images).mean(dim=(2, 3))
        expected = features @ model.classify.weight.T + model.classify.bias
        torch.testing.assert_close(model(images), expected)
        for parameter in model.backbone.parameters():
            parameter.zero_()
        assert backbone(images).any()


@pytest.mark.parametrize("frozen", [False, True])
def test_a_frozen_encoder_does_not_learn(frozen: bool) -> None:
    """Neither by gradients nor by the statistics of its BatchNorm."""
    backbone = small_encoder()
    unet = UNet(backbone, 2, frozen=frozen).train()
    unet(torch.rand(2, 1, 32, 32)).sum().backward()
    norm = unet.encoder[1]
    assert torch.equal(norm.running_mean, backbone[1].running_mean) == frozen
    assert (norm.weight.grad is None) == frozen
    assert not backbone[1].running_mean.any()
    assert all(p.grad is not None for p in unet.head.parameters())


@pytest.mark.parametrize("parts", [1, 6])
def test_what_is_frozen_before(parts: int) -> None:
    """Found: a teacher, or an encoder kept for evaluation, was "tuned" and stood."""
    backbone = small_encoder()
    backbone[:parts].requires_grad_(False)
    whole = not any(p.requires_grad for p in backbone.parameters())
    assert whole == (parts == 6)
    classifier, unet = Classifier(backbone, 16, 2), UNet(backbone, 2)
    for copied in (classifier.backbone, unet.encoder):
        # The first part alone stays as it was frozen.
        assert copied[0].weight.requires_grad == whole
        assert copied[3].weight.requires_grad
    assert not any(
        p.requires_grad for p in UNet(backbone, 2, frozen=True).encoder.parameters()
    )
    assert not backbone[0].weight.requires_grad
