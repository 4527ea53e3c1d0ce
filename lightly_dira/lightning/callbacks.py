"""Callbacks that watch a run: pictures of restorations, and warnings of a collapse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightly.utils.debug import std_of_l2_normalized
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torchvision.utils import make_grid, save_image

from lightly_dira.adversary import Adversary
from lightly_dira.core.modes import evaluating
from lightly_dira.core.randomness import same_randomness
from lightly_dira.core.user_warnings import warn
from lightly_dira.dira import DiRA
from lightly_dira.loss.adversaries import judge
from lightly_dira.transforms.preview import orthogonal_slices
from lightly_dira.views import DiRAViews, find_views


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
                self._warn(f"{type(self).__name__} shows nothing: {error}")
                return
            self._look(trainer, pl_module, module.dira, views, seen)

    def _look(
        self,
        trainer: Trainer,
        module: LightningModule,
        dira: DiRA,
        views: DiRAViews,
        seen: Tensor,
    ) -> None:
        raise NotImplementedError

    def _warn(self, message: str) -> None:
        kind = message.partition(":")[0]
        if kind not in self._warned:
            self._warned.add(kind)
            warn(f"DiRA: {message.removeprefix('DiRA: ')}")


class RestorationLogger(_HeldOutCallback):
    """Shows images: clean, distorted, restored and the difference.

    Every logger of the Trainer that takes images (TensorBoard, Weights & Biases) gets
    one row for each image; volumes show their three middle slices. For other loggers,
    or without any, PNG files are written to ``restorations/`` in the logger's or the
    Trainer's folder. Views are shown in grey,
    scaled from their darkest to their brightest value, since they may be normalised.

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
        self,
        trainer: Trainer,
        module: LightningModule,
        dira: DiRA,
        views: DiRAViews,
        seen: Tensor,
    ) -> None:
        if not trainer.is_global_zero:
            return
        view, clean = views.view[: self.n], views.target[: self.n]
        restored = dira.restore(seen[: self.n])
        columns = [clean, view, restored, (restored - clean).abs()]
        if view.ndim == 5:
            columns = [orthogonal_slices(column) for column in columns]
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
      (the coarsest map, averaged), times the square root of its length [0]: 0 if all
      are the same, 1 if they are spread evenly; an untrained ResNet has about 0.1.
    - ``dira/accuracy_real`` and ``dira/accuracy_restored``: the fraction of patches of
      clean and of restored images that the discriminator classifies correctly.
    - ``dira/adversarial_share``: in stage `dira`, the norm of the adversary's gradient
      at the encoder's maps over that of restoration's, with their weights. With the
      published weights it is about 0.002: such an adversary changes nothing. See
      ``DiRALoss(balanced=True)``.

    A Wasserstein critic gives scores, not classes: its accuracies are left out.

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
            batch: As in `RestorationLogger`, with at least two images.
            every_n_epochs: How often to look.
            collapsed: Standard deviation below which the encoder has collapsed.
            won: Accuracy above which the adversary has won.
        """
        super().__init__(batch, every_n_epochs=every_n_epochs)
        self.collapsed, self.won = collapsed, won

    def _look(
        self,
        trainer: Trainer,
        module: LightningModule,
        dira: DiRA,
        views: DiRAViews,
        seen: Tensor,
    ) -> None:
        maps = dira.features(seen)
        representation = maps[-1].flatten(2).mean(dim=2)
        std = std_of_l2_normalized(representation) * representation.shape[1] ** 0.5
        condition = seen if dira.conditional else None
        values: dict[str, Any] = {"std": std}
        critic = dira.discriminator
        if critic is not None and dira.loss.adversary != "wasserstein":
            values |= _accuracies(dira, critic, views, seen, condition)
        if critic is not None and dira.stage == "dira":
            share = _share(dira, critic, views, maps, condition)
            values["adversarial_share"] = share
        module.log_dict({f"dira/{name}": value for name, value in values.items()})
        if std < self.collapsed:
            self._warn(
                f"the encoder has collapsed: representations of different images have "
                f"a standard deviation of {std:.4f}, expected 0.1 to 1. Look at "
                "the method's own loss, its augmentations and the learning rate."
            )
        accuracies = [v for name, v in values.items() if name.startswith("accuracy")]
        if accuracies and dira.stage == "dira" and min(accuracies) > self.won:
            self._warn(
                "the adversary has won outright: it recognises every patch of clean "
                "and of restored images. Lower `discriminator_lr`, or start the "
                "adversary later."
            )


def _accuracies(
    dira: DiRA,
    critic: nn.Module,
    views: DiRAViews,
    seen: Tensor,
    condition: Tensor | None,
) -> dict[str, Tensor]:
    """Returns which part of clean and of restored patches the critic recognises."""
    weights: dict[str, Tensor] = dict(critic.named_parameters())
    real, restored = (
        judge(critic, weights, images, condition)
        for images in (views.target, dira.restore(seen))
    )
    # Least squares pulls logits to 1 and 0, the other losses above and below 0.
    middle = 0.5 if dira.loss.adversary == "least_squares" else 0.0
    return {
        "accuracy_real": (real > middle).float().mean(),
        "accuracy_restored": (restored < middle).float().mean(),
    }


def _share(
    dira: DiRA,
    critic: nn.Module,
    views: DiRAViews,
    maps: list[Tensor],
    condition: Tensor | None,
) -> Tensor:
    """Compares the gradients of adversary and restoration at the encoder's maps."""
    maps = [m.detach().requires_grad_() for m in maps]
    factors = dira.schedule(dira.steps)
    with torch.enable_grad(), same_randomness(maps[0].device):
        restored = dira.head(maps, views.view.shape[2:])
        terms = dira.loss.reference_components(
            restored.new_zeros(()),
            restored,
            views.target,
            critic,
            factors,
            condition=condition,
            last_layer=dira.last_layer,
        )
        restoring = (
            factors.restorative * dira.loss.restorative_weight * terms.restorative
        )
        by_restoration, by_both = (
            torch.cat(
                [g.flatten() for g in torch.autograd.grad(t, maps, retain_graph=True)]
            )
            for t in (restoring, terms.total)
        )
    share: Tensor = (by_both - by_restoration).norm() / by_restoration.norm()
    return share


def _grey(images: Tensor) -> Tensor:
    """Returns images in grey, scaled from darkest to brightest if outside [0, 1]."""
    images = images.float().mean(dim=1, keepdim=True)
    low, high = images.aminmax()
    if low >= 0 and high <= 1:
        return images
    low, high = (
        f(images, dim=(1, 2, 3), keepdim=True) for f in (torch.amin, torch.amax)
    )
    return (images - low) / (high - low).clamp_min(1e-6)
