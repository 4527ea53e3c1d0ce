"""The base of callbacks that look at one batch, always the same, during a run."""

from __future__ import annotations

import abc
from typing import Any, NamedTuple

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from lightly_dira.adversary import Adversary
from lightly_dira.core.modes import evaluating
from lightly_dira.core.user_warnings import warn
from lightly_dira.dira import DiRA
from lightly_dira.views import DiRAViews, find_views


class HeldOut(NamedTuple):
    """What there is to look at.

    Attributes:
        trainer: The Trainer.
        module: The LightningModule.
        dira: Its `DiRA`.
        views: The batch, on the module's device.
        seen: The view as the backbone gets it.
    """

    trainer: Trainer
    module: LightningModule
    dira: DiRA
    views: DiRAViews
    seen: Tensor


class HeldOutCallback(Callback, abc.ABC):
    """Looks at one batch, always the same, at the end of every n-th epoch."""

    def __init__(self, batch: Any = None, *, every_n_epochs: int = 1) -> None:
        """Keeps what to look at and how often.

        Args:
            batch: Views of a `DiRATransform`, as a data loader gives them; by default
                the first batch of validation, or, without one, of training.
            every_n_epochs: How often to look.

        Raises:
            ValueError: If `batch` holds no such views, or `every_n_epochs` is below 1.
        """
        name = type(self).__name__
        if every_n_epochs < 1:
            raise ValueError(f"{name}: every_n_epochs must be at least 1.")
        self.every_n_epochs = every_n_epochs
        self._views = next(find_views(batch), None)
        self._settled = batch is not None
        self._warned: set[str] = set()
        if batch is not None and self._views is None:
            raise ValueError(
                f"{name}: the batch carries no restoration target. Take it from a data "
                "loader whose dataset has a DiRATransform."
            )

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keeps the first batch of validation."""
        if not self._settled:
            self._views = next(find_views(batch), self._views)
            self._settled = True

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Keeps the first batch of training, where there is no validation."""
        if self._views is None:
            self._views = next(find_views(batch), None)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Checks that there is something to look at.

        Raises:
            RuntimeError: If the module has no `dira`, or one that does not restore.
        """
        dira = getattr(pl_module, "dira", None)
        if isinstance(dira, Adversary):
            raise RuntimeError(
                f"{type(self).__name__}: with an `Adversary` the host restores images, "
                "not DiRA: leave this callback out."
            )
        if not isinstance(dira, DiRA):
            raise RuntimeError(
                f"{type(self).__name__}: {type(pl_module).__name__} has no `dira`. Put "
                "DiRAMixin in front of it."
            )

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Looks at the batch."""
        if (trainer.current_epoch + 1) % self.every_n_epochs or self._views is None:
            return
        module: Any = pl_module
        views = self._views.to(pl_module.device)
        with torch.no_grad(), evaluating(pl_module):
            try:
                seen = module.dira.features.change.apply(views.view)
            except RuntimeError as error:
                # A run must not end because it cannot be looked at.
                self.warn(f"{type(self).__name__} shows nothing: {error}")
                return
            self.look(HeldOut(trainer, pl_module, module.dira, views, seen))

    @abc.abstractmethod
    def look(self, at: HeldOut) -> None:
        """Looks at the batch, in evaluation mode and without gradients."""

    def warn(self, message: str) -> None:
        """Warns, of each thing once."""
        kind = message.partition(":")[0]
        if kind not in self._warned:
            self._warned.add(kind)
            warn(f"DiRA: {message.removeprefix('DiRA: ')}")
