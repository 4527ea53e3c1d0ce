"""Checks of a run: finite terms, a followed optimiser, processes that agree."""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor, nn

from lightly_dira.features.pyramid import FeaturePyramid
from lightly_dira.features.restoring_host import RestoringHost
from lightly_dira.loss import DiRALossComponents
from lightly_dira.transforms.dira_views import DiRAViews

# A warning comes after this many consecutive steps of another optimiser.
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
    def check(self, features: FeaturePyramid | RestoringHost) -> None:
        """Warns, once, if weights changed several times and no step was followed.

        It also warns if the backbone is not run at all, as when a copy is trained.
        """
        parameters = features.backbone.parameters()
        versions = sum(p._version for p in parameters if not p.is_inference())
        changed = self._versions is not None and self._versions != versions
        self._missed += changed or not features.was_run
        self._versions = versions
        if self._missed >= _MISSED_STEPS and not self._warned:
            self._warned = True
            warnings.warn(_NOT_FOLLOWED, stacklevel=7)


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
    "and the stage does not change. Attach the optimiser whose `step()` runs, and "
    "every new one that you make: `dira.attach(optimizer)` (for a two-part optimiser "
    "such as SAM the inner one: `optimizer.base_optimizer`). Copy model, wrapper and "
    "optimiser in one call: `copy.deepcopy((model, dira, optimizer))`."
)


class FiniteTerms:
    """Looks for terms that are not finite, and waits for the device only once."""

    def __init__(self) -> None:
        """Has seen nothing yet."""
        self._arrived: Tensor | None = None

    def check(self, components: DiRALossComponents) -> None:
        """Checks these terms or, on an accelerator, the latest that have arrived.

        Raises:
            ValueError: If one is not finite.
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
        if not latest.isfinite().all():
            values = dict(zip(components._fields[1:], latest.tolist(), strict=True))
            wrong = [name for name, value in values.items() if not math.isfinite(value)]
            raise ValueError(
                f"DiRA: the {' and '.join(wrong)} loss is not finite: {values}. Look "
                "for such values in the images and in the method's own loss, or lower "
                "the learning rate."
            )


def check_loss(loss: object) -> None:
    """Raises a ValueError if the method's loss does not have exactly one element."""
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        got = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else loss
        raise ValueError(
            "DiRA: expected the method's loss as a scalar, a tensor of one "
            f"element, got {got}. Reduce it first, for example with `loss.mean()`."
        )


def check_target(views: DiRAViews, number: int, channels: int) -> None:
    """Raises a ValueError if a target lacks its view's size or these channels."""
    shape, view = views.target_shape(number), views.view_of(number)
    expected = (len(view), channels, *view.shape[2:])
    if shape != expected:
        raise ValueError(
            f"DiRA: expected targets of shape {expected} for views of shape "
            f"{tuple(view.shape)}, got {tuple(shape)}. Give `DiRA` and "
            "`DiRATransform` the same `target_channels`, and keep the target at the "
            "size of its view."
        )


def check_restored(restored: Tensor, target: Tensor, channels: int) -> None:
    """Raises a ValueError if a host's images and the clean ones cannot be compared."""
    if restored.shape != target.shape or restored.ndim < 4:
        raise ValueError(
            "DiRA: expected restored and clean images of one shape (B, C, H, W), got "
            f"{tuple(restored.shape)} and {tuple(target.shape)}. Put patches together "
            "first: `lightly_dira.models.fill_masked_patches`."
        )
    if restored.shape[1] != channels:
        raise ValueError(
            f"DiRA: expected images of {channels} channels, got {restored.shape[1]}. "
            f"Say so: DiRA(..., target_channels={restored.shape[1]})."
        )


def versions_of(module: nn.Module) -> int:
    """Counts the in-place changes of a module's trained parameters so far."""
    trained = (p for p in module.parameters() if p.requires_grad)
    return sum(p._version for p in trained if p.grad is not None)


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


@torch.no_grad()
def check_averaged(head: nn.Module) -> None:
    """Compares the heads of all processes, after their first step.

    Raises:
        RuntimeError: If they differ.
    """
    if not in_several_processes():
        return
    weights = [p.double().sum() for p in head.parameters()]
    values = torch.stack([torch.stack(weights).sum()] * 2)
    values[1].neg_()
    torch.distributed.all_reduce(values, torch.distributed.ReduceOp.MAX)
    if values[0] != -values[1]:
        raise RuntimeError(
            "DiRA: after a step, the heads of the processes differ: their "
            "gradients are not averaged. Wrap DiRA as the model is wrapped, "
            "`dira = DistributedDataParallel(dira)`, and call that. With "
            'Lightning, choose strategy="ddp_find_unused_parameters_true" for a '
            "method that has unused parameters."
        )
