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
# evaluated with many labels and with few.
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
# These are short runs on one small brain. They show how to compare, not which method to
# take: for that, run `compare` on images like your own.
