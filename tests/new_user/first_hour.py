"""Plays a new user's first hour, with a wheel and without a checkout.

    python first_hour.py FOLDER            # no extras: what lacks says what to install
    python first_hour.py FOLDER --extras   # after lightly-dira[medical,safetensors]

Makes files in FOLDER, looks at them, pre-trains in a plain loop and in Lightning, ends
and resumes, exports the encoder and fine-tunes it on 20 labels. Whatever fails must
name its cure; anything else ends the script with an error.
"""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path

import pytorch_lightning as pl
import torch
import torchvision
from lightly.loss import NTXentLoss
from lightly.models.modules import MoCoProjectionHead
from lightly.models.utils import deactivate_requires_grad, update_momentum
from lightly.transforms import MoCoV2Transform
from made_files import make_files
from torch import nn
from torch.utils.data import DataLoader

import lightly_dira
from lightly_dira import DiRA, DiRATransform
from lightly_dira.data import ImageFiles, VolumeFiles
from lightly_dira.lightning import DiRAMixin
from lightly_dira.training import watch
from lightly_dira.weights import (
    Inputs,
    export_encoder,
    from_pretrained,
    save_pretrained,
)


class MoCo(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        resnet = torchvision.models.resnet18()
        self.backbone = nn.Sequential(*list(resnet.children())[:-1])
        self.projection_head = MoCoProjectionHead(512, 512, 128)
        self.backbone_momentum = copy.deepcopy(self.backbone)
        self.projection_head_momentum = copy.deepcopy(self.projection_head)
        deactivate_requires_grad(self.backbone_momentum)
        deactivate_requires_grad(self.projection_head_momentum)
        self.criterion = NTXentLoss(memory_bank_size=(256, 128))

    def training_step(self, batch, batch_idx):
        update_momentum(self.backbone, self.backbone_momentum, m=0.99)
        update_momentum(self.projection_head, self.projection_head_momentum, m=0.99)
        x_query, x_key = batch[0]
        query = self.projection_head(self.backbone(x_query).flatten(start_dim=1))
        with torch.no_grad():
            key = self.backbone_momentum(x_key).flatten(start_dim=1)
            key = self.projection_head_momentum(key)
        return self.criterion(query, key)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.03)


class DiRAMoCo(DiRAMixin, MoCo):
    adversarial_start_epoch = 1


def main() -> None:
    folder, extras = Path(sys.argv[1]), "--extras" in sys.argv
    assert "site-packages" in lightly_dira.__file__, lightly_dira.__file__
    pl.seed_everything(0)
    if not (folder / "xrays").exists():
        make_files(folder)
    look(folder, extras)
    if extras:
        keep(folder)
        return
    backbone = plain_loop(folder)
    lightning(folder)
    finetune(folder, backbone)
    missing(folder, backbone)
    print("An hour well spent.")


def look(folder: Path, extras: bool) -> None:
    """The preview of each kind of files, or what to install for it."""
    window = ["--window", "0", "4095"]
    said = preview(folder / "xrays", *window)
    assert "40 of 40 that were opened can be used" in said, said
    assert "16 bits, unsigned" in said, said
    for name, options in (("dicom", []), ("volumes", ["--volumes", *HOUNSFIELD])):
        said = preview(folder / name, *options)
        found = "can be used" in said and "Wrote" in said
        lacking = "pip install lightly-dira[medical]" in said
        assert found if extras else lacking, said


HOUNSFIELD = ["--window", "-1000", "3000"]


def preview(folder: Path, *options: str) -> str:
    out = folder.with_suffix(".png")
    command = [sys.executable, "-m", "lightly_dira", folder, *options, "--out", out]
    done = subprocess.run(command, capture_output=True, text=True)
    assert "Traceback" not in done.stderr, done.stderr
    assert out.exists() == (done.returncode == 0), done.stderr
    return done.stdout + done.stderr


def loader(folder: Path) -> DataLoader:
    transform = DiRATransform(MoCoV2Transform(input_size=64), window=(0, 4095))
    dataset = ImageFiles(folder / "xrays", transform)
    return DataLoader(dataset, batch_size=8, shuffle=True, drop_last=True)


def plain_loop(folder: Path) -> nn.Module:
    """The three lines of the README."""
    model, lines = MoCo(), []
    optimizer = model.configure_optimizers()
    dira = DiRA(model.backbone, optimizer)
    watch(dira, every=5, write=lines.append)
    for _ in range(2):
        for batch in loader(folder):
            loss = model.training_step(batch, 0)
            loss = dira(loss, batch)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    assert dira.steps == 10
    assert [line.split(":")[0] for line in lines] == ["step 5, dira", "step 10, dira"]
    return model.backbone


def lightning(folder: Path) -> None:
    """A run that ends, and goes on from its checkpoint."""
    quiet = dict(logger=False, enable_progress_bar=False, accelerator="cpu")
    first = pl.Trainer(max_epochs=1, default_root_dir=folder / "fit", **quiet)
    first.fit(DiRAMoCo(), loader(folder))
    path = Path(first.checkpoint_callback.best_model_path)
    assert path.is_file()
    again = pl.Trainer(max_epochs=2, default_root_dir=folder / "fit", **quiet)
    model = DiRAMoCo()
    again.fit(model, loader(folder), ckpt_path=path)
    assert (model.dira.steps, model.dira.stage) == (10, "dira")


def finetune(folder: Path, backbone: nn.Module) -> None:
    """The exported encoder learns discs and squares from 20 labels."""
    network = torchvision.models.resnet18(num_classes=2)
    weights = export_encoder(backbone, like=network)
    # Of the last layer, which is new, there are no weights.
    keys = network.load_state_dict(weights, strict=False)
    assert set(keys.missing_keys) == {"fc.weight", "fc.bias"}
    assert not keys.unexpected_keys
    files = ImageFiles(folder / "xrays")
    inputs = Inputs.of(loader(folder).dataset.transform, files[0][0])
    images = torch.stack([inputs(files[index][0]) for index in range(40)])
    labels = torch.arange(40) % 2
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    for _ in range(40):
        loss = nn.functional.cross_entropy(network(images[:20]), labels[:20])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        right = (network.eval()(images[20:]).argmax(dim=1) == labels[20:]).sum()
    print(f"{right} of 20 held-out images are classified correctly")
    assert right > 13


def missing(folder: Path, backbone: nn.Module) -> None:
    """Each door to an optional package names the extra that opens it."""

    def evaluation() -> None:
        import lightly_dira.evaluation.probes  # noqa: F401

    for name, door in (
        ("medical", lambda: VolumeFiles(folder / "volumes")[0]),
        ("medical", lambda: ImageFiles(folder / "dicom")[0]),
        ("safetensors", lambda: save_pretrained(folder / "weights", backbone)),
        ("evaluation", evaluation),
    ):
        try:
            door()
        except ImportError as error:
            assert f"pip install lightly-dira[{name}]" in str(error), error
        else:
            raise AssertionError(f"{name} was not needed")


def keep(folder: Path) -> None:
    """With the extras weights go to a colleague, who feeds them alike."""
    backbone = torchvision.models.resnet18()
    scan = ImageFiles(folder / "dicom")[0][0]
    inputs = Inputs.of(DiRATransform(input_size=64), scan)
    save_pretrained(folder / "weights", backbone, DiRA(backbone), inputs=inputs)
    fresh = torchvision.models.resnet18()
    _, again = from_pretrained(folder / "weights", fresh, return_inputs=True)
    assert again == inputs
    image = again(scan)[None]
    assert fresh.eval()(image).equal(backbone.eval()(image))


if __name__ == "__main__":
    main()
