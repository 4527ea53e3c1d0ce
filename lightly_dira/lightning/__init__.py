"""DiRA for Lightning: a mixin for any LightningModule, and callbacks that watch it."""

from lightly_dira.lightning.callbacks import CollapseWatch, RestorationLogger
from lightly_dira.lightning.mixin import DiRAMixin

__all__ = ["CollapseWatch", "DiRAMixin", "RestorationLogger"]
