"""The mixin that makes a DiRA variant of any LightningModule."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, cast

from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn
from torch.optim import Optimizer

from lightly_dira.adversary import Adversary
from lightly_dira.dira import DiRA
from lightly_dira.lightning.made_after_init import (
    MadeAfterInit,
    is_lightnings,
    is_module,
    then_dira,
)
from lightly_dira.lightning.mid_epoch import PlaceInData
from lightly_dira.lightning.stages import EpochStages
from lightly_dira.loss.schedule import Schedule
from lightly_dira.training.optimizer_groups import held_by
from lightly_dira.training.state import buffers_of, load_buffers
from lightly_dira.views import find_views

# Names that Lightly's examples give to the backbone that is trained.
_BACKBONES = "backbone, student_backbone, online_backbone, anchor_backbone, encoder"

_SHARDING = ("FSDPStrategy", "ModelParallelStrategy", "DeepSpeedStrategy")


class DiRAMixin(metaclass=MadeAfterInit):
    """Makes a DiRA variant of a LightningModule: ``class DiRAMoCo(DiRAMixin, MoCo)``.

    It comes before the method in the list of bases, keeps automatic optimisation, and
    makes `training_step` return the total loss of `DiRA`. Batches come from a
    `DiRATransform`.

    - `configure_dira` makes the `DiRA`, which is `self.dira` once the module has been
      constructed or, if `setup` or `configure_model` makes the backbone, after those.
    - The optimiser that `configure_optimizers` returns, in any form, also trains the
      head; the discriminator's Adam steps after it.
    - A step may say what it called the backbone with, ``{"loss": loss, "view": x}``,
      and which views it made itself, ``{"loss": loss, "views": views}``.
    - A host that restores by itself (`configure_dira` returns an `Adversary`) returns
      what it restored, ``{"loss": loss, "restored": images, "target": clean}``, and the
      "view" that it made them from, if the critic is conditional.
    - The terms are logged as ``dira/discriminative``, ``dira/restorative``,
      ``dira/adversarial`` and ``dira/discriminator``.
    - Checkpoints hold `self.dira`, buffers that are in no state dict, such as the
      memory bank of Lightly's losses, and the place in the data: a run that was killed
      in the middle of an epoch resumes as if never interrupted (see
      `lightly_dira.lightning` for what that covers). To find the place, it loads the
      past batches of the epoch again; Lightning handles loaders that have a
      `load_state_dict` of their own. Once DiRA has started, validation leaves the
      random state as it was.

    Attributes:
        dira: The `DiRA`.
        restorative_start_epoch: Epochs before the restoration starts; fractions work.
        adversarial_start_epoch: Epochs before the adversary starts. If both are None,
            the steps given in `configure_dira` apply.
        schedule_in_epochs: A `Schedule` whose ramps count epochs, in place of both.
        progress_bar_terms: Names of the terms that the progress bar shows.

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
    schedule_in_epochs: Schedule | None = None
    progress_bar_terms: tuple[str, ...] = ("restorative",)

    dira: DiRA | Adversary
    configure_model: Any
    # The batch before the strategy got it: DistributedDataParallel rebuilds its lists.
    _batch: Any = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Checks the order of the bases.

        Raises:
            TypeError: If the method comes before the mixin.
        """
        super().__init_subclass__(**kwargs)
        for base in cls.__mro__:
            if base is DiRAMixin:
                break
            if is_module(base) and not issubclass(base, DiRAMixin):
                raise TypeError(
                    f"DiRA: {base.__name__} comes before DiRAMixin, so the mixin's "
                    f"training step would never be called. Write class {cls.__name__}"
                    f"(DiRAMixin, {base.__name__})."
                )
        configure_model = getattr(cls, "configure_model", None)
        # Lightning's own does nothing.
        usual = configure_model is None or is_lightnings(configure_model.__module__)
        if not usual and not hasattr(configure_model, "makes_dira"):
            cls.configure_model = then_dira(configure_model)

    def configure_dira(self) -> DiRA | Adversary:
        """Makes the wrapper, without an optimiser. Override it to choose the parts.

        Raises:
            RuntimeError: If no backbone is found.
        """
        backbone = self._backbone()
        if backbone is None:
            raise RuntimeError(
                f"DiRA: {type(self).__name__} has none of the attributes "
                f"{_BACKBONES}. Override `configure_dira(self)` and return "
                "DiRA(self.<the encoder>)."
            )
        return DiRA(backbone)

    def __getattr__(self, name: str) -> Any:
        """Says why there is no `dira` yet."""
        if name == "dira" and "dira" not in self.__dict__.get("_modules", {}):
            raise AttributeError(
                f"DiRA: {type(self).__name__} has no `dira` yet, since it has no "
                f"backbone ({_BACKBONES}). `setup` makes it, once there is "
                "a backbone. Override `configure_dira(self)` for another name."
            )
        return super().__getattr__(name)  # type: ignore[misc]

    def setup(self, stage: str) -> None:
        """Makes `dira`, if it is missing, before the Trainer moves or wraps the module.

        Raises:
            RuntimeError: If the Trainer's strategy shards the model.
        """
        strategy = type(self.trainer.strategy).__name__
        if strategy in _SHARDING:
            raise RuntimeError(
                f"DiRA: {strategy} would shard the discriminator, which has its own "
                'Adam, and DiRAMixin does not support this. Choose strategy="ddp", or '
                "shard the model in a plain loop, as `lightly_dira.lightning` shows."
            )
        super().setup(stage)  # type: ignore[misc]
        self._make_dira(required=False)

    def configure_callbacks(self) -> Any:
        """Adds callbacks, since overriding other hooks cannot remove them."""
        callbacks = super().configure_callbacks()  # type: ignore[misc]
        several = isinstance(callbacks, (list, tuple))
        own = [*callbacks] if several else [callbacks]
        return [*own, PlaceInData(), EpochStages()]

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
        if not any(isinstance(c, EpochStages) for c in self.trainer.callbacks):
            raise RuntimeError(
                f"DiRA: {type(self).__name__} overrides configure_callbacks and leaves "
                "out what DiRAMixin returns there. Return "
                "[*super().configure_callbacks(), ...]."
            )
        self._make_dira(required=True)
        configured = super().configure_optimizers()  # type: ignore[misc]
        backbone = self.dira.features.backbone
        weights = {id(parameter) for parameter in backbone.parameters()}
        optimizers: list[Optimizer] = []
        apply_to_collection(configured, Optimizer, optimizers.append)
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
        parameters = inspect.signature(step).parameters
        if "dataloader_iter" in parameters:
            raise RuntimeError(
                "DiRA: DiRAMixin cannot extend a training step that takes the loader's "
                "iterator (`dataloader_iter`). Take batches, or call "
                "`loss = self.dira(loss, batch)` in a step of your own."
            )
        if all(p.kind is not p.VAR_POSITIONAL for p in parameters.values()):
            args = args[: max(len(parameters) - 1 - len(kwargs), 0)]
        before = self.dira.components
        output = step(batch, *args, **kwargs)
        if self.dira.components is not before:
            raise RuntimeError(_TWICE)
        loss = output.get("loss") if isinstance(output, Mapping) else output
        if loss is None:
            self.dira.features.forget()
            return output
        views = [*find_views(batch)] or [*find_views(self._batch)]
        given: dict[str, Any] = {}
        if isinstance(output, Mapping):
            # Lightning must not keep the graphs of these images.
            output = dict(output)
            views = [*find_views(output.pop("views", None))] or views
            host = isinstance(self.dira, Adversary)
            names = ("view", "restored", "target") if host else ("view",)
            given = {
                n: output.pop(n) for n in names if isinstance(output.get(n), Tensor)
            }
        if isinstance(self.dira, Adversary):
            if not {"restored", "target"} <= given.keys():
                raise ValueError(_HOST)
            total = self.dira(loss, **given)
        else:
            total = self.dira(loss, views, **given)
        assert self.dira.components is not None
        size = sum(len(each.view) for each in views) or None
        for name, term in list(self.dira.components._asdict().items())[1:]:
            shown = name in self.progress_bar_terms
            self.log(f"dira/{name}", term, prog_bar=shown, batch_size=size)
        return {**output, "loss": total} if isinstance(output, Mapping) else total

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Saves buffers that the state dict leaves out."""
        super().on_save_checkpoint(checkpoint)  # type: ignore[misc]
        checkpoint["dira_buffers"] = buffers_of(cast(nn.Module, self), left_out=True)
        # Callbacks that average weights save a copy's, which does not count steps.
        weights = checkpoint.get("state_dict", {})
        if "dira._extra_state" in weights:
            weights["dira._extra_state"] = self.dira.get_extra_state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Loads buffers that the state dict leaves out.

        Raises:
            RuntimeError: If the checkpoint was written without DiRA.
        """
        self._make_dira(required=True)
        super().on_load_checkpoint(checkpoint)  # type: ignore[misc]
        if not any(name.startswith("dira.") for name in checkpoint["state_dict"]):
            raise RuntimeError(
                "DiRA: this checkpoint was written without DiRA, and its optimiser "
                "does not know the head. Start from its weights instead: "
                '`model.load_state_dict(checkpoint["state_dict"], strict=False)`, then '
                "fit without `ckpt_path`."
            )
        load_buffers(cast(nn.Module, self), checkpoint.get("dira_buffers", {}))

    def _backbone(self) -> nn.Module | None:
        """Finds the backbone by its name, and prefers one that is not frozen."""
        parts = (getattr(self, name, None) for name in _BACKBONES.split(", "))
        found = [part for part in parts if isinstance(part, nn.Module)]
        trained = (f for f in found if any(p.requires_grad for p in f.parameters()))
        return next(trained, found[0] if found else None)

    def _make_dira(self, *, required: bool) -> None:
        """Makes `dira`, unless it exists, or has no backbone and is not required."""
        if "dira" in self.__dict__.get("_modules", {}):
            return
        chosen = type(self).configure_dira is not DiRAMixin.configure_dira
        try:
            if required or chosen or self._backbone() is not None:
                self.dira = self.configure_dira()
        except AttributeError:
            # The backbone may be made later, in `setup` or `configure_model`.
            if required:
                raise


_TWICE = (
    "DiRA: the training step calls `self.dira` itself, and DiRAMixin would add "
    "restoration and adversary once more. Return the method's own loss from "
    "`training_step`, and leave the call to the mixin."
)
_HOST = (
    "DiRA: with an `Adversary` the training step returns what the host restored and "
    'the clean images: {"loss": loss, "restored": images, "target": clean}.'
)
