# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # DiRA in three dimensions
#
# CT and MRI are volumes. The three lines are the same for them: `DiRATransform` takes
# `spatial_dims=3`, and `DiRA` sees by the backbone's convolutions that it encodes
# volumes. This notebook pre-trains a small ResNet of MONAI on cubes of a brain MRI that
# come with `nilearn`, and then segments grey and white matter with it. It takes about
# three minutes on two CPU cores and needs `pip install lightly-dira[volumes]`.

# %%
# %matplotlib inline
import logging
import warnings

import matplotlib.pyplot as plt
import pandas as pd
import torch
import torchvision
from lightly.loss import NegativeCosineSimilarity
from lightly.models.modules import SimSiamPredictionHead, SimSiamProjectionHead
from monai import transforms as mt
from monai.networks.nets import ViT, resnet10
from torch import nn
from torch.utils.data import DataLoader, Subset, default_collate

from lightly_dira import DiRA, DiRALoss, DiRATransform
from lightly_dira.evaluation.data import MNI152Cubes
from lightly_dira.evaluation.finetuning import finetune_unet, score_unet
from lightly_dira.evaluation.labelled import LabelledImages, Samples
from lightly_dira.features import FeaturePyramid
from lightly_dira.transforms import (
    VolumePipeline,
    orthogonal_slices,
    transvw_mixture,
)

warnings.simplefilter("ignore")
logging.getLogger("monai").setLevel(logging.ERROR)
torch.manual_seed(0)
cubes = MNI152Cubes("train")
cubes.cubes.shape, cubes.cubes.dtype

# %% [markdown]
# ## The first line: the transform
#
# Any transform of volumes can be wrapped: MONAI's, torchio's, albumentations' or your
# own callable. Here it is one of MONAI. Each view shares every geometric draw with its
# target (crop, flip, rotation); grey levels and distortions change the view only.
# Pictures of volumes show three middle slices: across D, across H and across W.

# %%
base = mt.Compose(
    [
        mt.EnsureChannelFirst(channel_dim="no_channel"),
        mt.ScaleIntensityRange(0, 255, 0, 1),
        mt.RandSpatialCrop((32, 32, 32), random_size=False),
        mt.RandFlip(0.5, 2),
        mt.RandRotate90(0.5, spatial_axes=(1, 2)),
        mt.RandGaussianNoise(0.5, std=0.1),
    ]
)
transform = DiRATransform(base, spatial_dims=3)
transform.preview(cubes.cubes[5], n=4)

# %% [markdown]
# Without a transform, `DiRATransform(spatial_dims=3)` crops, flips and bends grey
# levels by a pipeline of its own, `VolumePipeline`, which is several times faster than
# such steps one by one. The distortions of both are those of TransVW: an elastic
# deformation, then exchanged blocks, a curve of grey levels, noise in a block, or noise
# around one. For this short run the elastic step, which takes longest to undo, is left
# out.

# %%
pipeline = VolumePipeline((32, 32, 32), scale=(0.9, 1.4), inverted=0.0)
distortion = transvw_mixture(displacement=0)
transform = DiRATransform(pipeline, distortion=distortion, spatial_dims=3)
transform.preview(cubes.cubes[5], n=4)

# %% [markdown]
# ## The second line: any 3-D encoder
#
# DiRA finds the last feature map of every resolution in a dry pass. Strides may differ
# by axis, as in torchvision's video ResNets, and tokens may lie in three dimensions.

# %%
encoders = {
    "MONAI ResNet-10": resnet10(n_input_channels=1, feed_forward=False),
    "torchvision r3d_18": torchvision.models.video.r3d_18(),
    "MONAI ViT": ViT(1, (32, 32, 32), (8, 8, 8), num_layers=4, classification=False),
}
for name, encoder in encoders.items():
    size = (32, 32, 32) if "ViT" in name else None
    print(name, FeaturePyramid(encoder, input_size=size), sep="\n")


# %% [markdown]
# ## The third line: the loss
#
# The loop is Lightly's SimSiam. A squared error is small beside most losses, so
# restoration gets the weight 100.


# %%
class SimSiam(nn.Module):
    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone
        self.projection_head = SimSiamProjectionHead(128, 512, 128)
        self.prediction_head = SimSiamPredictionHead(128, 64, 128)

    def forward(self, x):
        z = self.projection_head(self.backbone(x))
        return z.detach(), self.prediction_head(z)


torch.manual_seed(0)
model = SimSiam(resnet10(n_input_channels=1, feed_forward=False, widen_factor=0.25))
dataset = MNI152Cubes("train", transform)
dataset = Subset(dataset, 8 * list(range(len(dataset))))  # 8 crops of each in an epoch
loader = DataLoader(dataset, batch_size=8, shuffle=True, drop_last=True)
criterion = NegativeCosineSimilarity()
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
schedule = torch.optim.lr_scheduler.OneCycleLR(
    optimizer, 3e-3, total_steps=4 * len(loader)
)
weights = DiRALoss(restorative_weight=100, adversarial_weight=0.01)
dira = DiRA(model.backbone, optimizer, loss=weights, adversarial_start=40)

terms = []
for _ in range(4):
    for batch in loader:
        x0, x1 = batch[0]
        (z0, p0), (z1, p1) = model(x0), model(x1)
        loss = 0.5 * (criterion(z0, p1) + criterion(z1, p0))
        loss = dira(loss, batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        terms.append([term.item() for term in dira.components[1:]])

names = ["discriminative", "restorative", "adversarial", "discriminator"]
curves = pd.DataFrame(terms, columns=names).rolling(5).mean()
axes = curves.plot(
    subplots=True, layout=(1, 4), figsize=(11, 2.4), legend=False, title=names
)
for axis in axes.flat:
    axis.set_xlabel("step")
plt.tight_layout()

# %% [markdown]
# ## Restored, where it was never trained
#
# The cubes below come from another part of the brain. `dira.restore` returns restored
# volumes. After 92 steps they tell brain from air and where tissue is to be seen, and
# no folds: where a network cannot tell what was there, a squared error makes it answer
# with the mean of what may have been. They are nearer to the clean cubes than the mean
# image, which is what nothing learnt at all would give. Longer runs find coarse shapes
# ([hippocampi](../results/hippocampus/restored.png)).

# %%
torch.manual_seed(2)
only_cropped = VolumePipeline((32, 32, 32), scale=(1.0, 1.0), flip=0.0, curve=0.0)
held_out = MNI152Cubes(
    "test", DiRATransform(only_cropped, distortion=distortion, spatial_dims=3)
)
views = default_collate([held_out[index][0] for index in 16 * list(range(15))])
rows = {
    "clean": views.target,
    "distorted": views[0],
    "restored": dira.restore(views[0]),
    "mean image": views.target.mean(dim=0, keepdim=True).expand_as(views.target),
}
figure, axes = plt.subplots(4, 4, figsize=(11, 5), layout="constrained")
for line, (name, volumes) in zip(axes, rows.items(), strict=True):
    line[0].set_ylabel(name)
    for axis, image in zip(line, orthogonal_slices(volumes[:20:5])[:, 0], strict=True):
        axis.imshow(image, cmap="gray", vmin=0, vmax=1)
        axis.set(xticks=[], yticks=[])
pd.Series(
    {name: (v - views.target).square().mean().item() for name, v in rows.items()},
    name="mean squared error",
).iloc[1:].round(4)

# %% [markdown]
# ## A network that segments
#
# `finetune_unet` makes a U-Net of the encoder: with `head=dira.head` it starts from the
# restoration decoder as well. `score_unet(window=...)` slides a window over volumes of
# any size, as MONAI's inferer does, and adds MONAI's surface distances, in voxels.


# %%
def labelled(part):
    data = LabelledImages(part.cubes, masks=part.tissues, spatial_dims=3)
    return Samples(data, part.cubes.shape[1:], "mask")


small = labelled(MNI152Cubes("train", size=(24, 32, 32)))
train, val = Subset(small, range(0, 80, 10)), Subset(small, range(5, 80, 20))
test = Subset(labelled(MNI152Cubes("test")), range(0, 15, 3))
scores = {}
for name, head in (("new decoder", None), ("pre-trained decoder", dira.head)):
    unet = finetune_unet(
        model.backbone, train, val, classes=3, head=head, steps=30, batch_size=4
    )
    scores[name] = score_unet(unet, test, window=(24, 32, 32))
pd.DataFrame(scores).T.round(3)

# %% [markdown]
# A run of three minutes shows that everything works, not what it is worth: with one
# seed and eight labelled cubes nothing here tells which decoder is better. The rows of
# [`examples/results`](../results/README.md) compare several seeds.
