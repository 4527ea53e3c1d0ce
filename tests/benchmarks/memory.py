"""Prints the peak memory of two training steps, in MiB: python memory.py WHICH"""

import re
import sys
from pathlib import Path

import torch
from published_step import PublishedStep
from steps import make_batch, make_step

from lightly_dira import RestorationHead


def peak() -> int:
    """Of this process in KiB; `resource` would count its parent's, too (Linux)."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+)", status)[1])


torch.set_num_threads(2)
views, before = make_batch(), peak()
which = sys.argv[1]
if which == "published":
    published = PublishedStep()

    def step() -> None:
        published(list(views), [views.target])

else:
    options = {}
    if which == "checkpoint":
        options["head"] = RestorationHead((64, 256, 512, 1024, 2048), checkpoint=True)
    ours = make_step(dira=which != "bare", **options)

    def step() -> None:
        ours(views)


for _ in range(2):
    step()
print((peak() - before) / 1024)
