"""TransVW around a 3-D U-Net of MONAI, plus the three lines of DiRA.

TransVW restores distorted cubes and tells which visual word they show, so DiRA makes no
decoder: it adds the adversary, and all three parts are there.

python examples/volumes/visual_words.py --data FOLDER --out WORDS
python examples/volumes/transvw.py --words WORDS [--epochs N]
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from monai.networks.nets import BasicUNet
from torch import nn
from torch.utils.data import DataLoader, Dataset

from lightly_dira import Adversary, DiRATransform
from lightly_dira.transforms import VolumePipeline


class TransVW(nn.Module):
    def __init__(self, unet, words):
        super().__init__()
        self.backbone = unet
        self.word_head = nn.Linear(256, words)

    def forward(self, x):
        unet = self.backbone
        x0 = unet.conv_0(x)
        x1 = unet.down_1(x0)
        x2 = unet.down_2(x1)
        x3 = unet.down_3(x2)
        x4 = unet.down_4(x3)
        word = self.word_head(x4.flatten(start_dim=2).mean(dim=2))
        u = unet.upcat_4(x4, x3)
        u = unet.upcat_3(u, x2)
        u = unet.upcat_2(u, x1)
        u = unet.upcat_1(u, x0)
        return unet.final_conv(u).sigmoid(), word


class VisualWords(Dataset):
    """Cubes and the numbers of their words."""

    def __init__(self, folder, transform):
        files = sorted(Path(folder).glob("word-*.npz"))
        self.cubes = [cube for file in files for cube in np.load(file)["cubes"]]
        lengths = [len(np.load(file)["patients"]) for file in files]
        self.labels = np.repeat(np.arange(len(files)), lengths)
        self.transform = transform

    def __len__(self):
        return len(self.cubes)

    def __getitem__(self, index):
        cube = self.cubes[index].astype(np.float32)
        return self.transform(cube), int(self.labels[index])


parser = argparse.ArgumentParser()
parser.add_argument("--words", required=True, help="folder that visual_words.py wrote")
parser.add_argument("--epochs", type=int, default=10)
parser.add_argument("--batch-size", type=int, default=16)
options = parser.parse_args()

# The cubes are the crops; by default volumes are distorted as in TransVW.
size = np.load(Path(options.words) / "word-000.npz")["cubes"].shape[1:]
pipeline = VolumePipeline(size, scale=(1.0, 1.0), flip=0.0, curve=0.0)
transform = DiRATransform(pipeline, spatial_dims=3)  # DiRA: the first line
dataset = VisualWords(options.words, transform)

unet = BasicUNet(
    in_channels=1, out_channels=1, features=(16, 32, 64, 128, 256, 16), norm="batch"
)
model = TransVW(unet, int(dataset.labels.max()) + 1)

device = "cuda" if torch.cuda.is_available() else "cpu"
model.to(device)

dataloader = DataLoader(
    dataset, batch_size=options.batch_size, shuffle=True, drop_last=True
)

restoration = nn.MSELoss()
classification = nn.CrossEntropyLoss()
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
dira = Adversary(model.backbone, optimizer)  # DiRA: the second line

print("Starting Training")
for epoch in range(options.epochs):
    total_loss = 0
    for views, labels in dataloader:
        distorted, clean = views[0].to(device), views.targets[0].to(device)
        restored, word = model(distorted)
        loss = restoration(restored, clean)
        loss = loss + 0.01 * classification(word, labels.to(device))
        loss = dira(loss, restored, clean)  # DiRA: the third line
        total_loss += loss.detach()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    avg_loss = total_loss / len(dataloader)
    print(f"epoch: {epoch:>02}, loss: {avg_loss:.5f}")
