"""Finds the visual words of TransVW: anatomical patterns that recur across patients.

python examples/volumes/visual_words.py --data FOLDER --out WORDS [--window LOW HIGH]

FOLDER holds NIfTI or NumPy files, or folders of DICOM series, one scan of each patient,
all of the same part of the body. An auto-encoder learns what scans look like as a
whole. For each word, a random patient is drawn, those most like it (L2 of the pooled
bottlenecks) and a place in the body, away from air and from earlier places. The cubes
at this place in all these patients are one class, in three sizes each.

WORDS gets word-000.npz, word-001.npz, ...: "cubes" (N, D, H, W) float16 in [0, 1],
"patients", their names (N,), and "place", the centre as fractions of the scan's sides.
Killed and started again it goes on after the last epoch or word, and gives the same.
Train on them with transvw.py.

- [0]: TransVW, 2021, https://arxiv.org/abs/2102.10680
"""

import argparse
import json
import os
import sys
from pathlib import Path

import numpy as np
import torch
from monai.networks.nets import AutoEncoder
from torch.nn import functional as F
from tqdm import tqdm

from lightly_dira.data import VolumeFiles
from lightly_dira.data.pixels import to_pixels, to_tensor
from lightly_dira.data.resizing import resize_volume


class ScanAutoEncoder(AutoEncoder):
    """Restores whole scans from 512 maps, four halvings smaller."""

    def __init__(self):
        super().__init__(
            spatial_dims=3,
            in_channels=1,
            out_channels=1,
            channels=(32, 64, 128, 256, 512),
            strides=(2, 2, 2, 2, 1),
            norm="batch",
            act="relu",
        )

    def embed(self, scans):
        return self.encode(scans).flatten(start_dim=2).mean(dim=2)


parser = argparse.ArgumentParser()
parser.add_argument("--data", required=True, help="folder of scans")
parser.add_argument("--out", type=Path, required=True, help="folder of words")
parser.add_argument("--window", type=float, nargs=2, help="values of black and white")
parser.add_argument("--words", type=int, default=45)
parser.add_argument("--patients", type=int, default=200, help="most like the first")
parser.add_argument(
    "--input-size", type=int, nargs=3, default=(32, 64, 64), help="D H W, voxels"
)
parser.add_argument(
    "--scan-size", type=int, nargs=3, default=(64, 128, 128), help="for auto-encoding"
)
parser.add_argument("--apart", type=float, default=5, help="voxels between places")
parser.add_argument("--shift", type=float, default=10, help="voxels, for sides of 64")
parser.add_argument("--epochs", type=int, default=50, help="of the auto-encoder")
parser.add_argument("--batch-size", type=int, default=4)
parser.add_argument("--seed", type=int, default=0)
options = parser.parse_args()

device = "cuda" if torch.cuda.is_available() else "cpu"
scans = VolumeFiles(options.data)
names = [path.name for path in scans.paths]


def read(number):
    """Returns a scan, (1, D, H, W) in [0, 1]."""
    return to_tensor(to_pixels(scans[number][0], options.window, 3), 3)


def write(path, save):
    """Writes a file whole or not at all."""
    beside = path.with_suffix(".part")
    with beside.open("wb") as file:
        save(file)
    os.replace(beside, path)


def check_options():
    """Exits if the folder holds words of other scans or options."""
    options.out.mkdir(parents=True, exist_ok=True)
    asked = {k: v for k, v in vars(options).items() if k not in ("data", "out")}
    asked = json.loads(json.dumps(asked | {"scans": names}))
    path = options.out / "options.json"
    if not path.exists():
        write(path, lambda file: file.write(json.dumps(asked, indent=2).encode()))
    elif (kept := json.loads(path.read_text())) != asked:
        other = [name for name in asked if kept.get(name) != asked[name]]
        sys.exit(f"{options.out} holds words of other {', '.join(other)}.")


def embed_scans():
    """Trains the auto-encoder and returns an embedding of each scan, (N, 512)."""
    whole = [resize_volume(read(i), options.scan_size) for i in range(len(scans))]
    whole = torch.stack(whole)
    torch.manual_seed(options.seed)
    model = ScanAutoEncoder().to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    path, first = options.out / "autoencoder.pt", 0
    if path.exists():
        kept = torch.load(path, weights_only=True, map_location=device)
        model.load_state_dict(kept["model"])
        optimizer.load_state_dict(kept["optimizer"])
        first = kept["epoch"]
    for epoch in tqdm(range(first, options.epochs), desc="auto-encoder"):
        torch.manual_seed(1000 * options.seed + epoch)
        for part in torch.randperm(len(whole)).split(options.batch_size):
            batch = whole[part].to(device)
            loss = F.mse_loss(model(batch), batch)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        state["epoch"] = epoch + 1
        write(path, lambda file, state=state: torch.save(state, file))
    model.eval()
    with torch.no_grad():
        parts = whole.split(options.batch_size)
        return torch.cat([model.embed(part.to(device)).cpu() for part in parts])


def cut(scan, place, sides):
    """Returns the cube of these sides around a place, moved into the scan."""
    for axis, (fraction, side) in enumerate(zip(place, sides, strict=True), start=1):
        length = min(round(side), scan.shape[axis])
        start = round(fraction * scan.shape[axis] - length / 2)
        start = min(max(start, 0), scan.shape[axis] - length)
        scan = scan.narrow(axis, start, length)
    return resize_volume(scan, options.input_size)


def draw_place(random, scan, earlier):
    """Returns a place, as fractions of the sides, that is neither air nor near others.

    Air is a cube that is half as bright as the scan or darker.
    """
    shape, sides = np.array(scan.shape[1:]), np.array(options.input_size)
    margin = np.minimum(sides / shape, 1) / 2
    for _ in range(1000):
        place = random.uniform(margin, 1 - margin)
        far = all(
            np.linalg.norm((place - other) * shape) >= options.apart
            for other in earlier
        )
        if far and cut(scan, place, sides).mean() > 0.5 * scan.mean():
            return place
    sys.exit(
        f"No room for {len(earlier) + 1} words in scans of {tuple(shape)} voxels: "
        "choose fewer --words or a smaller --apart."
    )


def find_word(number, embeddings, earlier):
    """Returns a word's cubes, their patients and its place."""
    random = np.random.default_rng([options.seed, number])
    first = random.integers(len(names))
    distances = (embeddings - embeddings[first]).norm(dim=1)
    alike = distances.argsort(stable=True)[: options.patients].tolist()
    place = draw_place(random, read(int(first)), earlier)
    cubes, patients = [], []
    for index in alike:
        scan = read(index)
        cubes.append(cut(scan, place, options.input_size))
        for _ in "12":
            # Sides of 50 to 79 voxels where the cube has 64.
            sides = random.uniform(50 / 64, 79 / 64) * np.array(options.input_size)
            shift = options.shift / 64 * np.array(options.input_size)
            moved = place + random.uniform(-shift, shift) / scan.shape[1:]
            cubes.append(cut(scan, moved, sides))
        patients += [names[index]] * 3
    cubes = torch.cat(cubes).to(torch.float16).numpy()
    return {"cubes": cubes, "patients": np.array(patients), "place": place}


check_options()
embeddings, places = None, []
for number in tqdm(range(options.words), desc="words"):
    path = options.out / f"word-{number:03}.npz"
    if not path.exists():
        embeddings = embed_scans() if embeddings is None else embeddings
        word = find_word(number, embeddings, places)
        write(path, lambda file, word=word: np.savez(file, **word))
    places.append(np.load(path)["place"])
print(f"{options.words} words of {min(options.patients, len(names))} patients")
