"""What a run needs, beside weights and optimisers, to go on as if never interrupted."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


def buffers_of(module: nn.Module, *, left_out: bool = False) -> dict[str, Tensor]:
    """Returns copies of a module's buffers.

    Args:
        module: Whose buffers are copied.
        left_out: Whether to return only those that `state_dict()` leaves out, such as
            the queue of Lightly's memory banks.
    """
    others = module.state_dict() if left_out else {}
    return {
        name: buffer.detach().clone()
        for name, buffer in module.named_buffers()
        if name not in others
    }


@torch.no_grad()
def load_buffers(module: nn.Module, saved: Mapping[str, Tensor]) -> None:
    """Takes up what `buffers_of` returned; names that are no longer there are left.

    Raises:
        ValueError: If a buffer has another shape.
    """
    for name, buffer in module.named_buffers():
        if name not in saved:
            continue
        value = saved[name]
        if buffer.shape != value.shape:
            # Banks whose size is known only at the first batch are empty before.
            if buffer.numel():
                raise ValueError(
                    f"DiRA: the buffer {name} was saved with shape "
                    f"{tuple(value.shape)}, and is of shape {tuple(buffer.shape)} now. "
                    "Build the method as it was when the checkpoint was written."
                )
            buffer.resize_(value.shape)
        buffer.copy_(value)
