"""The loss of DiRA: its terms, the forms of the adversary, and their balance."""

from lightly_dira.loss.dira_loss import DiRALoss, DiRALossComponents

__all__ = ["DiRALoss", "DiRALossComponents"]
