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
# # DiRA in three lines
#
# A self-supervised method such as SimSiam learns to tell images apart. **DiRA**
# ([Haghighi et al., CVPR 2022](https://arxiv.org/abs/2204.10437)) asks more of the same
# encoder: a decoder must restore distorted images (**r**estorative), and a critic must
# not be able to tell restored images from real ones (**a**dversarial), while the method
# goes on as before (**di**scriminative).
#
# This notebook trains for about a minute on slices of a brain MRI that come with
# `nilearn`, so nothing is downloaded.

# %%
# %matplotlib inline
import matplotlib.pyplot as plt
import pandas as pd
import torch
import torchvision
from lightly.loss import NegativeCosineSimilarity
from lightly.models.modules import SimSiamPredictionHead, SimSiamProjectionHead
from lightly.transforms import SimSiamTransform
from torch import nn
from torch.utils.data import DataLoader, default_collate

from lightly_dira import DiRA, DiRATransform
from lightly_dira.evaluation.read_volumes import read_mni152

torch.manual_seed(0)
data = read_mni152()  # or read_medmnist("pneumoniamnist"): the one line to change

# %% [markdown]
# ## The first line: the transform
#
# `DiRATransform` wraps the method's own transform. The views are cropped and coloured
# as before, and then distorted: rectangles are blacked out, all but a window is blacked
# out, or patches change places. The views come with the *target*: the same crop,
# undistorted.

# %%
base = SimSiamTransform(input_size=48, normalize=None)
transform = DiRATransform(base)  # the first line
transform.preview(data.split("train").pixels(60))

# %% [markdown]
# ## The second and third line: the loop
#
# The model below is SimSiam as in Lightly's documentation. `DiRA(backbone, optimizer)`
# finds the backbone's feature maps, makes a decoder that fits and adds it to the
# optimiser.


# %%
class SimSiam(nn.Module):
    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone
        self.projection_head = SimSiamProjectionHead(512, 512, 128)
        self.prediction_head = SimSiamPredictionHead(128, 64, 128)

    def forward(self, x):
        z = self.projection_head(self.backbone(x).flatten(start_dim=1))
        return z.detach(), self.prediction_head(z)


resnet = torchvision.models.resnet18()
resnet.conv1 = nn.Conv2d(1, 64, 7, stride=2, padding=3, bias=False)  # grey images
model = SimSiam(nn.Sequential(*list(resnet.children())[:-1]))
criterion = NegativeCosineSimilarity()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

dira = DiRA(model.backbone, optimizer, adversarial_start=70)  # the second line
dira.features

# %% [markdown]
# The decoder restores images from these maps. Now the loop. `dira(loss, batch)` returns
# *one* number, so that the rest stays as it is: one backward pass, one optimiser.
# Restoration trains from the start. The critic joins later, as in the paper, here after
# 70 steps: it has nothing to judge while restored images are still grey mist.

# %%
images = data.split("train").with_transform(transform)
loader = DataLoader(images, batch_size=16, shuffle=True, drop_last=True)
history = []
for _epoch in range(8):
    for batch in loader:
        x0, x1 = batch[0]
        (z0, p0), (z1, p1) = model(x0), model(x1)
        loss = 0.5 * (criterion(z0, p1) + criterion(z1, p0))
        loss = dira(loss, batch)  # the third line
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        history.append(torch.stack(dira.components[1:]))

# %% [markdown]
# ## What happened
#
# The plots show the four terms by step, which are also saved in a file. The
# discriminative loss is the method's own (-1 would be perfect agreement of the two
# views). The last two stay empty until the critic joins.

# %%
names = ["discriminative", "restorative", "adversarial", "critic's own"]
terms = pd.DataFrame(torch.stack(history).numpy(), columns=names).replace(0, None)
terms.round(5).to_csv("../results/notebooks/01_terms.csv", index_label="step")
figure, axes = plt.subplots(1, 4, figsize=(13, 2.6), layout="constrained")
for axis, name in zip(axes, names, strict=True):
    axis.plot(terms[name])
    axis.set(title=name, xlabel="step", xlim=(0, len(history)))

# %% [markdown]
# Slices from the back of the head, which the networks have never seen: clean,
# distorted, and restored.

# %%
torch.manual_seed(1)
held_out = data.split("test").with_transform(transform)
views = default_collate([held_out[index][0] for index in range(10, 310, 38)])
rows = {
    "clean": views.target[:, 0],
    "distorted": views[0].mean(dim=1),
    "restored": dira.restore(views[0])[:, 0],
}
figure, axes = plt.subplots(3, 8, figsize=(11, 4.4), layout="constrained")
for line, (name, pictures) in zip(axes, rows.items(), strict=True):
    line[0].set_ylabel(name)
    for axis, picture in zip(line, pictures, strict=True):
        axis.imshow(picture, cmap="gray", vmin=0, vmax=1)
        axis.set(xticks=[], yticks=[])

# %% [markdown]
# A minute of training restores shapes, but not yet details. The next notebooks show
# what the encoder has gained: [comparing methods](02_compare_methods.ipynb)
# and [downstream tasks](03_downstream.ipynb); [your own backbone and
# data](04_own_backbone_and_data.ipynb) comes last.
