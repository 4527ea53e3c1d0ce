"""Which rows of a batch a step decodes."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Rows(NamedTuple):
    """Rows of a batch that follow one another; the first follows the last.

    Attributes:
        start: The first row.
        number: How many rows.
        size: Rows of the batch.
    """

    start: int
    number: int
    size: int

    @classmethod
    def of_step(cls, size: int, share: float, step: int) -> Rows:
        """Returns the rows of a step: those that follow the rows of the step before.

        Over the steps every row comes equally often, and no draw is needed.

        Args:
            size: Rows of the batch.
            share: Part of the batch, in (0, 1]; it is rounded, to one row at least.
            step: Steps taken before this one.
        """
        number = min(size, max(1, round(share * size)))
        return cls(step * number % max(1, size), number, size)

    def of(self, batch: Tensor) -> Tensor:
        """Returns these rows: a slice, or two where they run over the end."""
        if self.number == self.size:
            return batch
        stop = self.start + self.number
        if stop <= self.size:
            return batch[self.start : stop]
        return torch.cat([batch[self.start :], batch[: stop - self.size]])


class Turns:
    """Counts the steps in which rows were asked for, which need not be all steps.

    Attributes:
        taken: How many there were before the last one.
    """

    def __init__(self, taken: int = -1) -> None:
        """Has seen no step since that one."""
        self.taken, self._last = taken, -1

    def rows(self, size: int, share: float, step: int) -> Rows:
        """Returns the rows of a step, the same ones however often it asks."""
        self.taken, self._last = self.taken + (step != self._last), step
        return Rows.of_step(size, share, self.taken)
