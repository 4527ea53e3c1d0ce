"""Checks after the first step of a part that it was trained, and equally everywhere."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from lightly_dira.core.private_torch import changes_of
from lightly_dira.training.processes import check_averaged


class FirstStep:
    """Compares the parameters before and after the first step of restoration."""

    def __init__(self) -> None:
        """Nothing is checked yet."""
        self._checked = set[str]()
        self._before = (0, 0)

    def note(self, head: nn.Module, backbone: nn.Module) -> None:
        """Notes how often parameters have changed, before a step."""
        if not self._checked:
            self._before = versions_of(head), versions_of(backbone)

    def check(
        self, head: nn.Module, backbone: nn.Module, parts: Mapping[str, nn.Module]
    ) -> None:
        """Checks that the optimiser stepped the head, and that processes agree.

        Args:
            head: The head.
            backbone: The backbone.
            parts: What this step trained, which all processes must train alike.

        Raises:
            RuntimeError: If it did not, or they differ.
        """
        if parts and not self._checked:
            check_moved(self._before, (versions_of(head), versions_of(backbone)))
        # In one order, as processes wait for one another.
        for name, part in parts.items():
            if name not in self._checked:
                self._checked.add(name)
                check_averaged(name, part)


def versions_of(module: nn.Module) -> int:
    """Counts the in-place changes of a module's trained parameters so far."""
    trained = (p for p in module.parameters() if p.requires_grad)
    return sum(changes_of(*(p for p in trained if p.grad is not None)))


def check_moved(before: tuple[int, int], after: tuple[int, int]) -> None:
    """Checks that an optimiser that stepped the backbone has stepped the head.

    Args:
        before: Versions of head and backbone before the step.
        after: The same, after it.

    Raises:
        RuntimeError: If it has not changed any parameter of the head.
    """
    if before[0] and before[0] == after[0] and before[1] != after[1]:
        raise RuntimeError(
            "DiRA: the optimiser holds the restoration head but does not step it, as "
            "it formed its own groups before (ZeroRedundancyOptimizer does). Create it "
            "for model and head together: first `dira = DiRA(backbone)`, then the "
            "optimiser of `[*model.parameters(), *dira.head.parameters()]`, then "
            "`dira.attach(optimizer)`."
        )
