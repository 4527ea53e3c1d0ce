"""Pre-trains SimSiam, bare and with DiRA, and compares them: 3 minutes, two CPU cores.

    python examples/quickstart.py                  # brain MRI that comes with nilearn
    python examples/quickstart.py --data FOLDER    # your own images
    python examples/quickstart.py --data FOLDER --volumes    # volumes, needs MONAI

Prints the loss terms by epoch and, for the brain, what frozen encoders learn of grey
and white matter from ten slices with masks. Writes quickstart.png (restored images),
quickstart_features.png (what the encoders tell apart), quickstart.csv and .pt.
"""

from __future__ import annotations

import argparse
import copy
import csv
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torchvision
from lightly.loss import NegativeCosineSimilarity
from lightly.models.modules import SimSiamPredictionHead, SimSiamProjectionHead
from lightly.transforms import SimSiamTransform
from lightly.transforms.utils import IMAGENET_NORMALIZE
from pytorch_lightning import seed_everything
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset, default_collate
from torchvision.transforms import v2
from tqdm import tqdm

from lightly_dira import DiRA, DiRALoss, DiRATransform, DiRAViews
from lightly_dira.data import ImageFiles, VolumeFiles
from lightly_dira.data.white import parse_window
from lightly_dira.evaluation.data import MNI152Slices
from lightly_dira.evaluation.dense import dense_probe, encode_pixels
from lightly_dira.evaluation.feature_picture import draw_features
from lightly_dira.evaluation.labelled import Samples
from lightly_dira.evaluation.read_volumes import read_mni152
from lightly_dira.features import FeaturePyramid
from lightly_dira.models import light_head
from lightly_dira.transforms import (
    VolumePipeline,
    orthogonal_slices,
    published_mixture,
    transvw_mixture,
)

# Slices with masks, for the probe: few, as this is what pre-training is for.
LABELLED = 10
TERMS = ("discriminative", "restorative")


class SimSiam(nn.Module):
    def __init__(self, backbone: nn.Module, features: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.projection_head = SimSiamProjectionHead(features, 512, 128)
        self.prediction_head = SimSiamPredictionHead(128, 64, 128)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = self.projection_head(self.backbone(x).flatten(start_dim=1))
        return z.detach(), self.prediction_head(z)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of images, or of volumes")
    parser.add_argument(
        "--window", nargs="+", default=(), help="black and white, or percentiles"
    )
    parser.add_argument("--volumes", action="store_true", help="three dimensions")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, help="16, of volumes 8")
    parser.add_argument("--input-size", type=int, help="48 pixels, or 32 voxels")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.volumes and options.data is None:
        parser.error("--volumes needs --data FOLDER")
    if options.data and Path.cwd().is_relative_to(options.data.resolve()):
        parser.error("run it elsewhere: its pictures would lie among the images")
    options.batch_size = options.batch_size or (8 if options.volumes else 16)
    options.input_size = options.input_size or (32 if options.volumes else 48)
    name = "quickstart_volumes" if options.volumes else "quickstart"
    seed_everything(options.seed)  # Lightly's blur draws from NumPy
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    window = parse_window(options.window)
    load = load_volumes if options.volumes else load_images
    train, held_out = load(options.data, options.input_size, window)
    print(f"{len(train)} items to train on, {len(held_out)} held out")
    if len(train) < options.batch_size:
        parser.error(f"they do not fill a batch: --batch-size {len(train)} or less")
    loader = DataLoader(train, options.batch_size, shuffle=True, drop_last=True)

    if options.volumes:
        from monai.networks.nets import resnet10

        backbone = resnet10(n_input_channels=1, feed_forward=False, widen_factor=0.25)
        model = SimSiam(backbone, 128).to(device)
    else:
        resnet = torchvision.models.resnet18()
        model = SimSiam(nn.Sequential(*list(resnet.children())[:-1]), 512).to(device)
    encoders = {"untrained": copy.deepcopy(model.backbone)}
    bare = copy.deepcopy(model)
    optimizer = make_optimizer(model)
    dira = make_dira(model.backbone, optimizer)
    history = pretrain(model, optimizer, loader, options.epochs, device, dira)

    torch.save(
        {"backbone": model.backbone.state_dict(), "head": dira.head.state_dict()},
        f"{name}.pt",
    )
    found = report_restoration(dira, held_out, history, device, name)
    print("The same views, without DiRA:")
    seed_everything(options.seed)
    pretrain(bare, make_optimizer(bare), loader, options.epochs, device)
    encoders |= {"bare": bare.backbone, "DiRA": model.backbone}
    if options.data is None:
        found |= report_tissues(encoders, options.input_size)
        # Sharper than what they were trained on.
        _, held_out = load_images(None, 2 * options.input_size, None)
    else:
        print("A folder has no tissue labels: see examples/compare --data.")
    draw_encoders(encoders, held_out, name)
    with open(f"{name}.csv", "w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(
            [("what", "value"), *((what, f"{v:.4f}") for what, v in found.items())]
        )


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-3)


def make_dira(backbone: nn.Module, optimizer: torch.optim.Optimizer) -> DiRA:
    """Restores a quarter of each batch by a light head, without an adversary.

    Its error is near 0.01 on such small images: a weight of 1000 makes it count within
    210 steps. It was chosen on slices (the split "val") that are not reported.
    """
    features, head = FeaturePyramid(backbone), None
    if features.spatial_dims == 2:  # that of volumes is as heavy as its encoder
        head = light_head(features, cost=0.35)
        head = head.to(next(backbone.parameters()).device)
    return DiRA(
        backbone,
        optimizer,
        features=features,
        head=head,
        loss=DiRALoss(restorative_weight=1000.0),
        restored_share=0.25,
        adversarial_start=None,
    )


def pretrain(
    model: SimSiam,
    optimizer: torch.optim.Optimizer,
    loader: DataLoader,
    epochs: int,
    device: torch.device,
    dira: DiRA | None = None,
) -> list[list[float]]:
    """Trains, prints the terms of DiRA by epoch, and returns them."""
    criterion = NegativeCosineSimilarity()
    steps = epochs * len(loader)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    history = []
    if dira is not None:
        print("  ".join(f"{name:>14}" for name in ("epoch", "stage", *TERMS)))
    with tqdm(total=steps, unit="step") as progress:
        for epoch in range(epochs):
            stage, terms = "" if dira is None else dira.stage, []
            for batch in loader:
                x0, x1 = (view.to(device) for view in batch[0])
                z0, p0 = model(x0)
                z1, p1 = model(x1)
                loss = 0.5 * (criterion(z0, p1) + criterion(z1, p0))
                if dira is not None:
                    loss = dira(loss, batch)
                    terms.append(torch.stack(dira.components[1:3]))
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                scheduler.step()
                progress.update()
            if terms:
                history.append(torch.stack(terms).mean(dim=0).tolist())
                numbers = "  ".join(f"{value:14.4f}" for value in history[-1])
                tqdm.write(f"{epoch:14}  {stage:>14}  {numbers}")
    return history


def load_images(folder: Path | None, size: int, window) -> tuple[Dataset, Dataset]:
    """Returns images to train on, and others that are only resized and distorted."""
    transform = DiRATransform(SimSiamTransform(input_size=size), window=window)
    only_distorted = DiRATransform(
        v2.Compose([v2.Resize((size, size)), *to_tensor()]),
        distortion=published_mixture(0.5, 0.1, 0.4),
        window=window,
    )
    if folder is None:
        return MNI152Slices("train", transform), MNI152Slices("test", only_distorted)
    return split(ImageFiles(folder, transform), ImageFiles(folder, only_distorted))


def load_volumes(folder: Path, size: int, window) -> tuple[Dataset, Dataset]:
    """Returns volumes to train on, and others that are only cropped and distorted."""
    sides = (size, size, size)
    # Without the elastic step, which takes longer to learn.
    distort = transvw_mixture(displacement=0)
    transform, only_distorted = (
        DiRATransform(pipeline, distortion=distort, window=window, spatial_dims=3)
        for pipeline in (
            VolumePipeline(sides, scale=(0.9, 1.4), inverted=0.0),
            VolumePipeline(sides, scale=(1.0, 1.0), flip=0.0, curve=0.0),
        )
    )
    return split(VolumeFiles(folder, transform), VolumeFiles(folder, only_distorted))


def split(images: Dataset, others: Dataset) -> tuple[Dataset, Dataset]:
    if len(images) < 10:
        raise SystemExit(f"expected at least 10 files, got {len(images)}")
    order = torch.randperm(len(images)).tolist()
    cut = max(1, len(order) // 5)
    return Subset(images, order[cut:]), Subset(others, order[:cut])


def to_tensor() -> list[v2.Transform]:
    return [
        v2.ToImage(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(**IMAGENET_NORMALIZE),
    ]


def report_restoration(
    dira: DiRA,
    held_out: Dataset,
    history: list[list[float]],
    device: torch.device,
    name: str,
) -> dict[str, float]:
    """Prints and returns errors on held-out images, and draws them and the terms."""
    chosen = torch.linspace(0, len(held_out) - 1, 64).long().unique().tolist()
    views: DiRAViews = default_collate([held_out[index][0] for index in chosen])
    clean, restored = views.target, dira.restore(views[0].to(device)).cpu()
    distorted = views[0]
    if distorted.ndim == 4:
        mean, std = (torch.tensor(IMAGENET_NORMALIZE[key]) for key in ("mean", "std"))
        distorted = distorted * std[:, None, None] + mean[:, None, None]
        distorted = distorted.mean(dim=1, keepdim=True)

    print(f"Mean squared error on {len(chosen)} held-out images:")
    errors = {
        f"error, {what}": (images - clean).square().mean().item()
        for what, images in (
            ("distorted view", distorted),
            ("mean image", clean.mean(dim=0, keepdim=True)),
            ("restored", restored),
        )
    }
    for what, error in errors.items():
        print(f"  {what:22} {error:.4f}")

    figure = plt.figure(figsize=(10, 6.2), layout="constrained")
    pictures, curves = figure.subfigures(2, 1, height_ratios=[2.1, 1])
    rows = {"clean crop": clean, "distorted view": distorted, "restored": restored}
    count = 8
    if clean.ndim == 5:  # three slices of each volume, across its three axes
        rows = {what: orthogonal_slices(volumes) for what, volumes in rows.items()}
        count = 4
    axes = pictures.subplots(3, count)
    columns = torch.linspace(0, len(chosen) - 1, count).long().tolist()
    for line, (what, images) in zip(axes, rows.items(), strict=True):
        line[0].set_ylabel(what)
        for axis, column in zip(line, columns, strict=True):
            axis.imshow(images[column, 0], cmap="gray", vmin=0, vmax=1)
            axis.set_xticks([])
            axis.set_yticks([])
    for axis, term, values in zip(
        curves.subplots(1, 2), TERMS, zip(*history, strict=True), strict=True
    ):
        axis.plot(range(len(history)), values, marker="o")
        axis.set(title=f"{term} loss", xlabel="epoch", xlim=(-0.5, len(history) - 0.5))
        axis.locator_params("x", integer=True)
    figure.savefig(f"{name}.png", dpi=110)
    print(f"Wrote {name}.png and {name}.pt")
    return errors


def draw_encoders(encoders: dict[str, nn.Module], held_out: Dataset, name: str) -> None:
    """Draws the first three principal components of dense features as colours."""
    chosen = torch.linspace(0, len(held_out) - 1, 6).long().tolist()[1:-1]
    clean = default_collate([held_out[index][0].target for index in chosen])
    images = clean
    if clean.ndim == 4:
        images = v2.functional.normalize(
            clean.expand(-1, 3, -1, -1), **IMAGENET_NORMALIZE
        )
    figure = draw_features(encoders, images, clean)
    figure.savefig(f"{name}_features.png", dpi=110)
    print(f"Wrote {name}_features.png")


def report_tissues(encoders: dict[str, nn.Module], size: int) -> dict[str, float]:
    """Prints and returns the Dice of a per-pixel regression on frozen feature maps."""
    dice = {}
    labelled, held_out = map(read_mni152().split, ("train", "test"))
    few = torch.linspace(0, len(labelled) - 1, LABELLED).long().tolist()
    print(
        "Dice of held-out pixels by a logistic regression on frozen feature maps, from "
        f"{LABELLED} slices with masks:"
    )
    print(f"  {'encoder':12}{'grey matter':>14}{'white matter':>14}{'mean':>8}")
    normalize = v2.Normalize(**IMAGENET_NORMALIZE)
    for name, encoder in encoders.items():
        train, test = (
            encode_pixels(
                nn.Sequential(normalize, encoder),
                Samples(part, size, "mask"),
                pixels=pixels,
                batch_size=8,
            )
            for part, pixels in ((labelled.subset(few), 512), (held_out, 32))
        )
        scores = dense_probe(train, test)
        mean = (scores[1] + scores[2]) / 2
        print(f"  {name:12}{scores[1]:14.3f}{scores[2]:14.3f}{mean:8.3f}")
        dice |= {f"Dice of grey matter, {name}": scores[1]}
        dice |= {f"Dice of white matter, {name}": scores[2]}
    return dice


if __name__ == "__main__":
    main()
