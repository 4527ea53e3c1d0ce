"""DiRA: adds restoration and an adversary to any training loop."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightly_dira.core.modes import evaluating
from lightly_dira.core.private_torch import uncompiled
from lightly_dira.core.randomness import same_randomness
from lightly_dira.core.user_warnings import warn
from lightly_dira.features.pyramid import FeaturePyramid, Taken
from lightly_dira.loss import DiRALoss
from lightly_dira.loss.adversaries import comparable
from lightly_dira.loss.schedule import Schedule, starts
from lightly_dira.models.decoded_layers import join_layers
from lightly_dira.models.light_head import head_for
from lightly_dira.training.batches import NO_TARGET, UNSEEN, different_views, join
from lightly_dira.training.trial import check_same_place, reached
from lightly_dira.views import DiRAViews
from lightly_dira.wrapper import Wrapper, check_loss


class DiRA(Wrapper):
    """Turns the method that trains `backbone` into its DiRA variant [0].

    Call it with the method's loss and the batch that the loss came from. It decodes
    the feature maps that the backbone has just computed for the view with the target,
    and returns one scalar, L + L_D (see `DiRALoss`). One backward pass through it
    trains everything: the user's optimiser steps the backbone, the method's heads and
    the restoration head; after each of these steps, Adam (betas 0.5 and 0.999) steps
    the discriminator.

    The scale of the loss does not reach Adam: a `GradScaler`,
    `loss / accumulation_steps` and sums of losses do not change the discriminator's
    step. When a scaler skips a step, the gradients of that step are dropped.

    Training goes through stages, counted in steps of the user's optimiser:

    | stage | until step            | loss                         |
    |-------|-----------------------|------------------------------|
    | di    | ``restorative_start`` | L_dis, returned unchanged    |
    | dir   | ``adversarial_start`` | L_dis and L_res              |
    | dira  | the end               | L_dis, L_res, L_advG and L_D |

    ``schedule=`` says more: linear ramps, and parts that end again (see `Schedule`).

    Hosts that restore by themselves (MAE, SimMIM, U-Nets) get an `Adversary`.

    ``state_dict()`` holds the head, the discriminator, the discriminator's Adam, the
    step count, the ramps of a schedule and, if `criterion` is given, its buffers.
    Together with the states of model and optimiser it resumes a run: wrap first, then
    load all three. A copy of model, wrapper and optimiser together trains on its own.

    The pass that saw the view is recognised by identity or by value, and verified at
    every step; ``view=`` names it instead.

    - [0]: DiRA, 2022, https://arxiv.org/abs/2204.10437
    - [1]: Stepwise Incremental Pre-training, 2022,
      https://doi.org/10.1007/978-3-031-16852-9_7

    Attributes:
        features: The `FeaturePyramid` that watches the backbone.
        head: The decoder g, a `RestorationHead`.
        discriminator: The adversary D, a `PatchDiscriminator`, or None without one.
        loss: The `DiRALoss`.
        components: The terms of the last call, detached, as `DiRALossComponents`;
            those that have not started are 0. None before the first call.
        steps: Steps of the user's optimiser since wrapping.

    Examples:
        >>> import torch, torchvision
        >>> from torch import nn
        >>> from lightly_dira import DiRA, DiRAViews
        >>> resnet = torchvision.models.resnet18()
        >>> backbone = nn.Sequential(*list(resnet.children())[:-1])
        >>> optimizer = torch.optim.SGD(backbone.parameters(), lr=0.06)
        >>> dira = DiRA(backbone, optimizer)
        >>>
        >>> x0, x1 = torch.rand(2, 2, 3, 64, 64)
        >>> batch = DiRAViews([x0, x1], target=torch.rand(2, 1, 64, 64))
        >>> loss = (backbone(x0) - backbone(x1)).square().mean()
        >>> loss = dira(loss, batch)
        >>> loss.backward()
        >>> optimizer.step()
        >>> dira.stage, dira.steps
        ('dira', 1)
    """

    features: FeaturePyramid

    def __init__(
        self,
        backbone: nn.Module,
        optimizer: Optimizer | None = None,
        *,
        head: nn.Module | None = None,
        discriminator: nn.Module | None = None,
        loss: DiRALoss | None = None,
        features: FeaturePyramid | None = None,
        criterion: nn.Module | None = None,
        target_channels: int = 1,
        discriminator_lr: float = 2e-4,
        conditional: bool = False,
        restored_share: float = 1.0,
        restorative_start: float = 0,
        adversarial_start: float | None = 0,
        schedule: Schedule | None = None,
    ) -> None:
        """Finds the backbone's feature maps and creates the parts that are not given.

        The random state and the backbone's weights, statistics and `state_dict()` keys
        stay as they are.

        Args:
            backbone: The encoder, as the model calls it.
            optimizer: The optimiser that holds the backbone's parameters; the head's
                are added to it. Without one, call `attach` before training.
            head: Called as `head(features, output_size)`; by default a
                `RestorationHead` for the maps found. For ``DiRALoss(balanced=True)`` a
                head of your own names the weights of its last layer by an attribute
                `last_layer`.
            discriminator: Maps images to logits; by default a `PatchDiscriminator`.
            loss: By default `DiRALoss()`, with the published weights.
            features: A `FeaturePyramid` of the backbone, where it needs to be told
                which layers to take or the only size that it accepts; `print(
                dira.features)` shows those found. By default `FeaturePyramid(
                backbone)`.
            criterion: The method's own loss, if it remembers earlier batches, as MoCo's
                does. `state_dict()` then also holds its buffers; Lightly's lacks them.
            target_channels: Channels of the targets, 1 for grey.
            discriminator_lr: Learning rate of the discriminator's Adam, above 0.
            conditional: Whether the critic also sees the distorted view, beside the
                restored or clean image [1]. Its input then has the channels of both.
            restored_share: Part of the batch that a training step decodes, in (0, 1]:
                whole images, other ones at every step. The losses are means over them,
                an unbiased estimate of those of the whole batch.
            restorative_start: Steps of the optimiser before the restoration starts.
            adversarial_start: Steps before the adversary starts. It never starts before
                the restoration does. None leaves it out: no critic is made.
            schedule: What the weights of the terms are multiplied by at each step, in
                place of these two starts.

        Raises:
            TypeError: If the backbone or the optimiser is not one.
            ValueError: If the backbone has no pyramid of feature maps, the pyramid is
                that of another network, the optimiser does not hold the backbone or a
                number is out of range.
        """
        if not isinstance(backbone, nn.Module):
            raise TypeError(
                "DiRA: backbone must be a torch.nn.Module, usually `model.backbone`; "
                f"got {type(backbone).__name__}."
            )
        if features is None:
            features = FeaturePyramid(backbone)
        elif features.backbone is not uncompiled(backbone):
            raise ValueError(
                "DiRA: `features` watches another network than the backbone. Make it "
                "of this one: FeaturePyramid(backbone, layers=...)."
            )
        weight = next(backbone.parameters())
        # Head and critic draw one after the other, and leave no trace.
        with same_randomness(weight.device):
            if head is None and target_channels > 0:
                head = head_for(features, target_channels)
            elif head is not None:
                join_layers(head, features)
            super().__init__(
                features,
                nn.Identity() if head is None else head.to(weight.device, weight.dtype),
                discriminator,
                loss=loss,
                criterion=criterion,
                target_channels=target_channels,
                discriminator_lr=discriminator_lr,
                conditional=conditional,
                restored_share=restored_share,
                starts=(restorative_start, adversarial_start),
                schedule=schedule,
                optimizer=optimizer,
            )

    def forward(
        self, loss: Tensor, batch: Any = None, *, view: Tensor | None = None
    ) -> Tensor:
        """Returns the one scalar to call `backward()` on.

        Call it once per batch, between the model's passes and `backward()`. Without
        gradients, as in validation, it runs the backbone again to restore the view.

        Args:
            loss: The method's loss on this batch, a tensor of one element.
            batch: What the data loader returned: `DiRAViews`, alone or nested.
            view: The very tensor that the backbone was called with. It is restored, and
                no pass has to be recognised. Its target is that of the view which is
                the same tensor, which `target_view` of the transform names, or else
                which has the same values.

        Returns:
            A scalar; in stage "di" the unchanged loss.

        Raises:
            ValueError: If the loss does not have exactly one element, a term is not
                finite (raised one call later on an accelerator, which is not waited
                for), or the batch has no target or one of the wrong shape.
            RuntimeError: If the backbone has not seen a view with a target.
        """
        check_loss(loss)
        self._check_followed(loss)
        self._check_balanced()
        batches = different_views(batch, named=view)
        if self.stage == "di":
            if batches and torch.is_grad_enabled():
                self._try_all(batches, view)
            elif not batches and self.components is None:
                warn(NO_TARGET)
            return self._hand_back(loss)
        if not batches:
            raise ValueError(NO_TARGET)
        seen = self._see(batches, view)
        with evaluating(*self._held_out):
            restored = join([self._decode(taken) for taken, _ in seen])
        target = reached(self.head, join([clean(restored.device) for _, clean in seen]))
        condition = self._condition([taken.images for taken, _ in seen])
        precisions = {m.dtype for taken, _ in seen for m in taken.maps}
        factors = self.schedule(self.steps)
        return self._weigh(
            loss.reshape(()), restored, target, condition, precisions, factors
        )

    def _see(
        self, batches: list[DiRAViews], called_with: Tensor | None
    ) -> list[tuple[Taken, Callable[[torch.device], Tensor]]]:
        """Returns what the backbone saw, in this step's rows, and its clean images."""
        pairs = [views.pairs(self.target_channels) for views in batches]
        views = [[pair.view for pair in each] for each in pairs]
        seen: list[tuple[Taken, Callable[[torch.device], Tensor]]] = []
        for taken, of in zip(self.features.see(views, called_with), pairs, strict=True):
            if taken is not None:
                rows = self._rows(len(taken.images))
                seen.append((taken.part(rows), partial(of[taken.view].target, rows)))
        if len(seen) < len(batches):
            self._idle.warn_once(UNSEEN)
        # In stage "di" only the shapes of maps are known.
        maps = [m for taken, _ in seen for m in taken.maps if not m.is_meta]
        if torch.is_grad_enabled():
            self._idle.frozen = bool(maps) and not any(m.requires_grad for m in maps)
        return seen

    def _try_all(self, batches: list[DiRAViews], called_with: Tensor | None) -> None:
        """Tries, in the first step of stage "di", all that later stages need."""
        capture = self.features.capture
        known = capture.noting and self.features.was_run
        if not (known and starts(self.schedule.restorative)):
            return
        seen = self._see(batches, called_with)
        images = join([taken.images for taken, _ in seen])
        target = reached(self.head, join([clean(images.device) for _, clean in seen]))
        with torch.no_grad(), evaluating(self.head), same_randomness(images.device):
            for (number, maps, own), _ in seen:
                # Of these maps only the shapes were kept.
                blank = [torch.zeros_like(m, device=own.device) for m in maps]
                comparable(self._decode(Taken(number, blank, own)), target[: len(own)])
        self._try_critic(target, self._condition([images]))
        capture.noting = False

    @property
    def last_layer(self) -> Tensor | None:
        """The head's attribute of this name: weights of the decoder's last layer."""
        found: Tensor | None = getattr(self.head, "last_layer", None)
        return found

    @torch.no_grad()
    def restore(self, images: Tensor) -> Tensor:
        """Restores distorted images, in evaluation mode and without gradients.

        Args:
            images: (B, C, H, W), as the backbone takes them. The restored ones are
                (B, target_channels, H, W), in [0, 1].
        """
        with evaluating(self.features.backbone, self.head):
            return self._decode(Taken(0, self.features(images), images))

    def _decode(self, taken: Taken) -> Tensor:
        features = taken.maps
        weight = next(self.features.backbone.parameters())
        check_same_place(weight, next(self.head.parameters(), weight))
        if not torch.is_autocast_enabled(weight.device.type):
            # The maps may come from an autocast block that has ended since.
            features = [feature.to(weight.dtype) for feature in features]
        return self._run_head(features, taken.images.shape[2:])
