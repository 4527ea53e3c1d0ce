"""The loss of DiRA: its terms, the forms of the adversary, and their schedule."""

from lightly_dira.loss.dira_loss import DiRALoss, DiRALossComponents
from lightly_dira.loss.schedule import Ramp, Schedule

__all__ = ["DiRALoss", "DiRALossComponents", "Ramp", "Schedule"]
