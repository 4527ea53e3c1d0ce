"""The model card that lies beside weights, as hubs show it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_CARD = """---
library_name: lightly-dira
tags:
- self-supervised
- medical-imaging
---

# {backbone}, pre-trained with lightly-dira

The weights of a `{backbone}`{head}, pre-trained on images without labels{method} as
[DiRA](https://arxiv.org/abs/2204.10437) does it.

## Use

```python
from lightly_dira.transforms import {read}
from lightly_dira.weights import from_pretrained

backbone = ...  # the same architecture
head, inputs = from_pretrained(FOLDER, backbone, return_inputs=True)
backbone.eval()
features = backbone(inputs({read}({file}))[None])
```

From a hub: `FOLDER = huggingface_hub.snapshot_download("owner/name")`.

## What it was fed with

{inputs}

## How it was trained

{recipe}

## Images and limits

Say here which images it was trained on, from which machines and hospitals, with whose
consent, and what it must not be used for.
"""


def model_card(config: Mapping[str, Any]) -> str:
    """Returns the card of what `save_pretrained` keeps in ``config.json``."""
    inputs, recipe = config["inputs"], dict(config["recipe"] or {})
    recipe |= {"lightly-dira": config["lightly_dira"], **config["versions"]}
    volumes = inputs is not None and len(inputs["size"]) == 3
    return _CARD.format(
        read="read_volume" if volumes else "read_image",
        file=_example(inputs, volumes),
        backbone=config["backbone"],
        head=" and of its restoration head" if config["head"] else "",
        method=f" by {config['method']}," if config["method"] else "",
        inputs=_table(inputs) if inputs else "Not kept: `save_pretrained(inputs=...)`.",
        recipe=_table(recipe),
    )


def _example(inputs: Mapping[str, Any] | None, volumes: bool) -> str:
    """Returns how a file is named that is read as those of the training were."""
    if inputs is not None and inputs["voi"]:
        return f'"{"series" if volumes else "scan.dcm"}", voi=True'
    return '"scan.nii.gz"' if volumes else '"scan.png"'


def _table(facts: Mapping[str, Any]) -> str:
    rows = [f"| {name} | {_text(value)} |" for name, value in facts.items()]
    return "\n".join(["| | |", "|---|---|", *rows])


def _text(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_text, value)) or "none"
    if isinstance(value, float):
        return f"{value:g}"
    return "none" if value is None else str(value)
