"""Stages given in epochs, and the check that the training step ran DiRA."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from pytorch_lightning import Callback, LightningModule, Trainer

from lightly_dira.lightning.mid_epoch import steps_in_an_epoch, steps_taken_in_epoch
from lightly_dira.loss.schedule import Schedule

if TYPE_CHECKING:
    from lightly_dira.lightning.mixin import DiRAMixin


class EpochStages(Callback):
    """Starts stages given in epochs, and checks that the training step ran DiRA."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Turns epochs into steps, and checks that the optimiser trains the head.

        Raises:
            RuntimeError: If `configure_optimizers` overrides the mixin's.
        """
        module = _mixin(pl_module)
        if not any(map(module.dira.is_attached_to, trainer.optimizers)):
            name = type(pl_module).__name__
            raise RuntimeError(
                f"DiRA: {name} would be trained without DiRA, as its "
                "configure_optimizers overrides DiRAMixin's: no optimiser holds the "
                "restoration head. Put the method into a class of its own, class "
                f"Method(LightningModule), and write class {name}(DiRAMixin, Method): "
                "pass; or call `self.dira.attach(optimizer)` before you return it."
            )
        self._start_stages(trainer, module)
        module.dira.components = None

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, *args: Any
    ) -> None:
        """Keeps the batch: strategies may rebuild its lists, and lose the targets."""
        _mixin(pl_module)._batch = batch

    def on_train_epoch_start(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> None:
        """Turns epochs into steps again, as their length may change."""
        self._start_stages(trainer, _mixin(pl_module))

    def _start_stages(self, trainer: Trainer, module: DiRAMixin) -> None:
        epochs = module.restorative_start_epoch, module.adversarial_start_epoch
        schedule = module.schedule_in_epochs
        if schedule is None and epochs == (None, None):
            return
        if schedule is not None and epochs != (None, None):
            raise ValueError(
                "DiRA: give schedule_in_epochs, or restorative_start_epoch and "
                "adversarial_start_epoch, not both."
            )
        if schedule is None:
            restorative, adversarial = epochs
            if adversarial is None and module.dira.discriminator is not None:
                adversarial = 0
            schedule = Schedule.starting(restorative or 0, adversarial)
        steps = steps_in_an_epoch(trainer)
        begun = module.dira.steps - steps_taken_in_epoch(trainer)
        schedule = schedule.from_epochs(steps, begun, trainer.current_epoch)
        module.dira.schedule = schedule

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *args: Any
    ) -> None:
        """Checks that DiRA took part.

        Raises:
            RuntimeError: If a training step that overrides the mixin's left DiRA out.
        """
        _mixin(pl_module)._batch = None
        if outputs and _mixin(pl_module).dira.components is None:
            name = type(pl_module).__name__
            raise RuntimeError(
                f"DiRA: {name} was trained without DiRA, as its training_step "
                "overrides DiRAMixin's. Put the method into a class of its own, "
                f"class Method(LightningModule), and write class {name}(DiRAMixin, "
                "Method): pass; or call `loss = self.dira(loss, batch)` in the "
                "training step."
            )


def _mixin(module: LightningModule) -> DiRAMixin:
    return cast("DiRAMixin", module)
