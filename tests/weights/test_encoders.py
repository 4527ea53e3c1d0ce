"""An encoder's weights under the names of another library's model."""

from __future__ import annotations

import pytest
import timm
import torch
import torchvision
from backbones import BACKBONES, headless
from lightly.models.modules import MaskedVisionTransformerTIMM
from torch import Tensor, nn
from trained import trained

from lightly_dira import DiRA, DiRAViews
from lightly_dira.weights.encoders import export_encoder
from lightly_dira.weights.pretrained import from_pretrained, save_pretrained


class TestExportEncoder:
    @pytest.mark.parametrize("name", ["resnet18", "resnet50"])
    @pytest.mark.parametrize("library", ["torchvision", "timm"])
    def test_after_training_to_another_library(self, name: str, library: str) -> None:
        backbone = headless(torchvision.models.get_model(name))
        optimizer = torch.optim.SGD(backbone.parameters(), lr=0.1)
        dira = DiRA(backbone, optimizer)
        views = torch.rand(2, 2, 3, 64, 64)
        loss = sum(backbone(x).square().mean() for x in views)
        dira(loss, DiRAViews(views, torch.rand(2, 1, 64, 64))).backward()
        optimizer.step()
        if library == "torchvision":
            classifier = torchvision.models.get_model(name, num_classes=7)
        else:
            classifier = timm.create_model(name, num_classes=7)
        weights = export_encoder(backbone, like=classifier)
        lacking = classifier.load_state_dict(weights, strict=False)
        assert lacking.missing_keys == ["fc.weight", "fc.bias"]
        assert not lacking.unexpected_keys
        classifier.fc = nn.Identity()
        classifier.load_state_dict(weights, strict=True)
        x = torch.rand(2, 3, 64, 64)
        backbone.eval(), classifier.eval()
        torch.testing.assert_close(classifier(x), backbone(x).flatten(1))

    @pytest.mark.parametrize(
        ("name", "count"),
        [
            ("densenet121", 1),
            ("efficientnet_b0", 2),
            ("convnext_tiny", 2),
            ("mobilenet_v3_small", 2),
            ("regnet_y_400mf", 2),
            ("vgg11_bn", 2),
            ("swin_t", 3),
        ],
    )
    def test_families_of_torchvision(self, name: str, count: int) -> None:
        backbone = trained(headless(torchvision.models.get_model(name), count))
        like = torchvision.models.get_model(name)
        lacking = like.load_state_dict(export_encoder(backbone, name), strict=False)
        assert not lacking.unexpected_keys
        assert all("classifier" in k or k[:3] in ("hea", "fc.") for k in lacking[0])
        x = torch.rand(1, 3, 64, 64)
        backbone.eval(), like.eval()
        torch.testing.assert_close(headless(like, count)(x), backbone(x))

    def test_masked_transformer_to_timm_and_back(self) -> None:
        settings = dict(img_size=64, embed_dim=16, depth=2, num_heads=2)
        vit = timm.create_model("vit_tiny_patch16_224", **settings)
        masked = trained(MaskedVisionTransformerTIMM(vit))
        other = timm.create_model("vit_tiny_patch16_224", num_classes=0, **settings)
        other.load_state_dict(export_encoder(masked, like=other), strict=True)
        x = torch.rand(2, 3, 64, 64)
        torch.testing.assert_close(
            other.eval().forward_features(x), vit.eval().forward_features(x)
        )

    def test_compiled(self) -> None:
        resnet = torchvision.models.resnet18()
        weights = export_encoder(torch.compile(resnet), like="resnet18")
        assert weights.keys() == resnet.state_dict().keys()

    def test_a_copy(self) -> None:
        resnet = torchvision.models.resnet18()
        weights = export_encoder(resnet, like="resnet18")
        resnet.conv1.weight.data.zero_()
        assert weights["conv1.weight"].abs().sum() > 0

    def test_layers_of_one_shape_in_another_order(self) -> None:
        class Encoder(nn.Module):
            def __init__(self, *names: str) -> None:
                super().__init__()
                for name in names:
                    setattr(self, name, nn.Conv2d(3, 3, 3, 2, 1))
                self.names = sorted(names)

            def forward(self, x: Tensor) -> Tensor:
                for name in self.names:
                    x = getattr(self, name)(x)
                return x

        with pytest.raises(ValueError, match="maps differ"):
            export_encoder(Encoder("a", "b", "c"), like=Encoder("z", "y", "x"))

    def test_no_model(self) -> None:
        with pytest.raises(TypeError, match=r"model of torchvision or timm.*function"):
            export_encoder(torchvision.models.resnet18(), torchvision.models.resnet18)

    def test_unknown_name(self) -> None:
        with pytest.raises(ValueError, match="neither torchvision nor timm"):
            export_encoder(torchvision.models.resnet18(), like="resnet19")


@pytest.mark.parametrize("name", ["torchvision resnet", "timm vit"])
def test_pretrained_weights_are_kept_to_the_last_bit(name: str) -> None:
    backbone = trained(BACKBONES[name].make(BACKBONES[name].sizes[0]))
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    DiRA(backbone, torch.optim.SGD(backbone.parameters(), lr=0.1))
    after = backbone.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], before[key]) for key in before)


def test_modules_that_ask_for_a_version(tmp_path) -> None:
    """Found: MNASNet refuses weights that do not carry the version of its layout."""
    trained = torchvision.models.mnasnet0_5()
    fresh = torchvision.models.mnasnet0_5()
    fresh.load_state_dict(export_encoder(trained, like=fresh), strict=False)
    save_pretrained(tmp_path, trained)
    again = torchvision.models.mnasnet0_5()
    from_pretrained(tmp_path, again)
    for model in (fresh, again):
        for ours, theirs in zip(
            model.layers.parameters(), trained.layers.parameters(), strict=True
        ):
            assert torch.equal(ours, theirs)
