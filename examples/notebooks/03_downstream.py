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
# # Downstream: few labels, segmentation, localisation
#
# What is a pre-trained encoder good for? Three encoders are compared here: one that was
# *not trained*, one pre-trained by *SimSiam*, and one by *DiRA-SimSiam*. Training is
# short to keep the notebook short: it shows how to compare, not which encoder is best.
# Every number is kept as a row of a file in `results`.

# %%
# %matplotlib inline
import sys
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from pytorch_grad_cam.utils.image import show_cam_on_image
from torch.utils.data import Subset, TensorDataset
from tqdm import tqdm

sys.path.insert(0, "../compare")
from encoders import make_encoder
from pretraining import path_of, pretrain
from settings import Settings

from lightly_dira import DiRATransform
from lightly_dira.evaluation.finetuning import (
    finetune_classifier,
    finetune_unet,
    score_classifier,
    score_unet,
)
from lightly_dira.evaluation.label_fractions import label_fractions
from lightly_dira.evaluation.labelled import LabelledImages, Samples
from lightly_dira.evaluation.localisation import (
    class_activation_maps,
    score_localisation,
)
from lightly_dira.evaluation.probes import encode, linear_probe
from lightly_dira.evaluation.read_volumes import read_mni152
from lightly_dira.weights.pretrained import from_pretrained

data = read_mni152()  # or read_npz(path), read_table(csv, folder), ...
size, results = 48, Path("../results/notebooks")

# %% [markdown]
# ## Three encoders
#
# `compare` has the loop of the [first notebook](01_three_lines.ipynb) for several
# methods. It saves encoders as safetensors, which `from_pretrained` reads.

# %%
settings = Settings(size=size, batch_size=32, epochs=8)
folder = Path(tempfile.mkdtemp())
encoders, heads = {"not trained": make_encoder(settings, seed=0)}, {}
for name, stage in (("SimSiam", "di"), ("DiRA-SimSiam", "dira")):
    distortion = None if stage == "di" else "published"
    transform = DiRATransform(input_size=size, distortion=distortion)
    images = data.split("train").with_transform(transform)
    run = ("SimSiam", stage, 0)
    pretrain(settings, [run], images, folder, tqdm(disable=True))
    encoders[name] = make_encoder(settings, seed=0)
    heads[name] = from_pretrained(path_of(folder, run), encoders[name])
colours = dict(zip(encoders, ("0.6", "#5b8db8", "#b0413e"), strict=True))

# %% [markdown]
# ## Few labels
#
# Which way was the brain cut: from the side, from the front, from above? A logistic
# regression on the frozen features answers, from 2 % of the labels (6 images) to all
# 274. Each part lies inside the next larger one.

# %%
train, val, test = (data.split(name) for name in ("train", "val", "test"))
rows = []
for name, encoder in encoders.items():
    encoded = encode(encoder, Samples(train, size))
    others = encode(encoder, Samples(val, size))
    for seed in range(3):
        parts = label_fractions(train.labels, (0.02, 0.1, 0.3, 1.0), seed=seed)
        for part in parts.values():
            scores = linear_probe(TensorDataset(*encoded[part]), others)
            rows.append({"encoder": name, "labels": len(part), **scores})
rows = pd.DataFrame(rows)
rows.round(4).to_csv(results / "03_few_labels.csv", index=False)
scores = rows.groupby(["encoder", "labels"])["auc"].agg(["mean", "std"])

figure, axis = plt.subplots(figsize=(5.5, 3.2), layout="constrained")
for name in encoders:
    line = scores.loc[name]
    axis.errorbar(
        line.index,
        line["mean"],
        line["std"],
        marker="o",
        capsize=3,
        color=colours[name],
        label=name,
    )
axis.set(xscale="log", xlabel="labelled images", ylabel="AUC on other slices")
axis.set_title("Direction of the cut, frozen encoders\n(3 choices of labels, ± 1 s.d.)")
axis.legend()

# %% [markdown]
# Which encoder is best depends on the question. The direction shows in the outline
# alone, and grey levels give the outline without any training. It depends on chance
# as well: here more labels make the DiRA encoder worse on other slices, in an earlier
# run of this notebook it was the bare one.
#
# ## Segmentation
#
# Grey and white matter are learnt from 8 labelled slices. The U-Net of the DiRA encoder
# can also start from its decoder, which has learnt to restore; the others get a new
# decoder.

# %%
few = Subset(Samples(train, size, "mask"), range(0, len(train), len(train) // 8)[:8])
validation = Subset(Samples(val, size, "mask"), range(0, len(val), 5))
unets = {}
for name, encoder in encoders.items():
    head = heads[name] if name == "DiRA-SimSiam" else None
    unets[name] = finetune_unet(
        encoder, few, validation, classes=3, head=head, steps=25, batch_size=8, lr=1e-3
    )
held_out = Samples(test, size, "mask")
dice = {name: score_unet(unet, held_out)["dice"] for name, unet in unets.items()}
rows = pd.DataFrame(dice.items(), columns=["encoder", "dice"])
rows.round(4).to_csv(results / "03_segmentation.csv", index=False)

# %% [markdown]
# Predicted tissues (grey matter in orange, white matter in white) of held-out slices,
# and the Dice coefficient over all of them.

# %%
shown = [held_out[index] for index in (40, 120, 170, 230, 290)]
pictures = torch.stack([image for image, _ in shown])
tissues = {"template's map": torch.stack([mask for _, mask in shown])}
with torch.no_grad():
    tissues |= {
        f"{name}\n(Dice {dice[name]:.2f})": unet(pictures).argmax(dim=1)
        for name, unet in unets.items()
    }
palette = np.array([[0.1, 0.1, 0.1], [0.9, 0.6, 0.2], [1.0, 1.0, 1.0]])
figure, axes = plt.subplots(1 + len(tissues), 5, figsize=(8.6, 8), layout="constrained")
for axis, picture in zip(axes[0], pictures, strict=True):
    axis.imshow(picture[0], cmap="gray", vmin=0, vmax=1)
for line, masks in zip(axes[1:], tissues.values(), strict=True):
    for axis, mask in zip(line, masks, strict=True):
        axis.imshow(palette[mask])
for line, name in zip(axes, ("slice", *tissues), strict=True):
    line[0].set_ylabel(name)
for axis in axes.flat:
    axis.set(xticks=[], yticks=[])

# %% [markdown]
# ## Weakly supervised localisation
#
# A classifier learns only *whether* a patch of the brain holds white matter: does it
# look at *where* it is? Patches without white matter are of class 0, those with some,
# but less than a third, of class 1. The box around the white matter is used for testing
# only. Grad-CAM shows which pixels speak for class 1, and stays empty if none do. In
# chest X-rays the finding would be a nodule, and `read_chestxray14` reads the boxes.


# %%
def cut_patches(data: LabelledImages, side: int = 24) -> LabelledImages:
    images, boxes = [], []
    for index in range(len(data)):
        image, white = data.pixels(index), data.mask(index) == 2
        for top in range(0, image.shape[0] - side, side):
            for left in range(0, image.shape[1] - side, side):
                place = np.s_[top : top + side, left : left + side]
                part = white[place].mean()
                if (image[place] > 0).mean() < 0.5 or not (
                    part == 0 or 0.05 < part < 0.33
                ):
                    continue
                y, x = np.nonzero(white[place])
                box = [[x.min(), y.min(), np.ptp(x) + 1, np.ptp(y) + 1]] if part else []
                images.append(image[place])
                boxes.append(np.array(box).reshape(-1, 4))
    return LabelledImages(
        np.stack(images),
        labels=np.array([len(box) for box in boxes]),
        boxes=boxes,
        box_labels=[np.array(["white matter"] * len(box)) for box in boxes],
        label_names=("none", "white matter"),
    )


random = np.random.default_rng(0)
patches = {}
for name in ("train", "val", "test"):
    part = cut_patches(data.split(name))
    none, some = np.flatnonzero(part.labels == 0), np.flatnonzero(part.labels)
    # As many of either class.
    patches[name] = part.subset([*none, *random.choice(some, len(none), replace=False)])
{name: len(part) for name, part in patches.items()}

# %%
samples = {name: Samples(part, 64) for name, part in patches.items()}
boxed = patches["test"].subset(patches["test"].labels == 1).subset(range(100))
classifiers, found = {}, []
for name, encoder in encoders.items():
    classifiers[name] = finetune_classifier(
        encoder, samples["train"], samples["val"], steps=30, lr=3e-4
    )
    auc = score_classifier(classifiers[name], samples["test"])["auc"]
    where = score_localisation(classifiers[name], boxed, 64)
    found.append({"encoder": name, "AUC": auc, **where})

# %% [markdown]
# *AUC*: is there white matter? *pointing*: how often the warmest point lies in the box;
# *iou*: mean overlap of the warmest region with it, and how often it is at least 0.1,
# 0.25 and 0.5.

# %%
table = pd.DataFrame(found).drop(columns="boxed")
table.round(3).to_csv(results / "03_localisation.csv", index=False)
table.style.hide(axis="index").format(precision=3)

# %%
six = Samples(boxed.subset(range(6)), 64)
pictures = torch.stack([image for image, _ in six])
figure, axes = plt.subplots(4, 6, figsize=(10.2, 6.6), layout="constrained")
figure.suptitle("What speaks for white matter (warm), and the box around it (white)")
maps = {"patch": None} | {
    name: class_activation_maps(classifier, pictures, label=1)
    for name, classifier in classifiers.items()
}
for line, (name, heat) in zip(axes, maps.items(), strict=True):
    line[0].set_ylabel(name)
    for index, axis in enumerate(line):
        picture = pictures[index].movedim(0, -1).numpy()
        if heat is not None:
            picture = show_cam_on_image(picture, heat[index], use_rgb=True)
        axis.imshow(picture)
        left, top, width, height = boxed.boxes[index][0] * 64 / 24
        frame = plt.Rectangle((left, top), width, height, fill=False, ec="w")
        axis.add_patch(frame)
        axis.set(xticks=[], yticks=[])
