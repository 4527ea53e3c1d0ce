"""Distorted views with clean, aligned targets: transforms, pixels and files.

`DiRATransform` takes the base transform apart: crops, flips and rotations are drawn
once and shared by a view and its target, colour and distortion touch the view only, and
distorted black is black. It does so for every transform of Lightly (multi-crop ones,
and those with grids or masks beside the views, which pass through), for torchvision's
(v1 and v2) and albumentations' `Compose`, nested as you like, and for a list of
callables. What each of their classes does is a table that a test measures; of automatic
augmentations (`RandAugment`) the target takes the moves alone. Steps of your own are
named: `DiRATransform(transform, kinds={MyStep: "photometric"})`; without, a warning
says that the target goes through them, too. Any other callable is left whole: its
finished view is distorted, and the target is that view before.

Images are PIL images, arrays or tensors of 1 to 4 channels, 8 or 16 bits or float; 16
bits keep their precision. CT numbers need a window, and so does whatever cannot be told
(8 bits in wider integers, signed ones):

::

    DiRATransform(MoCoV2Transform(), window=(-1000, 400))
    dataset = ImageFolder(
        folder, DiRATransform(), loader=lightly_dira.transforms.images.read_image
    )
    DiRATransform().preview(image).savefig("preview.png")  # look before you train

Images that come from other machines or hospitals differ in their greys. Curves of grey
levels before the published distortions teach the encoder to look past them:

::

    curves = NonLinearIntensity(inverted=0.0, p=0.5)
    DiRATransform(distortion=A.Sequential([curves, published_mixture()]))

In our pilots DiRA-MoCo found lungs in films of a hospital that it had no masks of with
a Dice of 0.786 with them and 0.742 without (one seed, validation images; all rows).

Draws follow PyTorch's seeds: different in every worker, epoch and image, and repeatable
under `seed_everything(seed, workers=True)`.
"""

import importlib
from typing import Any

# Imported when they are asked for: albumentations takes a second.
_HOMES = {
    "DiRATransform": "dira_transform",
    "DiRAViews": "dira_views",
    "InPainting": "distortions",
    "NonLinearIntensity": "grey_curves",
    "OutPainting": "distortions",
    "PatchShuffling": "distortions",
    "PublishedPipeline": "published_pipeline",
    "published_mixture": "distortions",
    "read_image": "image_files",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    """Imports what is asked for first."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{__name__}.{_HOMES[name]}")
    return getattr(module, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
