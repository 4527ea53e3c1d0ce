"""Resuming in the middle of an epoch as if never interrupted.

No other module of this library uses names that Lightning does not document
(`_data_fetcher` and the loops' progress). They were tested with 2.2.5 and 2.6.6.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.__version__ import version
from torch.utils._pytree import tree_leaves

from lightly_dira.training.randomness import random_state, set_random_state


class PlaceInData(Callback):
    """Saves the place in the data and the random states, and resumes from there.

    Lightning restarts an interrupted epoch at the first batch, in another order, unless
    the loader can save its state. This callback draws the same order again, and skips
    the batches that were trained on. Validation leaves the random state as it was,
    since a resumed run may skip it.
    """

    def __init__(self) -> None:
        """Starts without any state."""
        self._epoch_randomness: dict[str, Any] | None = None
        self._epoch_ended = False
        self._after_batch: dict[str, Any] | None = None
        self._before_validation: dict[str, Any] | None = None
        self._resume_at: dict[str, Any] | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes the random state that the first epoch's order is drawn from."""
        # The epoch's iterator is made before any other hook is called.
        self._epoch_randomness, self._epoch_ended = random_state(), False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Finds the place where a checkpoint was saved."""
        # The weights may also have been loaded to start another run.
        if self._resume_at is not None and trainer.ckpt_path is not None:
            self._resume(trainer, **self._resume_at)
        self._resume_at = None

    def on_train_epoch_start(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> None:
        """Notes the random state that this epoch's order is drawn from."""
        if self._epoch_ended:
            self._epoch_randomness, self._epoch_ended = random_state(), False
        self._after_batch = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *args: Any
    ) -> None:
        """Notes the random state before the next batch or a validation."""
        self._after_batch = random_state()
        if trainer.enable_validation:
            self._before_validation = self._after_batch

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Undoes the random draws of validation, which a resumed run may skip."""
        if self._before_validation is not None and trainer.validating:
            set_random_state(self._before_validation)
        self._before_validation = None

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lets the next epoch note its own random state."""
        self._epoch_ended, self._before_validation = True, None

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Saves the place, and the random states of all processes."""
        progress: Any = trainer.fit_loop.epoch_loop.batch_progress
        now: Any = random_state()
        trained = progress.current.processed
        if progress.current.ready > trained:
            # A batch was interrupted; it has to be drawn and trained on again.
            now = self._after_batch if trained else self._epoch_randomness
        elif trainer.validating and self._before_validation is not None:
            now = self._before_validation
        mine = {"epoch": self._epoch_randomness, "now": now}
        randomness: list[Any] = [mine] * trainer.world_size
        if len(randomness) > 1:
            torch.distributed.all_gather_object(randomness, mine)
        ended = progress.is_last_batch and progress.current.ready == trained
        checkpoint["dira_data"] = {
            "batches": 0 if ended else trained,
            "of": float(trainer.num_training_batches),
            "validating": trainer.validating,
            "randomness": randomness,
        }

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keeps the place until training starts."""
        self._resume_at = checkpoint.get("dira_data")

    def _resume(
        self,
        trainer: Trainer,
        *,
        batches: int,
        of: float,
        validating: bool,
        randomness: list[Any],
    ) -> None:
        loaders = tree_leaves(trainer.train_dataloader)
        if all(hasattr(loader, "load_state_dict") for loader in loaders):
            return
        now = float(trainer.num_training_batches)
        if len(randomness) != trainer.world_size or of != now:
            warnings.warn(
                f"DiRA: the checkpoint was written by {len(randomness)} processes in "
                f"epochs of {of:g} batches, and read by {trainer.world_size} in "
                f"epochs of {now:g}: data come in another order.",
                stacklevel=2,
            )
            return
        if not trainer.fit_loop.restarting:
            batches = 0
        epochs: Any = trainer.fit_loop.epoch_progress
        for loader in loaders:
            for holder in (loader, getattr(loader, "batch_sampler", None)):
                sampler: Any = getattr(holder, "sampler", None)
                if hasattr(sampler, "set_epoch"):
                    sampler.set_epoch(epochs.current.processed)
        fetcher = getattr(trainer.fit_loop, "_data_fetcher", None)
        if fetcher is None:
            raise RuntimeError(
                "DiRA: lightly-dira does not find the loader of Lightning "
                f"{version}, so that it cannot resume in the middle of an epoch. "
                "Install a newer lightly-dira, or Lightning 2.6.6."
            )
        mine = randomness[trainer.global_rank]
        if validating:  # Lightning validates first.
            self._before_validation = mine["now"]
        self._epoch_randomness = mine["epoch"] if batches else mine["now"]
        set_random_state(self._epoch_randomness)
        iter(fetcher)
        for _ in range(batches):
            next(fetcher)
        # Lightning adds these batches itself.
        fetcher.fetched -= batches
        # If Lightning makes another iterator, it has to draw from the same state.
        then: dict[str, Any] = mine["now"] if batches else random_state()
        set_random_state(mine["now"])
        fetcher.iterator = _after(then, fetcher.iterator)


def steps_in_an_epoch(trainer: Trainer) -> int:
    """Returns how many steps the optimiser takes in an epoch.

    Raises:
        RuntimeError: If the length of an epoch is unknown.
    """
    batches = trainer.num_training_batches
    if math.isinf(batches):
        raise RuntimeError(
            "DiRA: this data loader has no length, so stages cannot be given in "
            "epochs. Give them in steps, in configure_dira."
        )
    return math.ceil(batches / trainer.accumulate_grad_batches)


def steps_taken_in_epoch(trainer: Trainer) -> int:
    """Returns how many steps the optimiser has taken in the resumed epoch."""
    progress: Any = trainer.fit_loop.epoch_loop.batch_progress
    trained = 0 if progress.is_last_batch else progress.current.completed
    return math.ceil(trained / trainer.accumulate_grad_batches)


def _after(randomness: dict[str, Any], iterator: Iterator[Any]) -> Iterator[Any]:
    """Continues an iterator, and sets this random state before its next item."""
    set_random_state(randomness)
    # Not `yield from`, which calls `iter`: Lightning's iterators then start again.
    with contextlib.suppress(StopIteration):
        while True:
            yield next(iterator)
