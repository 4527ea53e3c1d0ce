"""Resuming in the middle of an epoch as if never interrupted.

No other module of this library uses names that Lightning does not document
(`_data_source`, `_data_fetcher` and the loops' progress). They were tested with 2.2.5
and 2.6.6.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.__version__ import version
from torch.utils.data import BatchSampler

from lightly_dira.core.private_torch import drop_workers, tree_leaves
from lightly_dira.core.randomness import random_state, set_random_state
from lightly_dira.core.user_warnings import warn
from lightly_dira.training.own_randomness import OwnRandomness


class PlaceInData(Callback):
    """Saves the place in the data and the random states, and resumes from there.

    Lightning restarts an interrupted epoch at the first batch, in another order, unless
    the loader can save its state. This callback draws the same order again, and skips
    the batches that were trained on. Once DiRA has started, validation leaves the
    random state as it was, since a resumed run may skip it; in stage "di" a run equals
    that of the method alone, whose validation draws.
    """

    def __init__(self) -> None:
        """Starts without any state."""
        self._own = OwnRandomness(())
        self._epoch_randomness: dict[str, Any] | None = None
        self._epoch_ended = False
        self._after_batch: dict[str, Any] | None = None
        self._before_validation: dict[str, Any] | None = None
        self._resume_at: dict[str, Any] | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes the random state that the first epoch's order is drawn from."""
        # The epoch's iterator is made before any other hook is called.
        self._epoch_randomness, self._epoch_ended = self._randomness(), False
        source: Any = getattr(trainer.fit_loop, "_data_source", None)
        if source is None:
            return

        def dataloader() -> Any:
            loaders = type(source).dataloader(source)
            self._own = OwnRandomness(tree_leaves(loaders))
            if not self._epoch_ended:
                self._epoch_randomness = self._randomness()
            return loaders

        source.dataloader = dataloader

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
            self._epoch_randomness, self._epoch_ended = self._randomness(), False
        self._after_batch = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *args: Any
    ) -> None:
        """Notes the random state before the next batch or a validation."""
        self._after_batch = self._randomness()
        if trainer.enable_validation:
            self._before_validation = self._after_batch

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Undoes the random draws of validation, which a resumed run may skip."""
        if self._before_validation is not None and self._undoes_validation(trainer):
            self._set_randomness(self._before_validation)
        self._before_validation = None

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lets the next epoch note its own random state."""
        self._epoch_ended, self._before_validation = True, None

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Saves the place, and the random states of all processes."""
        progress: Any = trainer.fit_loop.epoch_loop.batch_progress
        now: Any = self._randomness()
        trained = progress.current.processed
        if progress.current.ready > trained:
            # A batch was interrupted; it has to be drawn and trained on again.
            now = self._after_batch if trained else self._epoch_randomness
        elif self._before_validation is not None and self._undoes_validation(trainer):
            now = self._before_validation
        mine = {"epoch": self._epoch_randomness, "now": now}
        mine["batch_sizes"] = _batch_sizes(trainer)
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
        now = float(trainer.num_training_batches)
        if len(randomness) != trainer.world_size or of != now:
            warn(
                f"DiRA: the checkpoint was written by {len(randomness)} processes in "
                f"epochs of {of:g} batches, and read by {trainer.world_size} in "
                f"epochs of {now:g}: data come in another order."
            )
            return
        mine = randomness[trainer.global_rank]
        sizes = _batch_sizes(trainer)
        if mine.get("batch_sizes", sizes) != sizes:
            warn(
                "DiRA: the checkpoint was written with batches of "
                f"{mine['batch_sizes']} items, and is read with batches of {sizes}: "
                "data come in another order."
            )
            return
        if all(hasattr(loader, "load_state_dict") for loader in loaders):
            self._set_randomness(mine["now"])
            return
        if any(getattr(loader, "persistent_workers", False) for loader in loaders):
            warn(_PERSISTENT)
        if not trainer.fit_loop.restarting:
            batches = 0
        fetcher = getattr(trainer.fit_loop, "_data_fetcher", None)
        if fetcher is None:
            raise RuntimeError(
                "DiRA: lightly-dira does not find the loader of Lightning "
                f"{version}, so that it cannot resume in the middle of an epoch. "
                "Install a newer lightly-dira, or Lightning 2.6.6."
            )
        if validating:  # Lightning validates first.
            self._before_validation = mine["now"]
        self._epoch_randomness = mine["epoch"] if batches else mine["now"]
        self._set_randomness(self._epoch_randomness)
        epochs: Any = trainer.fit_loop.epoch_progress
        for loader in loaders:
            for holder in (loader, getattr(loader, "batch_sampler", None)):
                sampler: Any = getattr(holder, "sampler", None)
                if hasattr(sampler, "set_epoch"):
                    sampler.set_epoch(epochs.current.processed)
        if not trainer.current_epoch:  # later, persistent workers are taken up again
            for loader in loaders:
                drop_workers(loader)
        iter(fetcher)
        for _ in range(batches):
            next(fetcher)
        # Lightning adds these batches itself.
        fetcher.fetched -= batches
        # If Lightning makes another iterator, it has to draw from the same state.
        then = mine["now"] if batches else self._randomness()
        self._set_randomness(mine["now"])
        fetcher.iterator = self._after(then, fetcher.iterator)

    def _undoes_validation(self, trainer: Trainer) -> bool:
        module: Any = trainer.lightning_module
        return trainer.validating and module.dira.stage != "di"

    def _randomness(self) -> dict[str, Any]:
        """Returns the states of all generators, global and of the loaders' own."""
        return random_state() | {"own": self._own.state()}

    def _set_randomness(self, state: dict[str, Any]) -> None:
        set_random_state(state)
        self._own.load_state(state["own"])

    def _after(self, state: dict[str, Any], iterator: Iterator[Any]) -> Iterator[Any]:
        """Continues an iterator, and sets these random states before its next item."""
        self._set_randomness(state)
        # Not `yield from`, which calls `iter`: Lightning's iterators then start again.
        with contextlib.suppress(StopIteration):
            while True:
                yield next(iterator)


def _batch_sizes(trainer: Trainer) -> list[int | None]:
    """Returns how many items a batch of each loader holds, where that is fixed."""
    samplers = (
        getattr(loader, "batch_sampler", None)
        for loader in tree_leaves(trainer.train_dataloader)
    )
    return [s.batch_size if type(s) is BatchSampler else None for s in samplers]


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


_PERSISTENT = (
    "DiRA: this run resumes with persistent workers. Data come in the same order, but "
    "if they are augmented at random, with other draws than in a run without "
    "interruption, since workers keep their generators from epoch to epoch. For the "
    "same draws, train with persistent_workers=False."
)
