"""The card that lies beside weights."""

from __future__ import annotations

import json

import pytest
import torch
from pictures import ramp
from torchvision.models import resnet18
from trained import save

from lightly_dira.weights import Inputs, from_pretrained, save_pretrained


class TestCard:
    def test_hub_reads_it(self, tmp_path) -> None:
        hub = pytest.importorskip("huggingface_hub")
        known = Inputs(3, (64, 64), "percentiles", (0.5,) * 3, (0.2,) * 3)
        save(tmp_path, inputs=known, method="MoCo v2")
        card = hub.ModelCard.load(tmp_path / "README.md")
        assert card.data.library_name == "lightly-dira"
        assert "medical-imaging" in card.data.tags
        for line in (
            "# ResNet, pre-trained with lightly-dira",
            "without labels by MoCo v2, as",
            "| size | 64, 64 |",
            "| window | percentiles |",
            "| restorative_weight | 100 |",
        ):
            assert line in card.text

    def test_that_was_edited_is_kept(self, tmp_path) -> None:
        save(tmp_path)
        assert "Not kept" in (tmp_path / "README.md").read_text()
        (tmp_path / "README.md").write_text("mine")
        save(tmp_path)
        assert (tmp_path / "README.md").read_text() == "mine"

    def test_of_volumes_and_of_compiled_backbones(self, tmp_path) -> None:
        """Found: `read_image` reads no volumes, and no one has an OptimizedModule."""
        backbone = torch.compile(resnet18())
        save_pretrained(tmp_path, backbone, inputs=Inputs(1, (16, 32, 32)))
        card = (tmp_path / "README.md").read_text()
        assert 'inputs(read_volume("scan.nii.gz"))' in card
        assert "import read_volume" in card
        assert "# ResNet, pre-trained" in card
        config = json.loads((tmp_path / "config.json").read_text())
        assert config["backbone"] == "ResNet"

    def test_its_lines_run(self, tmp_path, monkeypatch) -> None:
        import cv2

        save(tmp_path / "weights", inputs=Inputs(3, (64, 64), (0, 4095)))
        card = (tmp_path / "weights/README.md").read_text()
        lines = card.split("```python\n")[1].split("```")[0]
        monkeypatch.chdir(tmp_path)
        cv2.imwrite("scan.png", ramp(size=96))
        names = {"FOLDER": "weights", "resnet18": resnet18}
        exec(lines.replace("backbone = ...", "backbone = resnet18()"), names)
        assert names["features"].shape == (1, 1000)
        # Found: statistics of this one image were used, and kept.
        assert not names["backbone"].training

    def test_pulled_from_a_hub(self, tmp_path) -> None:
        """A cache as `snapshot_download` leaves it, without network."""
        hub = pytest.importorskip("huggingface_hub")
        cache = tmp_path / "models--me--dira"
        commit = "0123456789abcdef0123456789abcdef01234567"
        save(cache / "snapshots" / commit)
        (cache / "refs").mkdir()
        (cache / "refs/main").write_text(commit)
        folder = hub.snapshot_download(
            "me/dira", cache_dir=tmp_path, local_files_only=True
        )
        assert from_pretrained(folder, resnet18()) is not None
