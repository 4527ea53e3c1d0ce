"""Checks of a run: finite terms, a followed optimiser, processes that agree."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from lightly_dira.core.user_warnings import warn
from lightly_dira.loss import DiRALossComponents
from lightly_dira.views import DiRAViews


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


def needs_scaler(precision: torch.dtype) -> bool:
    """Whether losses of this precision, or of autocast's, need a scaler."""
    return precision == torch.float16 or any(
        torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.half
        for kind in ("cuda", "cpu")
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


def check_comparable(restored: object, target: Tensor) -> None:
    """Raises a ValueError if the decoder's images and targets differ in shape."""
    if not isinstance(restored, Tensor):
        raise ValueError(
            "DiRA: expected a head that returns restored images, a tensor, got "
            f"{type(restored).__name__}."
        )
    if restored.shape != target.shape:
        raise ValueError(
            f"DiRA: the head restores images of shape {tuple(restored.shape)}, but the "
            f"targets are of shape {tuple(target.shape)}. A head of your own is called "
            "as head(features, output_size); see also `target_channels`."
        )


def check_restored(restored: Tensor, target: Tensor, channels: int) -> None:
    """Checks that a host's images and the clean ones can be compared.

    Raises:
        TypeError: If one is not a tensor of floating-point values.
        ValueError: If they differ in shape, or have other channels.
    """
    for name, images in (("restored", restored), ("target", target)):
        if not (isinstance(images, Tensor) and images.is_floating_point()):
            got = images.dtype if isinstance(images, Tensor) else type(images).__name__
            raise TypeError(
                f"DiRA: expected `{name}` as a floating-point tensor, got {got}. Both "
                "images must have the same range: `target.float() / 255`, if it has "
                "8 bits and the host restores values in [0, 1]."
            )
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


def why_not_reached(loss: Tensor, restored: Tensor, target: Tensor) -> str | None:
    """Says why the adversary could not train the host, if it could not.

    Raises:
        ValueError: If restored and clean images are swapped.
    """
    if restored.requires_grad or not (torch.is_grad_enabled() and loss.requires_grad):
        return None
    if target.requires_grad:
        raise ValueError(
            "DiRA: `target` depends on the host's weights and `restored` does not: "
            "they are swapped. Call dira(loss, restored=images, target=clean)."
        )
    return (
        "DiRA: the restored images carry no gradient, so that the adversary cannot "
        "train the host. Pass them as the host made them, not `restored.detach()` and "
        "not made within `torch.no_grad()`."
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
