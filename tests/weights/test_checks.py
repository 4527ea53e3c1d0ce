"""Weights that would load but be wrong, and damaged files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torchvision.models import resnet18

from lightly_dira import RestorationHead
from lightly_dira.weights.official import load_dira_checkpoint
from lightly_dira.weights.pretrained import from_pretrained, save_pretrained


class TestWeights:
    def test_not_finite(self, tmp_path: Path) -> None:
        backbone, head = resnet18(), RestorationHead([64, 64, 128, 256, 512])
        backbone.layer1[0].conv1.weight.data[0, 0, 0, 0] = torch.nan
        save_pretrained(tmp_path, backbone, head)
        with pytest.raises(ValueError, match=r"NaN or infinity in layer1.0.conv1"):
            from_pretrained(tmp_path, resnet18())
        torch.save(backbone.state_dict(), tmp_path / "weights.pth")
        with pytest.raises(ValueError, match="NaN or infinity"):
            load_dira_checkpoint(tmp_path / "weights.pth")

    def test_of_another_type(self, tmp_path: Path) -> None:
        path = tmp_path / "weights.pth"
        torch.save(resnet18().half().state_dict(), path)
        with pytest.warns(UserWarning, match=r"stored as torch.float16"):
            load_dira_checkpoint(path)
        state = resnet18().state_dict()
        state["conv1.weight"] = state["conv1.weight"].char()
        torch.save(state, path)
        with pytest.raises(ValueError, match=r"conv1.weight are torch.int8"):
            load_dira_checkpoint(path)

    def test_damaged(self, tmp_path: Path) -> None:
        head = RestorationHead([64, 64, 128, 256, 512])
        save_pretrained(tmp_path, resnet18(), head)
        path = tmp_path / "model.safetensors"
        path.write_bytes(path.read_bytes()[:1000])
        with pytest.raises(ValueError, match="not a file of safetensors"):
            from_pretrained(tmp_path, resnet18())
        with pytest.raises(ValueError, match="not a file of safetensors"):
            load_dira_checkpoint(path)
