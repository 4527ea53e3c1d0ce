from __future__ import annotations

import argparse
import json

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
import torchvision
from backbones import BACKBONES, headless
from lightly.models.modules import MaskedVisionTransformerTIMM
from torch import Tensor, nn
from torch.nn import functional as F

from lightly_dira import DiRA, DiRAViews, RestorationHead
from lightly_dira.features.pyramid import FeaturePyramid
from lightly_dira.weights.encoders import export_encoder
from lightly_dira.weights.official import load_dira_checkpoint
from lightly_dira.weights.pretrained import from_pretrained, save_pretrained
from lightly_dira.weights.smp_unet import to_smp_unet


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def trained(model: nn.Module) -> nn.Module:
    """Moves every weight and statistic away from where it starts."""
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(0.5, 1.5) if tensor.ndim == 1 else tensor.mul_(1.1)
    return model


def u_net(backbone: nn.Module) -> tuple[nn.Module, RestorationHead]:
    head = DiRA(backbone).head
    return trained(backbone).eval(), trained(head).eval()


@torch.no_grad()
def restore(backbone: nn.Module, head: RestorationHead, images: Tensor) -> Tensor:
    return head(FeaturePyramid(backbone)(images), images.shape[2:])


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

    def test_classifier_beside_a_norm(self) -> None:
        backbone = timm.create_model("test_convnext", num_classes=0)
        classifier = timm.create_model("test_convnext", num_classes=3)
        weights = export_encoder(trained(backbone), like=classifier)
        lacking = classifier.load_state_dict(weights, strict=False)
        assert lacking.missing_keys == ["head.fc.weight", "head.fc.bias"]

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

    @pytest.mark.parametrize(
        ("ours", "theirs", "missing"),
        [
            (
                "resnet34",
                "resnet18",
                r"they have layer1.2.conv1.weight \(64, 64",
            ),
            (
                "resnet18",
                "resnet34",
                r"ResNet has layer1.2.conv1.weight \(64, 64",
            ),
            ("resnet18", "resnet50", r"layer1.0.conv1.weight"),
            ("resnet18", "densenet121", r"features"),
        ],
    )
    @pytest.mark.parametrize("whole", [True, False])
    def test_other_architecture(self, ours, theirs, missing, whole) -> None:
        backbone = torchvision.models.get_model(ours)
        backbone = backbone if whole else headless(backbone)
        with pytest.raises(ValueError, match="same architecture"):
            export_encoder(backbone, like=theirs)
        if whole:
            with pytest.raises(ValueError, match=missing):
                export_encoder(backbone, like=theirs)

    @pytest.mark.parametrize(
        ("ours", "theirs"),
        [
            (dict(init_values=0.1), {}),
            ({}, dict(qkv_bias=False)),
            ({}, dict(final_norm=False)),
            (dict(final_norm=False), {}),
            (dict(depth=4), dict(depth=2)),
            (dict(depth=2), dict(depth=4)),
        ],
    )
    def test_not_a_parameter_is_dropped(self, ours, theirs) -> None:
        def make(**settings):
            settings = dict(depth=2) | settings
            return timm.create_model(
                "vit_tiny_patch16_224",
                img_size=64,
                embed_dim=16,
                num_heads=2,
                num_classes=0,
                **settings,
            )

        with pytest.raises(ValueError, match="do not fit"):
            export_encoder(make(**ours), like=make(**theirs))

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

    def test_twin_encoders(self) -> None:
        class Twins(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.student = torchvision.models.resnet18()
                self.teacher = torchvision.models.resnet18()

            def forward(self, x: Tensor) -> Tensor:
                return self.student(x)

        with pytest.raises(ValueError, match=r"do not fit|fit .* behind"):
            export_encoder(Twins(), like="resnet18")

    def test_no_model(self) -> None:
        with pytest.raises(TypeError, match=r"model of torchvision or timm.*function"):
            export_encoder(torchvision.models.resnet18(), torchvision.models.resnet18)

    def test_other_channels(self) -> None:
        like = timm.create_model("resnet18", in_chans=1)
        with pytest.raises(ValueError, match=r"conv1.weight \(64, 1, 7, 7\).*input"):
            export_encoder(torchvision.models.resnet18(), like=like)

    def test_transformer_of_another_size(self) -> None:
        sizes = [
            torchvision.models.VisionTransformer(s, 16, 2, 2, 8, 8) for s in (64, 48)
        ]
        with pytest.raises(ValueError, match="pos_embedding"):
            export_encoder(sizes[0], like=sizes[1])

    def test_unknown_name(self) -> None:
        with pytest.raises(ValueError, match="neither torchvision nor timm"):
            export_encoder(torchvision.models.resnet18(), like="resnet19")


class TestSmpUnet:
    @pytest.mark.parametrize(
        "name",
        [
            "resnet18",
            "resnet34",
            "resnet50",
            "resnet101",
            "resnet152",
            "resnext50_32x4d",
        ],
    )
    def test_same_output_then_fine_tuning(self, name: str) -> None:
        backbone, head = u_net(headless(torchvision.models.get_model(name)))
        unet = to_smp_unet(backbone, head).eval()
        assert unet.name == f"u-{name}"
        images = torch.rand(2, 3, 96, 64)
        restored = restore(backbone, head, images)
        assert restored.std() > 1e-3
        torch.testing.assert_close(unet(images), restored, rtol=0, atol=1e-5)

        unet.train()
        optimizer = torch.optim.SGD(unet.parameters(), lr=0.01)
        mask = (torch.rand(2, 1, 96, 64) > 0.5).float()
        before = unet.encoder.conv1.weight.detach().clone()
        F.binary_cross_entropy(unet(images), mask).backward()
        optimizer.step()
        assert not torch.equal(unet.encoder.conv1.weight, before)

    def test_light_head_grey_images_and_logits(self) -> None:
        backbone = torchvision.models.resnet18()
        backbone.conv1 = nn.Conv2d(1, 64, 7, 2, 3, bias=False)
        head = RestorationHead(
            [64, 64, 128, 256, 512],
            decoder_channels=(64, 32, 16, 16, 8),
            out_channels=2,
            activation=None,
        )
        trained(backbone).eval(), trained(head).eval()
        unet = to_smp_unet(backbone, head).eval()
        images = torch.rand(1, 1, 64, 64)
        torch.testing.assert_close(
            unet(images), restore(backbone, head, images), rtol=0, atol=1e-4
        )

    def test_encoder_of_timm_by_name(self) -> None:
        backbone, head = u_net(timm.create_model("resnet18", num_classes=0))
        unet = to_smp_unet(backbone, head, encoder_name="tu-resnet18").eval()
        images = torch.rand(1, 3, 64, 64)
        torch.testing.assert_close(
            unet(images), restore(backbone, head, images), rtol=0, atol=1e-5
        )

    def test_no_such_encoder(self) -> None:
        backbone = torchvision.models.regnet_y_400mf()
        with pytest.raises(ValueError, match=r"no encoder with maps of.*440"):
            to_smp_unet(backbone, DiRA(backbone).head)

    @pytest.mark.parametrize(
        "name",
        ["torchvision resnet, CIFAR stem", "torchvision vit", "torchvision swin"],
    )
    def test_no_such_decoder(self, name: str) -> None:
        backbone = BACKBONES[name].make(BACKBONES[name].sizes[0])
        with pytest.raises(ValueError, match="finest has stride 2; this head"):
            to_smp_unet(backbone, DiRA(backbone).head)

    def test_other_layers(self) -> None:
        names = ["relu", "layer1.0", "layer2.0", "layer3.0", "layer4.0"]
        backbone = torchvision.models.resnet18()
        dira = DiRA(backbone, features=FeaturePyramid(backbone, layers=names))
        with pytest.raises(ValueError, match="outputs differ"):
            to_smp_unet(trained(backbone), trained(dira.head), layers=names)

    def test_maps_from_elsewhere(self) -> None:
        class Shuffled(torchvision.models.ResNet):
            def forward(self, x: Tensor) -> Tensor:
                return super().forward(x.flip(-1))

        block = torchvision.models.resnet.BasicBlock
        backbone, head = u_net(Shuffled(block, [2, 2, 2, 2]))
        with pytest.raises(ValueError, match="outputs differ"):
            to_smp_unet(backbone, head)


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


class TestOfficialCheckpoint:
    """Files laid out as the authors' are, built here from an smp.Unet."""

    @pytest.fixture(params=["resnet50", "resnet18"])
    def unet(self, request: pytest.FixtureRequest) -> nn.Module:
        torch.manual_seed(0)
        return trained(
            smp.Unet(request.param, encoder_weights=None, activation="sigmoid")
        ).eval()

    @pytest.mark.parametrize("whole", [True, False])
    @pytest.mark.parametrize(
        "prefix",
        [
            "",
            "module.",
            "encoder_q.",
            "backbone.",
            "module.encoder_q.",
            "module.backbone.",
        ],
    )
    def test_all_layouts(self, unet, prefix: str, whole: bool, tmp_path) -> None:
        state = {prefix + name: value for name, value in unet.state_dict().items()}
        extra = {
            "module.encoder_k.encoder.conv1.weight": torch.rand(64, 3, 7, 7),
            "module.queue": torch.rand(8, 4),
            "module.encoder_q.fc.0.weight": torch.rand(4, 4),
        }
        file = {**extra, **state}
        whole_file = {"epoch": 3, "arch": "resnet", "state_dict": file, "optimizer": {}}
        torch.save(whole_file if whole else file, tmp_path / "dira.pth")
        checkpoint = load_dira_checkpoint(tmp_path / "dira.pth")
        assert set(checkpoint.used) == set(state)
        assert checkpoint.left_over == list(extra)
        images = torch.rand(2, 3, 64, 64)
        backbone, head = checkpoint.backbone.eval(), checkpoint.head.eval()
        with torch.no_grad():
            expected = unet(images)
        torch.testing.assert_close(
            restore(backbone, head, images), expected, rtol=0, atol=1e-5
        )
        dira = DiRA(backbone, head=head)
        torch.testing.assert_close(dira.restore(images), expected, rtol=0, atol=1e-5)

    def test_into_a_backbone(self, unet, tmp_path) -> None:
        torch.save(unet.state_dict(), tmp_path / "dira.pth")
        backbone = headless(torchvision.models.get_model(unet.name[2:])).eval()
        checkpoint = load_dira_checkpoint(tmp_path / "dira.pth", backbone)
        assert checkpoint.backbone is backbone
        images = torch.rand(2, 3, 64, 64)
        torch.testing.assert_close(
            restore(backbone, checkpoint.head.eval(), images),
            unet(images).detach(),
            rtol=0,
            atol=1e-5,
        )

    @pytest.mark.parametrize("prefix", ["encoder_q.", "module.encoder_q.encoder."])
    def test_encoder_alone(self, prefix: str, tmp_path) -> None:
        resnet = trained(torchvision.models.resnet50(num_classes=3)).eval()
        state = {prefix + name: value for name, value in resnet.state_dict().items()}
        state["module.encoder_k.conv1.weight"] = torch.rand(64, 3, 7, 7)
        torch.save(state, tmp_path / "dira.pth")
        checkpoint = load_dira_checkpoint(tmp_path / "dira.pth")
        assert checkpoint.head is None
        assert checkpoint.left_over == [
            f"{prefix}fc.weight",
            f"{prefix}fc.bias",
            "module.encoder_k.conv1.weight",
        ]
        resnet.fc = nn.Identity()
        x = torch.rand(2, 3, 64, 64)
        torch.testing.assert_close(checkpoint.backbone.eval()(x), resnet(x))

    @pytest.mark.parametrize("depth", [18, 34, 50, 101, 152])
    def test_the_deepest_that_fits(self, depth: int, tmp_path) -> None:
        resnet = torchvision.models.get_model(f"resnet{depth}")
        torch.save(resnet.state_dict(), tmp_path / "dira.pth")
        checkpoint = load_dira_checkpoint(tmp_path / "dira.pth")
        assert checkpoint.left_over == ["fc.weight", "fc.bias"]

    def test_momentum_encoder_is_left_over(self, tmp_path) -> None:
        resnet = torchvision.models.resnet18().state_dict()
        for twin in ("encoder_k", "encoder_q"):
            state = {f"module.encoder_q.{k}": v + 1 for k, v in resnet.items()}
            state |= {f"module.encoder_k.{k}": v for k, v in resnet.items()}
            state = dict(sorted(state.items(), reverse=twin == "encoder_q"))
            torch.save(state, tmp_path / f"{twin}.pth")
            weight = load_dira_checkpoint(
                tmp_path / f"{twin}.pth"
            ).backbone.conv1.weight
            assert torch.equal(weight, resnet["conv1.weight"] + 1)

    def test_two_encoders_for_one_place(self, tmp_path) -> None:
        state = {"encoder_q.w": torch.rand(2), "backbone.w": torch.rand(2)}
        torch.save(state, tmp_path / "dira.pth")
        with pytest.raises(ValueError, match=r"encoder_q.w and backbone.w"):
            load_dira_checkpoint(tmp_path / "dira.pth")

    @pytest.mark.parametrize("content", [b"", b"hello"])
    def test_no_file_of_pytorch(self, content: bytes, tmp_path) -> None:
        (tmp_path / "dira.pth").write_bytes(content)
        with pytest.raises(ValueError, match=r"dira.pth is not a file of PyTorch"):
            load_dira_checkpoint(tmp_path / "dira.pth")

    def test_safetensors_and_grey_images(self, tmp_path) -> None:
        from safetensors.torch import save_file

        unet = smp.Unet("resnet18", encoder_weights=None, in_channels=1, classes=3)
        save_file(unet.state_dict(), tmp_path / "dira.safetensors")
        checkpoint = load_dira_checkpoint(tmp_path / "dira.safetensors")
        assert checkpoint.backbone.conv1.in_channels == 1
        assert checkpoint.head.out_channels == 3
        assert not checkpoint.left_over

    def test_pickled_code_is_not_run(self, tmp_path) -> None:
        resnet = torchvision.models.resnet18().state_dict()
        file = {"args": argparse.Namespace(lr=1.0), "state_dict": resnet}
        torch.save(file, tmp_path / "dira.pth")
        with pytest.raises(ValueError, match=r"is not run.*state_dict alone"):
            load_dira_checkpoint(tmp_path / "dira.pth")

    @pytest.mark.parametrize(
        ("file", "message"),
        [
            ({"state_dict": {"weight": torch.rand(3)}}, "no ResNet.*weight"),
            ({}, "no tensors"),
            ([1, 2], "holds a list, not a state dict"),
        ],
    )
    def test_something_else(self, file, message: str, tmp_path) -> None:
        torch.save(file, tmp_path / "dira.pth")
        with pytest.raises(ValueError, match=message):
            load_dira_checkpoint(tmp_path / "dira.pth")

    def test_incomplete_decoder(self, unet, tmp_path) -> None:
        state = unet.state_dict()
        del state["segmentation_head.0.bias"], state["decoder.blocks.2.conv1.0.weight"]
        torch.save(state, tmp_path / "dira.pth")
        with pytest.raises(ValueError, match=r"Missing: decoder.blocks.2.*head.0.bias"):
            load_dira_checkpoint(tmp_path / "dira.pth")

    def test_decoder_that_does_not_fit(self, tmp_path) -> None:
        unet = smp.Unet("resnet18", encoder_weights=None)
        state = unet.state_dict()
        state["decoder.blocks.0.conv1.0.weight"] = torch.rand(256, 70, 3, 3)
        torch.save(state, tmp_path / "dira.pth")
        with pytest.raises(ValueError, match=r"\(256, 768, 3, 3\).*\(256, 70, 3, 3\)"):
            load_dira_checkpoint(tmp_path / "dira.pth")


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
