"""Looks for terms of the loss that are not finite."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from lightly_dira.core.user_warnings import warn
from lightly_dira.loss import DiRALossComponents

# So many calls in a row may have terms that are not finite, if the loss is scaled.
_OVERFLOWS = 3


class FiniteTerms:
    """Looks for terms that are not finite, and waits for the device only once.

    A `GradScaler` skips the step of a loss that overflowed in half precision. So where
    the loss is scaled, such a term is warned of, and an error only if it stays.
    """

    def __init__(self) -> None:
        """Has seen nothing yet."""
        self._arrived: Tensor | None = None
        self._in_a_row = 0

    def check(
        self, components: DiRALossComponents, is_scaled: Callable[[], bool]
    ) -> None:
        """Checks these terms or, on an accelerator, the latest that have arrived.

        Args:
            components: The terms.
            is_scaled: Tells whether a scaler would skip the step; it is only asked
                about terms that are not finite.

        Raises:
            ValueError: If one is not finite, and no scaler skips the step or it is the
                third call in a row.
        """
        latest = terms = torch.stack([term.float() for term in components[1:]])
        if terms.device.type != "cpu":
            # The first call waits; later ones look at what has arrived since the
            # previous call.
            waits = self._arrived is None
            if self._arrived is None:
                pinned = terms.device.type == "cuda"
                self._arrived = torch.empty(len(terms), pin_memory=pinned)
            latest = terms.cpu() if waits else self._arrived.clone()
            self._arrived.copy_(terms, non_blocking=not waits)
        if latest.isfinite().all():
            self._in_a_row = 0
            return
        values = dict(zip(components._fields[1:], latest.tolist(), strict=True))
        wrong = [name for name, value in values.items() if not math.isfinite(value)]
        what = f"DiRA: the {' and '.join(wrong)} loss is not finite: {values}."
        self._in_a_row += 1
        if self._in_a_row >= _OVERFLOWS or not is_scaled():
            raise ValueError(
                f"{what} Look for such values in the images and in the method's own "
                "loss, or lower the learning rate."
            )
        warn(
            f"{what} The loss is scaled, so that its scaler should skip this step and "
            f"lower the scale. {_OVERFLOWS} such losses in a row are an error."
        )


def needs_scaler(precisions: set[torch.dtype]) -> bool:
    """Whether losses of these precisions, or of autocast's, need a scaler."""
    return torch.float16 in precisions or any(
        torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.half
        for kind in ("cuda", "cpu")
    )
