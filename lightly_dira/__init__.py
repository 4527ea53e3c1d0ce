"""DiRA for Lightly: restoration and an adversary for any discriminative method."""

import os

# On import albumentations would look up its newest version over the network.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

from lightly_dira.discriminator import PatchDiscriminator
from lightly_dira.loss import DiRALoss, DiRALossComponents
from lightly_dira.restoration import RestorationHead
from lightly_dira.transform import DiRATransform
from lightly_dira.views import DiRAViews
from lightly_dira.wrapper import DiRA

__version__ = "0.1.0"

__all__ = [
    "DiRA",
    "DiRALoss",
    "DiRALossComponents",
    "DiRATransform",
    "DiRAViews",
    "PatchDiscriminator",
    "RestorationHead",
]
