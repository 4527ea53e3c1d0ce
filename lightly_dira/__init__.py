"""DiRA for Lightly: restoration and an adversary for any discriminative method."""

import os
from typing import TYPE_CHECKING, Any

from lightly_dira.adversary import Adversary
from lightly_dira.dira import DiRA
from lightly_dira.loss import DiRALoss, DiRALossComponents
from lightly_dira.models.patch_discriminator import PatchDiscriminator
from lightly_dira.models.restoration_head import RestorationHead
from lightly_dira.views import DiRAViews

if TYPE_CHECKING:
    from lightly_dira.transforms.dira_transform import DiRATransform

# Without this, importing albumentations looks up its newest version online.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

__version__ = "0.1.0"

__all__ = [
    "Adversary",
    "DiRA",
    "DiRALoss",
    "DiRALossComponents",
    "DiRATransform",
    "DiRAViews",
    "PatchDiscriminator",
    "RestorationHead",
]


def __getattr__(name: str) -> Any:
    """Imports `DiRATransform` on first use, as albumentations takes a second."""
    if name != "DiRATransform":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from lightly_dira.transforms.dira_transform import DiRATransform

    globals()[name] = DiRATransform
    return DiRATransform


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
