"""What a run is checked for at every step: finite terms, followed steps, processes."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from lightly_dira.features.pyramid import FeaturePyramid

# Steps of another optimiser, one after the other, until a warning says so.
_MISSED_STEPS = 3


class FollowedOptimizer:
    """Notices when the user's optimiser is not the one whose steps are followed."""

    def __init__(self) -> None:
        """Has seen nothing yet."""
        self._versions: int | None = None
        self._missed = 0
        self._warned = False

    def stepped(self) -> None:
        """Notes a step that was followed."""
        self._versions, self._missed = None, 0

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def check(self, features: FeaturePyramid) -> None:
        """Warns, once, if weights changed several times and no step was followed.

        Or if the backbone is not run at all, as that of a copy.
        """
        parameters = features.backbone.parameters()
        versions = sum(p._version for p in parameters if not p.is_inference())
        changed = self._versions is not None and self._versions != versions
        self._missed += changed or not features.was_run
        self._versions = versions
        if self._missed >= _MISSED_STEPS and not self._warned:
            self._warned = True
            warnings.warn(_NOT_FOLLOWED, stacklevel=4)


def in_several_processes() -> bool:
    """Whether several processes train together."""
    distributed = torch.distributed
    ready = distributed.is_available() and distributed.is_initialized()
    return ready and distributed.get_world_size() > 1


def touching(loss: Tensor, *modules: nn.Module) -> Tensor:
    """Returns the loss, with gradients of zero for modules that have not started.

    `DistributedDataParallel` waits for a gradient of every parameter.
    """
    if not (loss.requires_grad and in_several_processes()):
        return loss
    parameters = [p for module in modules for p in module.parameters()]
    return loss + 0 * sum(p.flatten()[0] for p in parameters if p.requires_grad)


_NOT_FOLLOWED = (
    "DiRA: the backbone's weights change or it is not run, but the optimiser that "
    "DiRA is attached to takes no step: neither head nor discriminator is trained, "
    "and stages stand still. Hand over the optimiser whose `step()` runs, and again "
    "whenever you make another: `dira.attach(optimizer)` (of a two-part optimiser "
    "such as SAM the inner one: `optimizer.base_optimizer`); and copy model, wrapper "
    "and optimiser in one call, `copy.deepcopy((model, dira, optimizer))`."
)
