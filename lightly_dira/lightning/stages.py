"""Stages given in epochs, and the check that the training step ran DiRA."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from pytorch_lightning import Callback, LightningModule, Trainer

from lightly_dira.lightning.mid_epoch import steps_in_an_epoch, steps_taken_in_epoch
from lightly_dira.training.optimizer_follower import stages

if TYPE_CHECKING:
    from lightly_dira.lightning.mixin import DiRAMixin


class Stages(Callback):
    """Starts stages given in epochs, and checks that the training step ran DiRA."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Turns epochs into steps."""
        self._start_stages(trainer, _mixin(pl_module))
        _mixin(pl_module).dira.components = None

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
        if schedule is None:
            schedule = stages(*(epoch or 0 for epoch in epochs))
        steps = steps_in_an_epoch(trainer)
        begun = module.dira.steps - steps_taken_in_epoch(trainer)
        schedule = schedule.from_epochs(steps, begun, trainer.current_epoch)
        module.dira.follow_schedule(schedule)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *args: Any
    ) -> None:
        """Checks that DiRA took part.

        Raises:
            RuntimeError: If a training step that overrides the mixin's left DiRA out.
        """
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
