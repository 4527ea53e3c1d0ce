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
# # Methods compared, with and without DiRA
#
# Four of Lightly's methods, MoCo, Barlow Twins, SimSiam and BYOL, are each pre-trained
# twice on the same images: as they are, and as DiRA variants. Their encoders are then
# evaluated with many labels and with few. The bare methods see undistorted views, so a
# difference is that of views and restoration together: `--stages di di+views dir` tells
# them apart.
#
# The work is done by [`compare`](../compare), which is also a command. It keeps a
# row for each result and never repeats one, so that all results for the brain MRI below
# are there already. With other data it starts to work, and resumes if it was stopped.

# %%
# %matplotlib inline
import subprocess
import sys
from pathlib import Path

import pandas as pd
from IPython.display import Markdown

sys.path.insert(0, "../compare")
from report import as_markdown, draw_bars, draw_fractions

data, results = None, Path("../results/brain")
# data, results = "pneumoniamnist", Path("pneumoniamnist")  # MedMNIST: downloads
# data, results = "/my/chest/x-rays", Path("mine")  # see compare/tasks.py

# %%
command = (
    "--preset smoke --methods MoCo BarlowTwins SimSiam BYOL --stages di dira "
    "--seeds 0 1 2 --epochs 15 --batch-size 32 --fractions 0.05 1 "
    f"--out {results}"
).split()
if data is not None:
    command += ["--data", data]
subprocess.run(
    [sys.executable, "../compare", *command], check=True, stdout=subprocess.DEVNULL
)
summary = pd.read_csv(results / "summary.csv")

# %% [markdown]
# ## All results
#
# Means over three seeds, ± half of the 95 % interval. The images are slices of the
# brain in three directions, from the front of the head for training and from the back
# for testing. *Direction* asks for the direction of the cut (area under the ROC curve,
# 0.5 is a guess). *Tissue* asks for grey and white matter, pixel by pixel (Dice, 1 is
# perfect), by a logistic regression on frozen feature maps (*dense*) or by a fine-tuned
# *U-Net*. *No encoder* is the best of three baselines that look at grey levels or
# positions alone, *not trained* an encoder with random weights.

# %%
Markdown(as_markdown(summary))

# %% [markdown]
# ## With the fewest labels
#
# Bars are means over seeds, whiskers 95 % intervals; the dashed line is an encoder that
# was not trained, the dotted ones need no encoder at all.

# %%
figure = draw_bars(summary)

# %% [markdown]
# ## From few labels to many

# %%
figure = draw_fractions(summary)

# %% [markdown]
# ## More than chance?
#
# Paired t-tests over seeds of the DiRA variant against the bare method, with Holm's
# correction for their number: `p_holm` below 0.05 would be called significant. With
# three seeds, only large differences show.

# %%
tests = pd.read_csv(results / "tests.csv").query("first == 'dira' and second == 'di'")
columns = ["method", "task", "protocol", "fraction", "difference", "p", "p_holm"]
tests[columns].sort_values("p").head(12).style.hide(axis="index").format(precision=3)

# %% [markdown]
# ## What encoders tell apart
#
# The first three principal components of each pixel's features, as colours, in slices
# that no encoder has seen: what differs in colour, an encoder tells apart. SimSiam was
# trained for five epochs, bare and with restoration, by the functions of
# [`quickstart.py`](../quickstart.py). Which colour it is means nothing, edges and
# shapes do. An untrained encoder shows edges, and so short a training shows no more.

# %%
import contextlib
import copy
import io

import torch
import torchvision
from lightly.transforms.utils import IMAGENET_NORMALIZE
from torch import nn
from torch.utils.data import DataLoader
from torchvision.transforms.v2.functional import normalize

from lightly_dira.evaluation.feature_picture import draw_features

sys.path.insert(0, "..")
from quickstart import SimSiam, load_images, make_dira, make_optimizer, pretrain

torch.manual_seed(0)
train, _ = load_images(None, 48, None)
loader = DataLoader(train, batch_size=16, shuffle=True, drop_last=True)
resnet = torchvision.models.resnet18()
start = SimSiam(nn.Sequential(*list(resnet.children())[:-1]), 512)
encoders, quiet = {"untrained": start.backbone}, io.StringIO()
for name in ("bare", "DiRA"):
    model = copy.deepcopy(start)
    optimizer = make_optimizer(model)
    dira = make_dira(model.backbone, optimizer) if name == "DiRA" else None
    torch.manual_seed(0)
    with contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
        pretrain(model, optimizer, loader, 5, torch.device("cpu"), dira)
    encoders[name] = model.backbone

# %%
_, held_out = load_images(None, 96, None)
clean = torch.stack([held_out[index][0].target for index in (40, 150, 260)])
images = normalize(clean.expand(-1, 3, -1, -1), **IMAGENET_NORMALIZE)
draw_features(encoders, images, clean)

# %% [markdown]
# These are short runs on one small brain. They show how to compare, not which method to
# take: for that, run `compare` on images like your own.
