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
