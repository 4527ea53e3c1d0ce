"""Shows during a run what is restored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.utils import make_grid, save_image

from lightly_dira.lightning.held_out import HeldOut, HeldOutCallback
from lightly_dira.transforms.preview import orthogonal_slices


class RestorationLogger(HeldOutCallback):
    """Shows images: clean, distorted, restored and the difference.

    Every logger of the Trainer that takes images (TensorBoard, Weights & Biases) gets
    one row for each image; volumes show their three middle slices. For other loggers,
    or without any, PNG files are written to ``restorations/`` in the logger's or the
    Trainer's folder. All are shown in grey. A column with values outside [0, 1], such
    as normalised views, is scaled, each image from its darkest to its brightest value.

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

    def look(self, at: HeldOut) -> None:
        """Shows the images."""
        trainer, dira, views = at.trainer, at.dira, at.views
        if not trainer.is_global_zero:
            return
        view, clean = views.view[: self.n], views.target[: self.n]
        restored = dira.restore(at.seen[: self.n])
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
