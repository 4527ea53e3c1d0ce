"""Views made on the device by kornia, each with its own draws: SimSiam with DiRA.

Needs `pip install "lightly-dira[kornia]"`. The data set only loads: crops, flips,
colours and the distortion run on the accelerator, a batch at a time.

python examples/pytorch/device_kornia.py [--data FOLDER] [--epochs N]
"""

import argparse

import torch
import torchvision
from kornia import augmentation as K
from lightly.loss import NegativeCosineSimilarity
from lightly.models.modules import SimSiamPredictionHead, SimSiamProjectionHead
from torch import nn

from lightly_dira import DiRA
from lightly_dira.data import ImageFiles, ToPixels
from lightly_dira.evaluation.data import MNI152Slices
from lightly_dira.transforms import DiRABatchTransform

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


class SimSiam(nn.Module):
    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone
        self.projection_head = SimSiamProjectionHead(512, 512, 128)
        self.prediction_head = SimSiamPredictionHead(128, 64, 128)

    def forward(self, x):
        f = self.backbone(x).flatten(start_dim=1)
        z = self.projection_head(f)
        p = self.prediction_head(z)
        z = z.detach()
        return z, p


parser = argparse.ArgumentParser()
parser.add_argument("--data", help="folder of images; the MNI152 brain without one")
parser.add_argument("--epochs", type=int, default=10)
parser.add_argument("--input-size", type=int, default=64, help="pixels")
options = parser.parse_args()

resnet = torchvision.models.resnet18()
backbone = nn.Sequential(*list(resnet.children())[:-1])
model = SimSiam(backbone)

device = "cuda" if torch.cuda.is_available() else "cpu"
model.to(device)

pixels = ToPixels(2 * options.input_size)  # one size for all images of a batch
if options.data:
    dataset = ImageFiles(options.data, pixels)
else:
    dataset = MNI152Slices("train", transform=pixels)

dataloader = torch.utils.data.DataLoader(
    dataset,
    batch_size=32,
    shuffle=True,
    drop_last=True,
)

make_views = DiRABatchTransform(  # DiRA: the first line
    K.AugmentationSequential(
        K.RandomResizedCrop((options.input_size,) * 2, scale=(0.2, 1.0)),
        K.RandomHorizontalFlip(),
        K.ColorJiggle(0.4, 0.4, 0.4, 0.1, p=0.8),
        K.RandomGrayscale(p=0.2),
        K.RandomGaussianBlur((5, 5), (0.1, 2.0), p=0.5),
        K.Normalize(mean=torch.tensor(MEAN), std=torch.tensor(STD)),
    )
).to(device)

criterion = NegativeCosineSimilarity()
optimizer = torch.optim.SGD(model.parameters(), lr=0.06)
dira = DiRA(model.backbone, optimizer)  # DiRA: the second line

print("Starting Training")
for epoch in range(options.epochs):
    total_loss = 0
    for images, *_ in dataloader:
        images = images.to(device)
        images = images.expand(-1, 3, -1, -1)  # grey images become RGB
        x0, x1 = views = make_views(images)
        z0, p0 = model(x0)
        z1, p1 = model(x1)
        loss = 0.5 * (criterion(z0, p1) + criterion(z1, p0))
        loss = dira(loss, views)  # DiRA: the third line
        total_loss += loss.detach()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    avg_loss = total_loss / len(dataloader)
    print(f"epoch: {epoch:>02}, loss: {avg_loss:.5f}")
