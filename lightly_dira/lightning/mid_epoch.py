"""Going on in the middle of an epoch as if never interrupted.

The only place in this library that uses names which Lightning does not document
(`_data_fetcher` and the loops' progress). They were tried with 2.2.5 and 2.6.6.
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
    """Saves the place in the data and the random states, and goes on from there.

    Lightning starts an interrupted epoch from the first batch, in another order, unless
    the loader can tell its state. This draws the epoch as it was drawn, and passes over
    the batches that were trained on. Validation, which a resumed run may skip, leaves
    the random state as it was.
    """

    def __init__(self) -> None:
        """Knows nothing yet."""
        self._epoch_randomness: dict[str, Any] | None = None
        self._epoch_ended = False
        self._after_batch: dict[str, Any] | None = None
        self._before_validation: dict[str, Any] | None = None
        self._resume_at: dict[str, Any] | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes the random state that the first epoch's order is drawn from."""
        # Its iterator is made before any other hook is called.
        self._epoch_randomness, self._epoch_ended = random_state(), False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Finds the place where a checkpoint was saved."""
        # Weights may also have been loaded to start another run with.
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
        """Notes the random state in front of the next batch or of a validation."""
        self._after_batch = random_state()
        if trainer.enable_validation:
            self._before_validation = self._after_batch

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lets training go on as if without validation, which resuming may skip."""
        if self._before_validation is not None and trainer.validating:
            set_random_state(self._before_validation)
        self._before_validation = None

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lets the next epoch note its own."""
        self._epoch_ended, self._before_validation = True, None

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Saves the place, and the random states of all processes."""
        progress: Any = trainer.fit_loop.epoch_loop.batch_progress
        now: Any = random_state()
        trained = progress.current.processed
        if progress.current.ready > trained:
            # Interrupted within a batch, which is to be drawn and trained again.
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
                f"DiRA: Lightning {version} keeps its loader "
                "where lightly-dira does not find it, so that it cannot go on in the "
                "middle of an epoch. Install a newer lightly-dira, or Lightning 2.6.6."
            )
        mine = randomness[trainer.global_rank]
        if validating:  # Lightning validates first.
            self._before_validation = mine["now"]
        self._epoch_randomness = mine["epoch"] if batches else mine["now"]
        set_random_state(self._epoch_randomness)
        iter(fetcher)
        for _ in range(batches):
            next(fetcher)
        # Lightning adds them by itself.
        fetcher.fetched -= batches
        # It may also make another iterator: that one is drawn from the same state.
        then: dict[str, Any] = mine["now"] if batches else random_state()
        set_random_state(mine["now"])
        fetcher.iterator = _after(then, fetcher.iterator)


def steps_in_an_epoch(trainer: Trainer) -> int:
    """Returns how many steps the optimiser takes in an epoch.

    Raises:
        RuntimeError: If nobody knows.
    """
    batches = trainer.num_training_batches
    if math.isinf(batches):
        raise RuntimeError(
            "DiRA: the epochs of this data loader have no length, so stages "
            "cannot be given in epochs. Give them in steps, in configure_dira."
        )
    return math.ceil(batches / trainer.accumulate_grad_batches)


def steps_taken_in_epoch(trainer: Trainer) -> int:
    """Returns how many steps the optimiser has taken in an epoch that is resumed."""
    progress: Any = trainer.fit_loop.epoch_loop.batch_progress
    trained = 0 if progress.is_last_batch else progress.current.completed
    return math.ceil(trained / trainer.accumulate_grad_batches)


def _after(randomness: dict[str, Any], iterator: Iterator[Any]) -> Iterator[Any]:
    """Goes on with an iterator, in this random state, once somebody asks for more."""
    set_random_state(randomness)
    # Not `yield from`, since Lightning's iterators start again when asked for theirs.
    with contextlib.suppress(StopIteration):
        while True:
            yield next(iterator)
