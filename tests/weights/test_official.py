"""Files laid out as the authors' are read, and no code in them is run."""

from __future__ import annotations

import argparse

import pytest
import segmentation_models_pytorch as smp
import torch
import torchvision
from backbones import headless
from torch import nn
from trained import restore, trained

from lightly_dira import DiRA
from lightly_dira.weights.official import load_dira_checkpoint


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
            ({"state_dict": {"conv1.weight": torch.ones(())}}, "no ResNet.*conv1"),
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
