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
# # Your own backbone and your own data
#
# This notebook starts from what a hospital has: 16-bit images or DICOM files, and a
# table of labels. It trains a backbone that is not a ResNet, and ends with weights that
# other libraries load. It first writes slices of the MNI152 brain to a folder, so that
# it runs offline; replace them with your own folder and table.

# %%
# %matplotlib inline
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pydicom
import timm
import torch
from lightly.loss import BarlowTwinsLoss
from lightly.models.modules import BarlowTwinsProjectionHead
from lightly.transforms import SimCLRTransform
from nilearn import datasets
from PIL import Image
from pydicom.data import get_testdata_file
from torch import nn
from torch.utils.data import DataLoader

from lightly_dira import DiRA, DiRATransform
from lightly_dira.evaluation.labelled import Samples
from lightly_dira.evaluation.probes import encode, linear_probe
from lightly_dira.evaluation.read_tables import read_table
from lightly_dira.features.pyramid import FeaturePyramid
from lightly_dira.transforms import read_image
from lightly_dira.weights.encoders import export_encoder
from lightly_dira.weights.pretrained import from_pretrained, save_pretrained

folder = Path(tempfile.mkdtemp())
brain = datasets.load_mni152_template(resolution=1).get_fdata()
brain = (65535 * brain / brain.max()).clip(0, 65535).astype(np.uint16)
rows = []
for axis, direction in enumerate(("sagittal", "coronal", "axial")):
    for number in range(50, brain.shape[axis] - 50, 2):
        name = f"{direction}-{number}.png"
        Image.fromarray(np.rot90(brain.take(number, axis))).save(folder / name)
        rows.append({"image": name, "label": direction, "patient": number // 10})
pd.DataFrame(rows).to_csv(folder / "labels.csv", index=False)
pd.read_csv(folder / "labels.csv").head(3)

# %% [markdown]
# ## Data: a folder and a table
#
# `read_table` pairs files with labels and splits them by patient (here neighbouring
# slices count as one patient). Files are read when they are needed, and their 16 bits
# are kept.

# %%
data = read_table(folder / "labels.csv", folder, patient="patient")
pixels = data.pixels(0)
(
    pixels.dtype,
    int(pixels.max()),
    {n: len(data.split(n)) for n in ("train", "val", "test")},
)

# %% [markdown]
# DICOM files work the same way. X-rays keep their stored bits, with white as the
# highest value. CT numbers keep their units, and a window says which of them matter.
# This example is a tiny CT of a body, which pydicom keeps for its tests.

# %%
scan = read_image(get_testdata_file("CT_small.dcm"))
print(
    "pydicom",
    pydicom.__version__,
    scan.dtype,
    f"{scan.min():.0f} to {scan.max():.0f} HU",
)
DiRATransform(input_size=96, window=(-1000, 400)).preview(scan, n=6)

# %% [markdown]
# ## Transform: look before you train
#
# Any transform can be wrapped, here SimCLR's. Changes of colour make no sense for grey
# images, so they are turned off. Every column is one draw: the clean target of the
# first view above, the two distorted views below.

# %%
base = SimCLRTransform(
    input_size=64, cj_prob=0.0, random_gray_scale=0.0, normalize=None
)
transform = DiRATransform(base)
transform.preview(data.pixels(70))

# %% [markdown]
# ## Backbone: whatever has feature maps
#
# A dry run finds the last feature map of every resolution. The backbone here is a small
# ConvNeXt of timm. Look at the table; if you would rather use other maps, pass
# `DiRA(backbone, features=FeaturePyramid(backbone, layers=[...]))`.

# %%
torch.manual_seed(0)
backbone = timm.create_model("convnext_atto", num_classes=0, in_chans=1)
FeaturePyramid(backbone)

# %% [markdown]
# The same works for a network of your own, with one input channel:


# %%
def stage(inputs, outputs):
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride=2, padding=1),
        nn.BatchNorm2d(outputs),
        nn.SiLU(),
    )


own = nn.Sequential(
    stage(1, 24), stage(24, 48), stage(48, 96), nn.AdaptiveAvgPool2d(1), nn.Flatten()
)
FeaturePyramid(own)

# %% [markdown]
# ## Training: Barlow Twins with the ConvNeXt
#
# The loop is that of Lightly's documentation with the lines of DiRA added.

# %%
projection_head = BarlowTwinsProjectionHead(320, 512, 512)
model = nn.Sequential(backbone, projection_head)
criterion = BarlowTwinsLoss()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
dira = DiRA(backbone, optimizer, adversarial_start=60)

images = data.split("train").with_transform(transform)
loader = DataLoader(images, batch_size=16, shuffle=True, drop_last=True)
restorative = []
for _epoch in range(16):
    for batch in loader:
        x0, x1 = batch[0]
        loss = dira(criterion(model(x0), model(x1)), batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        restorative.append(dira.components.restorative.item())

results = Path("../results/notebooks")
errors = pd.Series(restorative, name="restorative").round(5)
errors.to_csv(results / "04_restoration.csv", index_label="step")
figure, axis = plt.subplots(figsize=(5, 2.4), layout="constrained")
axis.plot(restorative)
axis.set(title="mean squared error of the restored view", xlabel="step", yscale="log")
plt.show()

# %% [markdown]
# ## Weights that travel
#
# `save_pretrained` writes safetensors and a small JSON file, from which a colleague can
# load the encoder and rebuild its decoder. `export_encoder` gives the encoder's weights
# the names that they have in timm's or torchvision's own model.

# %%
save_pretrained(folder / "dira-convnext", backbone, dira.head)
again = timm.create_model("convnext_atto", num_classes=0, in_chans=1)
head = from_pretrained(folder / "dira-convnext", again)

classifier = timm.create_model("convnext_atto", num_classes=3, in_chans=1)
weights = export_encoder(backbone, like=classifier)
classifier.load_state_dict(weights, strict=False)

# %% [markdown]
# How well a logistic regression on the frozen encoder's features classifies images of
# other patients:

# %%
test = data.split("test")
scores = linear_probe(
    encode(again, Samples(data.split("train"), 64, channels=1)),
    encode(again, Samples(test, 64, channels=1)),
)
table = pd.DataFrame([scores])
table.round(3).to_csv(results / "04_linear_probe.csv", index=False)
table.style.hide(axis="index").format(precision=3)

# %% [markdown]
# And restored images of the test split, each below its distorted view:

# %%
torch.manual_seed(2)
views = [test.with_transform(transform)[i][0] for i in range(0, len(test), 4)][:8]
distorted = torch.stack([view[0] for view in views])
with torch.no_grad():
    restored = head.eval()(FeaturePyramid(again.eval())(distorted), distorted.shape[2:])
figure, axes = plt.subplots(2, 8, figsize=(11, 3), layout="constrained")
for line, name, pictures in zip(
    axes, ("distorted", "restored"), (distorted, restored), strict=True
):
    line[0].set_ylabel(name)
    for axis, picture in zip(line, pictures, strict=False):
        axis.imshow(picture[0], cmap="gray", vmin=0, vmax=1)
        axis.set(xticks=[], yticks=[])
