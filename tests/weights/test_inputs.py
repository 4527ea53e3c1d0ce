"""What an encoder was fed with: measured, kept, given back, and shown in a card."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from lightly.transforms import MoCoV2Transform
from torchvision.models import resnet18

from lightly_dira import DiRA, DiRALoss, DiRATransform, DiRAViews
from lightly_dira.transforms import Sequential
from lightly_dira.weights import Inputs, from_pretrained, save_pretrained


def scan(side: int = 96) -> np.ndarray:
    ramp = np.linspace(0, 4095, side * side).reshape(side, side)
    return ramp.astype(np.uint16)


class TestInputs:
    def test_are_measured(self) -> None:
        transform = DiRATransform(MoCoV2Transform(input_size=64), window=(0, 4095))
        inputs = Inputs.of(transform, scan())
        assert (inputs.channels, inputs.size) == (3, (64, 64))
        assert inputs.window == (0, 4095)
        assert inputs.mean == pytest.approx((0.485, 0.456, 0.406))

    def test_are_those_of_views(self) -> None:
        """A transform that only resizes gives exactly what `Inputs` gives."""
        from lightly.transforms.utils import IMAGENET_NORMALIZE
        from torchvision.transforms import v2

        steps = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
        steps += [v2.Normalize(**IMAGENET_NORMALIZE)]
        transform = DiRATransform(
            v2.Compose(steps), window=(0, 4095), distortion=Sequential([])
        )
        inputs = Inputs.of(transform, scan())
        assert inputs(scan()).shape == (3, 96, 96)
        assert torch.allclose(inputs(scan()), transform(scan())[0], atol=1e-3)

    def test_of_volumes(self) -> None:
        transform = DiRATransform(spatial_dims=3, window=(-1000, 400), input_size=32)
        volume = np.full((40, 50, 60), 400, np.float32)
        inputs = Inputs.of(transform, volume)
        assert (inputs.channels, inputs.size, inputs.mean) == (1, (32, 32, 32), ())
        assert inputs(volume).eq(1).all()

    def test_of_albumentations(self) -> None:
        import albumentations as A
        from albumentations.pytorch import ToTensorV2

        steps = A.Compose([A.Resize(32, 32), A.Normalize(), ToTensorV2()])
        inputs = Inputs.of(DiRATransform(steps), np.zeros((40, 40, 3), np.uint8))
        assert inputs.mean == pytest.approx((0.485, 0.456, 0.406), abs=1e-3)

    @pytest.mark.parametrize("window", [None, (0, 4095)])
    def test_of_albumentations_and_floats(self, window) -> None:
        """Found: A.Normalize divided floats in [0, 1] by 255 again."""
        import albumentations as A
        from albumentations.pytorch import ToTensorV2

        steps = A.Compose([A.Normalize(), ToTensorV2()])
        transform = DiRATransform(steps, window=window, distortion=Sequential([]))
        image = scan() if window else scan().astype(np.float32) / 4095
        inputs = Inputs.of(transform, image)
        assert torch.allclose(inputs(image), transform(image)[0], atol=1e-3)

    @pytest.mark.parametrize("how", ["image", "min_max"])
    def test_normalised_by_each_image(self, how: str) -> None:
        """Found: the fixed numbers were kept, which were not applied."""
        import albumentations as A
        from albumentations.pytorch import ToTensorV2

        steps = A.Compose([A.Normalize(normalization=how), ToTensorV2()])
        transform = DiRATransform(steps, distortion=Sequential([]))
        image = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        if how == "min_max":  # these are in [0, 1]
            assert Inputs.of(transform, image).mean == ()
        else:
            with pytest.raises(ValueError, match="normalise by fixed numbers"):
                Inputs.of(transform, image)

    def test_windows_of_numpy(self, tmp_path) -> None:
        """Found: they were kept as text."""
        window = (np.int64(0), np.int64(4095))
        inputs = Inputs.of(DiRATransform(window=window, input_size=32), scan())
        save_pretrained(tmp_path, resnet18(), inputs=inputs)
        _, again = from_pretrained(tmp_path, resnet18(), return_inputs=True)
        assert again.window == (0, 4095)
        assert again(scan()).equal(inputs(scan()))

    def test_other_channels(self) -> None:
        with pytest.raises(ValueError, match="grey image or one of 3 channels, got 2"):
            Inputs(3, (32, 32))(np.zeros((40, 40, 2), np.uint8))


def save(folder: Path, **options: object) -> DiRA:
    backbone = resnet18()
    optimizer = torch.optim.SGD(backbone.parameters(), lr=0.1)
    loss = DiRALoss(restorative_weight=100.0)
    dira = DiRA(backbone, optimizer, loss=loss, adversarial_start=None)
    views = DiRAViews(torch.rand(2, 2, 3, 64, 64), torch.rand(2, 1, 64, 64))
    x0, x1 = views
    dira((backbone(x0) - backbone(x1)).square().mean(), views).backward()
    optimizer.step()
    save_pretrained(folder, backbone, dira, **options)
    return dira


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

    def test_its_lines_run(self, tmp_path, monkeypatch) -> None:
        import cv2

        save(tmp_path / "weights", inputs=Inputs(3, (64, 64), (0, 4095)))
        card = (tmp_path / "weights/README.md").read_text()
        lines = card.split("```python\n")[1].split("```")[0]
        monkeypatch.chdir(tmp_path)
        cv2.imwrite("scan.png", scan())
        names = {"FOLDER": "weights", "resnet18": resnet18}
        exec(lines.replace("backbone = ...", "backbone = resnet18()"), names)
        assert names["features"].shape == (1, 1000)

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
