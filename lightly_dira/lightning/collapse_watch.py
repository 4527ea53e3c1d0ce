"""Watches during a run for a collapse, and for an adversary that wins."""

from __future__ import annotations

from typing import Any

import torch
from lightly.utils.debug import std_of_l2_normalized
from torch import Tensor, nn

from lightly_dira.core.randomness import same_randomness
from lightly_dira.lightning.held_out import HeldOut, HeldOutCallback
from lightly_dira.loss.adversaries import judge


class CollapseWatch(HeldOutCallback):
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

    def look(self, at: HeldOut) -> None:
        """Logs, and warns."""
        dira, seen = at.dira, at.seen
        maps = dira.features(seen)
        representation = maps[-1].flatten(2).mean(dim=2)
        std = std_of_l2_normalized(representation) * representation.shape[1] ** 0.5
        condition = seen if dira.conditional else None
        values: dict[str, Any] = {"std": std}
        critic = dira.discriminator
        if critic is not None and dira.loss.adversary != "wasserstein":
            values |= _accuracies(at, critic, condition)
        if critic is not None and dira.stage == "dira":
            share = _share(at, critic, maps, condition)
            values["adversarial_share"] = share
        at.module.log_dict({f"dira/{name}": value for name, value in values.items()})
        if std < self.collapsed:
            self.warn(
                f"the encoder has collapsed: representations of different images have "
                f"a standard deviation of {std:.4f}, expected 0.1 to 1. Look at "
                "the method's own loss, its augmentations and the learning rate."
            )
        accuracies = [v for name, v in values.items() if name.startswith("accuracy")]
        if accuracies and dira.stage == "dira" and min(accuracies) > self.won:
            self.warn(
                "the adversary has won outright: it recognises every patch of clean "
                "and of restored images. Lower `discriminator_lr`, or start the "
                "adversary later."
            )


def _accuracies(
    at: HeldOut, critic: nn.Module, condition: Tensor | None
) -> dict[str, Tensor]:
    """Returns which part of clean and of restored patches the critic recognises."""
    weights: dict[str, Tensor] = dict(critic.named_parameters())
    real, restored = (
        judge(critic, weights, images, condition)
        for images in (at.views.target, at.dira.restore(at.seen))
    )
    # Least squares pulls logits to 1 and 0, the other losses above and below 0.
    middle = 0.5 if at.dira.loss.adversary == "least_squares" else 0.0
    return {
        "accuracy_real": (real > middle).float().mean(),
        "accuracy_restored": (restored < middle).float().mean(),
    }


def _share(
    at: HeldOut, critic: nn.Module, maps: list[Tensor], condition: Tensor | None
) -> Tensor:
    """Compares the gradients of adversary and restoration at the encoder's maps."""
    dira, views = at.dira, at.views
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
