"""What several processes that train together need, and whether they agree."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def in_several_processes() -> bool:
    """Whether several processes train together."""
    distributed = torch.distributed
    ready = distributed.is_available() and distributed.is_initialized()
    return ready and distributed.get_world_size() > 1


def with_zero_gradients(loss: Tensor, *modules: nn.Module) -> Tensor:
    """Returns the loss, with gradients of zero for modules that have not started.

    `DistributedDataParallel` waits for a gradient of every parameter.
    """
    if not (loss.requires_grad and in_several_processes()):
        return loss
    parameters = [p for module in modules for p in module.parameters()]
    return loss + 0 * sum(p.flatten()[0] for p in parameters if p.requires_grad)


@torch.no_grad()
def check_averaged(name: str, part: nn.Module) -> None:
    """Compares a part of all processes, such as the head, after its first step.

    Raises:
        RuntimeError: If they differ.
    """
    if not in_several_processes():
        return
    weights = [p.double().sum() for p in part.parameters()]
    if not weights:  # of the head of a host that restores by itself
        return
    values = torch.stack([torch.stack(weights).sum()] * 2)
    values[1].neg_()
    torch.distributed.all_reduce(values, torch.distributed.ReduceOp.MAX)
    if values[0] != -values[1]:
        raise RuntimeError(
            f"DiRA: after a step, the {name}s of the processes differ: their "
            "gradients are not averaged. Wrap DiRA as the model is wrapped, "
            "`dira = DistributedDataParallel(dira)`, and call that. With "
            'Lightning, choose strategy="ddp_find_unused_parameters_true" for a '
            "method that has unused parameters."
        )
