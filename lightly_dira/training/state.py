"""What a run needs, besides weights and optimisers, to resume exactly."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


def buffers_of(module: nn.Module, *, left_out: bool = False) -> dict[str, Tensor]:
    """Returns copies of a module's buffers.

    Args:
        module: The module whose buffers are copied.
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
    """Restores what `buffers_of` returned; names that no longer exist are ignored.

    Raises:
        ValueError: If a buffer has another shape.
    """
    for name, buffer in module.named_buffers():
        if name not in saved:
            continue
        value = saved[name]
        if buffer.shape != value.shape:
            # Memory banks that get their size from the first batch are empty before it.
            if buffer.numel():
                raise ValueError(
                    f"DiRA: the buffer {name} was saved with shape "
                    f"{tuple(value.shape)}, and is of shape {tuple(buffer.shape)} now. "
                    "Build the method as it was when the checkpoint was written."
                )
            buffer.resize_(value.shape)
        buffer.copy_(value)


def packed(state: Mapping[str, Any]) -> Tensor:
    """Returns a state as one tensor of bytes.

    Only tensors suit all who handle state dicts: safetensors, moving averages of
    weights, launchers.
    """
    file = io.BytesIO()
    torch.save(state, file)
    return torch.frombuffer(bytearray(file.getbuffer()), dtype=torch.uint8)


def unpacked(state: Tensor) -> dict[str, Any]:
    """Returns what was packed.

    Raises:
        ValueError: If it was averaged or converted.
    """
    if state.dtype != torch.uint8:
        raise ValueError(
            f"DiRA: expected the extra state as bytes (uint8), got {state.dtype}. "
            "Average and convert only the floating-point tensors of a state dict, and "
            "copy those of integers."
        )
    file = io.BytesIO(state.detach().cpu().numpy().tobytes())
    saved: dict[str, Any] = torch.load(file, weights_only=True)
    return saved
