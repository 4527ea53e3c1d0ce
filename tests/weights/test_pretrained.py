"""What was saved is loaded, with its settings, its inputs and its recipe."""

from __future__ import annotations

import json

import numpy as np
import pytest
import timm
import torch
import torchvision
from backbones import BACKBONES, headless
from torch import nn
from torchvision.models import resnet18
from trained import restore, save, u_net

from lightly_dira import DiRA, DiRALoss, RestorationHead
from lightly_dira.weights.inputs import Inputs
from lightly_dira.weights.pretrained import from_pretrained, save_pretrained


class TestPretrained:
    @pytest.mark.parametrize(
        "name",
        ["torchvision resnet", "timm vit", "torchvision swin", "timm efficientnet"],
    )
    def test_round_trip(self, name: str, tmp_path) -> None:
        case = BACKBONES[name]
        size = case.sizes[0]
        backbone, head = u_net(case.make(size))
        save_pretrained(tmp_path / "new" / "folder", backbone, head)
        other = case.make(size).eval()
        loaded = from_pretrained(tmp_path / "new" / "folder", other).eval()
        images = torch.rand(2, 3, size, size)
        expected = restore(backbone, head, images)
        assert torch.equal(restore(other, loaded, images), expected)
        assert DiRA(other, head=loaded).restore(images).equal(expected)

    def test_an_encoder_without_a_head(self, tmp_path) -> None:
        """Of a host that restored by itself."""
        backbone, other = (torchvision.models.resnet18() for _ in "12")
        save_pretrained(tmp_path, backbone)
        assert from_pretrained(tmp_path, other) is None
        for name, value in backbone.state_dict().items():
            assert torch.equal(other.state_dict()[name], value), name

    def test_into_other_names(self, tmp_path) -> None:
        backbone, head = u_net(headless(torchvision.models.resnet18()))
        save_pretrained(tmp_path, backbone, head)
        other = timm.create_model("resnet18").eval()
        loaded = from_pretrained(tmp_path, other).eval()
        images = torch.rand(2, 3, 64, 64)
        torch.testing.assert_close(
            restore(other, loaded, images), restore(backbone, head, images)
        )

    def test_settings_travel(self, tmp_path) -> None:
        backbone = torchvision.models.resnet18()
        head = RestorationHead(
            [64, 64, 128, 256, 512], decoder_channels=(8,) * 5, activation=None
        )
        save_pretrained(tmp_path, backbone, head)
        assert from_pretrained(tmp_path, backbone).settings == head.settings
        settings = json.loads((tmp_path / "config.json").read_text())
        assert {"lightly_dira", "head", "inputs", "recipe"} <= set(settings)

    def test_numbers_of_numpy(self, tmp_path) -> None:
        """Found: they were kept as text, and the folder could not be loaded."""
        backbone = torchvision.models.resnet18()
        channels = [*np.array([64, 64, 128, 256, 512])]
        save_pretrained(tmp_path, backbone, RestorationHead(channels))
        head = from_pretrained(tmp_path, torchvision.models.resnet18())
        assert head.encoder_channels == (64, 64, 128, 256, 512)

    def test_channels_last(self, tmp_path) -> None:
        backbone = torchvision.models.resnet18().to(memory_format=torch.channels_last)
        head = DiRA(backbone).head.to(memory_format=torch.channels_last)
        save_pretrained(tmp_path, backbone, head)
        fresh = torchvision.models.resnet18()
        from_pretrained(tmp_path, fresh)
        assert torch.equal(fresh.conv1.weight, backbone.conv1.weight)

    @pytest.mark.parametrize("settings", ["", "[]", "{}", '{"lightly_dira": 1}'])
    def test_broken_settings(self, settings: str, tmp_path) -> None:
        backbone = torchvision.models.resnet18()
        save_pretrained(tmp_path, backbone, DiRA(backbone).head)
        (tmp_path / "config.json").write_text(settings)
        with pytest.raises(ValueError, match=r"config.json is not what"):
            from_pretrained(tmp_path, backbone)

    def test_nothing_there(self, tmp_path) -> None:
        with pytest.raises(FileNotFoundError, match=r"no config.json.*save_pretrained"):
            from_pretrained(tmp_path, torchvision.models.resnet18())

    def test_newer_version(self, tmp_path) -> None:
        backbone = torchvision.models.resnet18()
        save_pretrained(tmp_path, backbone, DiRA(backbone).head)
        settings = json.loads((tmp_path / "config.json").read_text())
        settings |= {"lightly_dira": "99.0", "head": {"volumes": 3, **settings["head"]}}
        (tmp_path / "config.json").write_text(json.dumps(settings))
        with pytest.raises(ValueError, match=r"99\.0.*volumes"):
            from_pretrained(tmp_path, backbone)

    @pytest.mark.parametrize("saved", [18, 34])
    def test_other_architecture(self, saved: int, tmp_path) -> None:
        backbone = torchvision.models.get_model(f"resnet{saved}")
        save_pretrained(tmp_path, backbone, DiRA(backbone).head)
        other = torchvision.models.get_model(f"resnet{18 + 34 - saved}")
        with pytest.raises(ValueError, match=r"layer1.2.*same architecture"):
            from_pretrained(tmp_path, other)

    def test_unknown_head(self, tmp_path) -> None:
        with pytest.raises(TypeError, match=r"RestorationHead.*got Identity"):
            save_pretrained(tmp_path, torchvision.models.resnet18(), nn.Identity())


class TestKept:
    def test_what_was_kept_is_given_back(self, tmp_path) -> None:
        known = Inputs(3, (64, 64), (0.0, 4095.0), (0.5,) * 3, (0.2,) * 3)
        dira = save(tmp_path, inputs=known, method="MoCo v2")
        fresh = resnet18()
        head, inputs = from_pretrained(tmp_path, fresh, return_inputs=True)
        assert inputs == known
        assert head.settings == dira.head.settings
        config = json.loads((tmp_path / "config.json").read_text())
        assert config["method"] == "MoCo v2"
        assert config["recipe"]["restorative_weight"] == 100
        assert config["recipe"]["steps"] == 1
        assert config["recipe"]["stage"] == "dir"
        assert not config["recipe"]["critic"]
        assert torch.__version__.startswith(config["versions"]["torch"])
        assert from_pretrained(tmp_path, fresh).settings == dira.head.settings

    def test_folders_of_before(self, tmp_path) -> None:
        save(tmp_path)
        config = json.loads((tmp_path / "config.json").read_text())
        old = {name: config[name] for name in ("lightly_dira", "head")}
        (tmp_path / "config.json").write_text(json.dumps(old))
        head, inputs = from_pretrained(tmp_path, resnet18(), return_inputs=True)
        assert inputs is None
        assert head is not None

    def test_a_loss_of_ones_own_is_no_reason_to_lose_weights(self, tmp_path) -> None:
        class Mine(DiRALoss):
            def __init__(self, power: object) -> None:
                super().__init__()
                self.power = power

        backbone = resnet18()
        save_pretrained(tmp_path, backbone, DiRA(backbone, loss=Mine(object())))
        assert from_pretrained(tmp_path, resnet18()) is not None


class Ordered(nn.Module):
    """Runs layers of one shape in an order of its own."""

    def __init__(self, order: str = "ab", activation=torch.relu) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 2, 1)
        self.a, self.b = (nn.Conv2d(16, 16, 3, 2, 1) for _ in "ab")
        self.order, self.activation = order, activation

    def forward(self, x):
        x = self.stem(x)
        for name in self.order:
            x = getattr(self, name)(self.activation(x))
        return x


class TestNetworksThatComputeSomethingElse:
    """Found: what fits by shape was loaded without a word."""

    @pytest.mark.parametrize(
        "other",
        [lambda: Ordered("ba"), lambda: Ordered(activation=nn.functional.gelu)],
    )
    def test_layers(self, other, tmp_path, recwarn) -> None:
        save_pretrained(tmp_path, Ordered())
        from_pretrained(tmp_path, Ordered())
        assert not recwarn.list
        with pytest.warns(UserWarning, match="makes other feature maps of them"):
            from_pretrained(tmp_path, other())

    def test_a_stem_without_pooling(self, tmp_path, recwarn) -> None:
        backbone = resnet18()
        backbone.maxpool = nn.Identity()
        save_pretrained(tmp_path, backbone, DiRA(backbone))
        with pytest.warns(UserWarning, match="such as a stem without pooling"):
            from_pretrained(tmp_path, resnet18())
        # Without the classifier it is the same.
        recwarn.clear()
        save_pretrained(tmp_path / "plain", resnet18())
        from_pretrained(tmp_path / "plain", headless(resnet18()))
        assert not recwarn.list
