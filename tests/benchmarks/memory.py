"""Prints a peak of memory, in MiB: python memory.py WHICH

Of two training steps, or of a ViT-L's dry pass and of a pass of as many images.
"""

import math
import re
import sys
from pathlib import Path

import torch
import torchvision
from published_step import PublishedStep
from steps import make_batch, make_step

from lightly_dira import RestorationHead
from lightly_dira.features import FeaturePyramid
from lightly_dira.models import light_head


def peak() -> int:
    """Of this process in KiB; `resource` would count its parent's, too (Linux)."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+)", status)[1])


torch.set_num_threads(2)
which = sys.argv[1]
views = make_batch()
before = peak()
if which in ("dry pass", "pass"):
    vit = torchvision.models.vit_l_16().eval()
    images, before = torch.rand(2, 3, 224, 224), peak()

    def step() -> None:
        if which == "dry pass":
            FeaturePyramid(vit)
        else:
            vit(images)

elif which == "published":
    published = PublishedStep()

    def step() -> None:
        published(list(views), [views.target])

else:
    options = {}
    if which == "checkpoint":
        options["head"] = RestorationHead((64, 256, 512, 1024, 2048), checkpoint=True)
    if which == "lean":
        features = FeaturePyramid(torchvision.models.resnet50())
        options = {"head": light_head(features), "restored_share": 0.25}
    if which in ("lean", "dir"):
        options["adversarial_start"] = None
    if which == "di":
        options["restorative_start"] = math.inf
    ours = make_step(dira=which != "bare", **options)

    def step() -> None:
        ours(views)


for _ in range(2):
    step()
print((peak() - before) / 1024)
