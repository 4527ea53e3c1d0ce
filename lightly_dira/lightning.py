"""DiRA for Lightning: a mixin for any LightningModule, and callbacks that watch it."""

from __future__ import annotations

import contextlib
import inspect
import math
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from lightly.utils.debug import std_of_l2_normalized
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves
from torchvision.utils import make_grid, save_image

from lightly_dira.discovery import evaluating
from lightly_dira.optimization import held_by
from lightly_dira.resuming import (
    buffers_of,
    load_buffers,
    random_state,
    set_random_state,
)
from lightly_dira.views import DiRAViews, find_views
from lightly_dira.wrapper import DiRA

# Names that Lightly's examples give to the backbone that is trained.
_BACKBONES = ("backbone", "student_backbone", "online_backbone", "encoder")

_SHARDING = ("FSDPStrategy", "ModelParallelStrategy", "DeepSpeedStrategy")


class DiRAMixin:
    """Makes a DiRA variant of a LightningModule: ``class DiRAMoCo(DiRAMixin, MoCo)``.

    It stands in front of the method, keeps automatic optimisation, and adds to
    `training_step` the one scalar of `DiRA`. Batches come from a `DiRATransform`.

    - `configure_dira` makes the `DiRA`; it is there as `self.dira` as soon as somebody
      asks for it, at the latest when the Trainer sets up.
    - The optimiser that `configure_optimizers` returns, in whichever form, trains the
      head, too; the discriminator's Adam steps after it.
    - The terms are logged as ``dira/discriminative``, ``dira/restorative``,
      ``dira/adversarial`` and ``dira/discriminator``.
    - Checkpoints hold `self.dira`, buffers that modules leave out of theirs, such as
      the memory bank of Lightly's losses, and the place in the data: a run that was
      killed in the middle of an epoch goes on as one never interrupted. To find the
      place, the epoch's batches so far are loaded once more; a loader with a
      `load_state_dict` of its own is left to Lightning. Validation leaves the random
      state as it was.

    Attributes:
        dira: The `DiRA`.
        restorative_start_epoch: Epochs before the restoration starts, fractions, too.
        adversarial_start_epoch: Epochs before the adversary starts. Where both are
            None, what `configure_dira` says counts, in steps.

    Examples:
        >>> import torch, torchvision
        >>> from pytorch_lightning import LightningModule
        >>> from lightly_dira.lightning import DiRAMixin
        >>> class SimPair(LightningModule):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.backbone = torchvision.models.resnet18()
        ...     def training_step(self, batch, batch_index):
        ...         x0, x1 = batch[0]
        ...         return (self.backbone(x0) - self.backbone(x1)).square().mean()
        ...     def configure_optimizers(self):
        ...         return torch.optim.SGD(self.parameters(), lr=0.06)
        >>> class DiRASimPair(DiRAMixin, SimPair):
        ...     adversarial_start_epoch = 10
        >>> DiRASimPair().dira.features.channels
        [64, 64, 128, 256, 512]
    """

    restorative_start_epoch: float | None = None
    adversarial_start_epoch: float | None = None

    dira: DiRA
    _epoch_randomness: dict[str, Any] | None = None
    _epoch_ended = False
    _before_validation: dict[str, Any] | None = None
    _resume_at: dict[str, Any] | None = None

    def configure_dira(self) -> DiRA:
        """Makes the `DiRA`, without an optimiser. Override it to choose the parts.

        Raises:
            RuntimeError: If no backbone is found.
        """
        for name in _BACKBONES:
            backbone = getattr(self, name, None)
            if isinstance(backbone, nn.Module):
                return DiRA(backbone)
        raise RuntimeError(
            f"DiRA: {type(self).__name__} has none of the attributes "
            f"{', '.join(_BACKBONES)}. Override `configure_dira(self)` and return "
            "DiRA(self.<the encoder>)."
        )

    def __getattr__(self, name: str) -> Any:
        """Makes `dira` when it is asked for first."""
        if name == "dira" and "dira" not in self.__dict__.get("_modules", {}):
            self.dira = self.configure_dira()
        return super().__getattr__(name)  # type: ignore[misc]

    def setup(self, stage: str) -> None:
        """Makes `dira` before the Trainer moves or wraps the module.

        Raises:
            RuntimeError: If the Trainer's strategy shards the model.
        """
        strategy = type(self.trainer.strategy).__name__
        if strategy in _SHARDING:
            raise RuntimeError(
                f"DiRA: {strategy} would shard the discriminator under its own Adam, "
                'which DiRAMixin cannot follow. Choose strategy="ddp", or shard the '
                "model in a plain loop, as the README shows."
            )
        self.dira  # noqa: B018
        super().setup(stage)  # type: ignore[misc]

    def configure_optimizers(self) -> Any:
        """Hands the head to the optimiser that holds the backbone.

        Raises:
            RuntimeError: If optimisation is manual, or no optimiser holds the backbone.
        """
        if not self.automatic_optimization:
            raise RuntimeError(
                "DiRA: DiRAMixin needs automatic optimisation. Where you call "
                "`manual_backward` yourself, use DiRA in the training step: "
                "`loss = self.dira(loss, batch)`."
            )
        configured = super().configure_optimizers()  # type: ignore[misc]
        backbone = self.dira.features.backbone
        weights = {id(parameter) for parameter in backbone.parameters()}
        optimizers = list(_optimizers_in(configured))
        holding = [o for o in optimizers if weights & held_by(o)]
        if not holding:
            raise RuntimeError(
                "DiRA: none of the optimisers that configure_optimizers returned "
                f"({len(optimizers)}) holds the backbone, so that nothing trains it."
            )
        self.dira.attach(holding[0])
        return configured

    def training_step(self, batch: Any, *args: Any, **kwargs: Any) -> Any:
        """Adds restoration and adversary to the method's loss."""
        step = super().training_step  # type: ignore[misc]
        takes = len(inspect.signature(step).parameters) - 1 - len(kwargs)
        output = step(batch, *args[: max(takes, 0)], **kwargs)
        loss = output.get("loss") if isinstance(output, Mapping) else output
        if loss is None:
            self.dira.features.forget()
            return output
        total = self.dira(loss, batch)
        assert self.dira.components is not None
        terms = self.dira.components._asdict()
        views = find_views(batch)
        self.log_dict(
            {f"dira/{name}": terms[name] for name in terms if name != "total"},
            batch_size=None if views is None else len(views.target),
        )
        return {**output, "loss": total} if isinstance(output, Mapping) else total

    def on_fit_start(self) -> None:
        """Notes the random state that the first epoch's order is drawn from."""
        super().on_fit_start()  # type: ignore[misc]
        # Its iterator is made before any other hook is called.
        self._epoch_randomness, self._epoch_ended = random_state(), False

    def on_train_start(self) -> None:
        """Turns epochs into steps, and finds the place where a checkpoint was saved."""
        epochs = self.restorative_start_epoch, self.adversarial_start_epoch
        if epochs != (None, None):
            trainer = self.trainer
            batches = trainer.num_training_batches
            if math.isinf(batches):
                raise RuntimeError(
                    "DiRA: the epochs of this data loader have no length, so stages "
                    "cannot be given in epochs. Give them in steps, in configure_dira."
                )
            steps = math.ceil(batches / trainer.accumulate_grad_batches)
            self.dira.start_stages(*((epoch or 0) * steps for epoch in epochs))
        super().on_train_start()  # type: ignore[misc]
        # Weights may also have been loaded to start another run with.
        if self._resume_at is not None and self.trainer.ckpt_path is not None:
            self._resume_data(**self._resume_at)
        self._resume_at = None

    def on_train_epoch_start(self) -> None:
        """Notes the random state that this epoch's order is drawn from."""
        super().on_train_epoch_start()  # type: ignore[misc]
        if self._epoch_ended:
            self._epoch_randomness, self._epoch_ended = random_state(), False

    def on_train_batch_end(self, *args: Any) -> None:
        """Notes the random state in front of a validation."""
        super().on_train_batch_end(*args)  # type: ignore[misc]
        if self.trainer.enable_validation:
            self._before_validation = random_state()

    def on_validation_end(self) -> None:
        """Lets training go on as if without validation, which resuming may skip."""
        super().on_validation_end()  # type: ignore[misc]
        if self._before_validation is not None and self.trainer.validating:
            set_random_state(self._before_validation)
        self._before_validation = None

    def on_train_epoch_end(self) -> None:
        """Lets the next epoch note its own."""
        super().on_train_epoch_end()  # type: ignore[misc]
        self._epoch_ended, self._before_validation = True, None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Saves what is in no state dict: some buffers, and the place in the data."""
        super().on_save_checkpoint(checkpoint)  # type: ignore[misc]
        checkpoint["dira_buffers"] = buffers_of(cast(nn.Module, self), left_out=True)
        progress = self.trainer.fit_loop.epoch_loop.batch_progress
        mine = {"epoch": self._epoch_randomness, "now": random_state()}
        randomness: list[Any] = [mine] * self.trainer.world_size
        if len(randomness) > 1:
            torch.distributed.all_gather_object(randomness, mine)
        checkpoint["dira_data"] = {
            "batches": 0 if progress.is_last_batch else progress.current.ready,
            "randomness": randomness,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Loads what is in no state dict, once `dira` is there."""
        self.dira  # noqa: B018
        super().on_load_checkpoint(checkpoint)  # type: ignore[misc]
        load_buffers(cast(nn.Module, self), checkpoint.get("dira_buffers", {}))
        self._resume_at = checkpoint.get("dira_data")

    def _resume_data(self, batches: int, randomness: list[dict[str, Any]]) -> None:
        """Draws the epoch as it was drawn, and passes over what it has trained on.

        Lightning starts it from the first batch, in another order, unless the loader
        can tell its state.
        """
        trainer = self.trainer
        loaders = tree_leaves(trainer.train_dataloader)
        if all(hasattr(loader, "load_state_dict") for loader in loaders):
            return
        if len(randomness) != trainer.world_size:
            warnings.warn(
                f"DiRA: the checkpoint was written by {len(randomness)} processes, and "
                f"read by {trainer.world_size}: data come in another order.",
                stacklevel=2,
            )
            return
        if not trainer.fit_loop.restarting:
            batches = 0
        epoch = trainer.fit_loop.epoch_progress.current.processed
        for loader in loaders:
            for holder in (loader, getattr(loader, "batch_sampler", None)):
                sampler: Any = getattr(holder, "sampler", None)
                if hasattr(sampler, "set_epoch"):
                    sampler.set_epoch(epoch)
        fetcher = trainer.fit_loop._data_fetcher
        assert fetcher is not None
        mine = randomness[trainer.global_rank]
        self._epoch_randomness = mine["epoch"] if batches else mine["now"]
        set_random_state(self._epoch_randomness)
        iter(fetcher)
        for _ in range(batches):
            next(fetcher)
        # Lightning adds them by itself.
        fetcher.fetched -= batches
        # It may also make another iterator: that one is drawn from the same state.
        then = mine["now"] if batches else random_state()
        set_random_state(mine["now"])
        fetcher.iterator = _after(then, fetcher.iterator)


def _after(randomness: dict[str, Any], iterator: Iterator[Any]) -> Iterator[Any]:
    """Goes on with an iterator, in this random state, once somebody asks for more."""
    set_random_state(randomness)
    # Not `yield from`, since Lightning's iterators start again when asked for theirs.
    with contextlib.suppress(StopIteration):
        while True:
            yield next(iterator)


class _HeldOutCallback(Callback):
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
        self._views = None if batch is None else find_views(batch)
        self._settled = batch is not None
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
            self._views = find_views(batch) or self._views
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
            self._views = find_views(batch)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Looks at the batch."""
        if (trainer.current_epoch + 1) % self.every_n_epochs or self._views is None:
            return
        dira = getattr(pl_module, "dira", None)
        if not isinstance(dira, DiRA):
            raise RuntimeError(
                f"{type(self).__name__}: {type(pl_module).__name__} has no `dira`. Put "
                "DiRAMixin in front of it."
            )
        views = self._views.to(pl_module.device)
        with torch.no_grad(), evaluating(pl_module):
            self._look(trainer, pl_module, dira, views)

    def _look(
        self, trainer: Trainer, module: LightningModule, dira: DiRA, views: DiRAViews
    ) -> None:
        raise NotImplementedError


class RestorationLogger(_HeldOutCallback):
    """Shows what becomes of images: clean, distorted, restored and the difference.

    One row for each image goes to every logger of the Trainer that takes images
    (TensorBoard, Weights & Biases); beside others, and without any, PNG files are
    written to ``restorations/`` in their folder. Views are shown in grey and from their
    darkest to their brightest value, since they may have been normalised.

    Examples:
        >>> from pytorch_lightning import Trainer
        >>> from lightly_dira.lightning import RestorationLogger
        >>> trainer = Trainer(callbacks=[RestorationLogger(every_n_epochs=10)])
    """

    def __init__(
        self, batch: Any = None, *, every_n_epochs: int = 1, n: int = 8
    ) -> None:
        """Keeps what to show.

        Args:
            batch: Views of a `DiRATransform`, as a data loader gives them; by default
                the first batch of validation, or, without one, of training.
            every_n_epochs: How often to show them.
            n: How many images at most.
        """
        super().__init__(batch, every_n_epochs=every_n_epochs)
        self.n = n

    def _look(
        self, trainer: Trainer, module: LightningModule, dira: DiRA, views: DiRAViews
    ) -> None:
        if not trainer.is_global_zero:
            return
        view, clean = views.view[: self.n], views.target[: self.n]
        restored = dira.restore(view)
        columns = (clean, view, restored, (restored - clean).abs())
        cells = torch.stack([_grey(column) for column in columns], dim=1)
        grid = make_grid(cells.flatten(0, 1), nrow=len(columns)).cpu()
        name, epoch = "dira/restorations", trainer.current_epoch
        loggers: list[Any] = [*trainer.loggers] or [None]
        for logger in loggers:
            if hasattr(logger, "log_image"):
                logger.log_image(name, [grid], step=trainer.global_step)
            elif hasattr(getattr(logger, "experiment", None), "add_image"):
                logger.experiment.add_image(name, grid, trainer.global_step)
            else:
                root = getattr(logger, "log_dir", None) or trainer.default_root_dir
                folder = Path(root) / "restorations"
                folder.mkdir(parents=True, exist_ok=True)
                save_image(grid, folder / f"epoch-{epoch:04}.png")


class CollapseWatch(_HeldOutCallback):
    """Logs whether the encoder collapses or the adversary wins outright.

    - ``dira/std``: standard deviation, over images, of the normalised representation
      (the coarsest map, averaged), times the root of its length [0]: 0 where all are
      the same, 1 where they are spread evenly; an untrained ResNet has about 0.1.
    - ``dira/accuracy_real`` and ``dira/accuracy_restored``: how many patches of clean
      and of restored images the discriminator takes for what they are.

    It warns, once each, of a standard deviation below `collapsed` and, in stage `dira`,
    of accuracies that are both above `won`.

    - [0]: SimSiam, 2020, https://arxiv.org/abs/2011.10566 (Section 4.1)

    Examples:
        >>> from pytorch_lightning import Trainer
        >>> from lightly_dira.lightning import CollapseWatch
        >>> trainer = Trainer(callbacks=[CollapseWatch()])
    """

    def __init__(
        self,
        batch: Any = None,
        *,
        every_n_epochs: int = 1,
        collapsed: float = 0.01,
        won: float = 0.99,
    ) -> None:
        """Keeps when to warn.

        Args:
            batch: As of `RestorationLogger`; of at least two images.
            every_n_epochs: How often to look.
            collapsed: Standard deviation below which the encoder has collapsed.
            won: Accuracy above which the adversary has won.
        """
        super().__init__(batch, every_n_epochs=every_n_epochs)
        self.collapsed, self.won = collapsed, won
        self._warned: set[str] = set()

    def _look(
        self, trainer: Trainer, module: LightningModule, dira: DiRA, views: DiRAViews
    ) -> None:
        representation = dira.features(views.view)[-1].flatten(2).mean(dim=2)
        std = std_of_l2_normalized(representation) * representation.shape[1] ** 0.5
        logits = [
            dira.discriminator(x) for x in (views.target, dira.restore(views.view))
        ]
        # Least squares pull logits to 1 and 0, the others to above and below 0.
        middle = 0.5 if dira.loss.adversary == "least_squares" else 0.0
        real = (logits[0] > middle).float().mean()
        restored = (logits[1] < middle).float().mean()
        values = {"std": std, "accuracy_real": real, "accuracy_restored": restored}
        module.log_dict({f"dira/{name}": value for name, value in values.items()})
        if std < self.collapsed:
            self._warn(
                f"the encoder has collapsed: representations of different images have "
                f"a standard deviation of {std:.4f}, expected 0.1 to 1. Look at "
                "the method's own loss, its augmentations and the learning rate."
            )
        if dira.stage == "dira" and min(real, restored) > self.won:
            self._warn(
                "the adversary has won outright: it knows every patch of clean and of "
                "restored images. Lower `discriminator_lr`, or start it later."
            )

    def _warn(self, message: str) -> None:
        kind = message.partition(":")[0]
        if kind not in self._warned:
            self._warned.add(kind)
            warnings.warn(f"DiRA: {message}", stacklevel=2)


def _grey(images: Tensor) -> Tensor:
    """Returns images with one channel, from 0, the darkest, to 1 where out of range."""
    images = images.float().mean(dim=1, keepdim=True)
    low, high = images.aminmax()
    if low >= 0 and high <= 1:
        return images
    low, high = (
        f(images, dim=(1, 2, 3), keepdim=True) for f in (torch.amin, torch.amax)
    )
    return (images - low) / (high - low).clamp_min(1e-6)


def _optimizers_in(configured: Any) -> Iterator[Optimizer]:
    """Yields the optimisers in all that `configure_optimizers` may return."""
    if isinstance(configured, Optimizer):
        yield configured
    elif isinstance(configured, Mapping):
        yield from _optimizers_in(configured.get("optimizer"))
    elif isinstance(configured, (list, tuple)):
        for item in configured:
            yield from _optimizers_in(item)
