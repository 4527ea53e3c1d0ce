"""The terms of a plain loop, written every few steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle


def watch(
    dira: Any, *, every: int = 50, write: Callable[[str], Any] = print
) -> RemovableHandle:
    """Writes means of the terms every few steps, without a change of the loop.

    Means are over the calls in which a term takes part. The device is waited for only
    when a line is written. Calls without gradients, as in validation, do not count.

    Args:
        dira: A `DiRA` or an `Adversary`; before `DistributedDataParallel` wraps it.
        every: Steps of the optimiser between two lines.
        write: Called with each line, for example `tqdm.write` or `logging.info`.

    Returns:
        A handle, whose `remove()` ends it.

    Raises:
        ValueError: If `every` is below 1.

    Examples:
        >>> import torch, torchvision
        >>> from lightly_dira import DiRA, DiRAViews
        >>> from lightly_dira.training import watch
        >>> backbone = torchvision.models.resnet18()
        >>> dira = DiRA(backbone, torch.optim.SGD(backbone.parameters(), lr=0.1))
        >>> handle = watch(dira, every=100)
    """
    if every < 1:
        raise ValueError(f"watch: every must be at least 1, got {every}.")
    handle: RemovableHandle = dira.register_forward_hook(_Watch(dira, every, write))
    return handle


class _Watch:
    """Adds terms up, and writes their means when a line is due."""

    def __init__(self, dira: Any, every: int, write: Callable[[str], Any]) -> None:
        self.every, self.write = every, write
        self.due = dira.steps + every
        # Sums of terms, and how often each has taken part.
        self.sums: Tensor | None = None

    def __call__(self, dira: Any, args: Any, output: Any) -> None:
        if not torch.is_grad_enabled():
            return
        _, *names = dira.components._fields
        terms = torch.stack([term.float() for term in dira.components[1:]])
        both = torch.stack([terms, (terms != 0).float()])
        self.sums = both if self.sums is None else self.sums + both
        # The step of this call has not been taken yet.
        step = dira.steps + 1
        if step < self.due:
            return
        sums, counts = self.sums
        means = dict(zip(names, (sums / counts.clamp(min=1)).tolist(), strict=True))
        started = [f"{name} {mean:.4f}" for name, mean in means.items() if mean]
        self.write(f"step {step}, {dira.stage}: {', '.join(started)}")
        self.sums, self.due = None, step + self.every
