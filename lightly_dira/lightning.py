"""DiRAMixin: any LightningModule of a discriminative method becomes a DiRA variant."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from lightly_dira.optimization import held_by
from lightly_dira.views import find_views
from lightly_dira.wrapper import DiRA

# Names that Lightly's examples give to the backbone that is trained.
_BACKBONES = ("backbone", "student_backbone", "online_backbone", "encoder")


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
    - Checkpoints hold `self.dira` and buffers that modules leave out of theirs, such as
      the memory bank of Lightly's losses.

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
        """Makes `dira` before the Trainer moves, wraps or shards the module."""
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

    def on_train_start(self) -> None:
        """Turns epochs into steps."""
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

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Saves the buffers that are in no state dict."""
        super().on_save_checkpoint(checkpoint)  # type: ignore[misc]
        checkpoint["dira_buffers"] = {
            name: buffer.clone() for name, buffer in self._other_buffers()
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Loads the buffers that are in no state dict, once `dira` is there."""
        self.dira  # noqa: B018
        super().on_load_checkpoint(checkpoint)  # type: ignore[misc]
        saved = checkpoint.get("dira_buffers", {})
        for name, buffer in self._other_buffers():
            if name in saved:
                buffer.copy_(saved[name])

    def _other_buffers(self) -> Iterator[tuple[str, Tensor]]:
        persistent = set(self.state_dict())
        for name, buffer in self.named_buffers():
            if name not in persistent:
                yield name, buffer


def _optimizers_in(configured: Any) -> Iterator[Optimizer]:
    """Yields the optimisers in all that `configure_optimizers` may return."""
    if isinstance(configured, Optimizer):
        yield configured
    elif isinstance(configured, Mapping):
        yield from _optimizers_in(configured.get("optimizer"))
    elif isinstance(configured, (list, tuple)):
        for item in configured:
            yield from _optimizers_in(item)
