"""Which layers a head decodes: kept with it, and compared where it is used again."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
import torchvision

from lightly_dira import DiRA
from lightly_dira.evaluation.networks import UNet
from lightly_dira.features import FeaturePyramid
from lightly_dira.models import light_head
from lightly_dira.models.decoded_layers import are_in, layers_for
from lightly_dira.weights import from_pretrained, save_pretrained

EARLY = ["blocks.0", "blocks.1", "blocks.2", "blocks.3"]


def vit():
    """Returns a transformer, whose blocks have maps that are all alike in shape."""
    names = dict(embed_dim=32, depth=8, num_heads=2, num_classes=0)
    return timm.models.VisionTransformer(img_size=32, patch_size=8, **names).eval()


@pytest.fixture
def chosen():
    backbone = vit()
    return backbone, DiRA(backbone, features=FeaturePyramid(backbone, layers=EARLY))


class TestHead:
    def test_knows_its_layers(self, chosen) -> None:
        backbone, dira = chosen
        assert dira.head.layers == tuple(EARLY)
        features = FeaturePyramid(backbone)
        assert features.layers != EARLY
        for head in (DiRA(backbone).head, light_head(features, cost=2)):
            assert head.layers == tuple(features.layers)
        assert copy.deepcopy(dira.head).layers == dira.head.layers

    def test_on_other_layers(self, chosen) -> None:
        """Found: it restored noise, as maps of all blocks have one shape."""
        backbone, dira = chosen
        with pytest.raises(ValueError, match=r"trained on .*blocks\.0.*head\.layers"):
            DiRA(backbone, head=dira.head)
        again = DiRA(
            backbone, head=dira.head, features=FeaturePyramid(backbone, layers=EARLY)
        )
        images = torch.rand(2, 3, 32, 32)
        assert torch.equal(again.restore(images), dira.restore(images))
        dira.head.layers = None
        assert DiRA(backbone, head=dira.head).head.layers != tuple(EARLY)

    def test_in_a_run_that_goes_on(self, chosen) -> None:
        """Found: a state of other maps was loaded, as all shapes are alike."""
        backbone, dira = chosen
        state = dira.state_dict()
        with pytest.raises(ValueError, match=r"trained on .*blocks\.0"):
            DiRA(backbone).load_state_dict(state)
        features = FeaturePyramid(backbone, layers=EARLY)
        DiRA(backbone, features=features).load_state_dict(state)

    def test_as_the_decoder_of_a_u_net(self, chosen) -> None:
        """Found: it took the maps that are found, not those of the training."""
        backbone, dira = chosen
        unet = UNet(backbone, 1, dira.head).eval()
        assert unet.features.layers == EARLY
        unet.head.to_image.load_state_dict(dira.head.to_image.state_dict())
        images = torch.rand(2, 3, 32, 32)
        with torch.no_grad():
            torch.testing.assert_close(unet(images).sigmoid(), dira.restore(images))

    def test_under_other_names(self) -> None:
        backbone = torchvision.models.resnet18()
        head, other = DiRA(backbone).head, timm.create_model("resnet18")
        with pytest.warns(
            UserWarning, match=r"'relu'.* are no\s+layers of this ResNet"
        ):
            assert layers_for(head, other) is None
        with pytest.warns(UserWarning, match="layers of this ResNet"):
            assert UNet(other, 2, head).features.layers[0] == "act1"


class TestFolders:
    def test_layers_travel(self, chosen, tmp_path) -> None:
        """Found: a head that was loaded decoded other maps, in silence."""
        backbone, dira = chosen
        save_pretrained(tmp_path, backbone, dira)
        fresh = vit()
        head = from_pretrained(tmp_path, fresh)
        assert head.layers == tuple(EARLY)
        with pytest.raises(ValueError, match=r"features=FeaturePyramid\("):
            DiRA(fresh, head=head)
        again = DiRA(
            fresh, head=head, features=FeaturePyramid(fresh, layers=head.layers)
        )
        images = torch.rand(2, 3, 32, 32)
        assert torch.equal(again.restore(images), dira.restore(images))

    def test_found_layers_go_into_other_names(self, tmp_path, recwarn) -> None:
        backbone = torchvision.models.resnet18()
        save_pretrained(tmp_path, backbone, DiRA(backbone))
        other = timm.create_model("resnet18")
        head = from_pretrained(tmp_path, other)
        assert head.layers == tuple(FeaturePyramid(other).layers)
        DiRA(other, head=head)
        assert not [str(w.message) for w in recwarn if "layers" in str(w.message)]


def test_names_of_passes() -> None:
    backbone = torchvision.models.resnet18()
    assert are_in(["layer1.0.relu[1]", "layer2"], backbone)
    assert not are_in(["layer1", "layer9"], backbone)
