"""Tries early what a later stage needs, so that a run does not end after days."""

from __future__ import annotations

import weakref

import torch
from torch import Tensor, nn

from lightly_dira.core.modes import evaluating
from lightly_dira.core.randomness import same_randomness
from lightly_dira.loss.adversaries import judge


@torch.compiler.disable  # type: ignore[untyped-decorator]
@torch.no_grad()
def try_critic(
    discriminator: nn.Module, target: Tensor, condition: Tensor | None
) -> None:
    """Lets the critic judge an image of this shape, in evaluation mode.

    Args:
        discriminator: The critic.
        target: Clean images, (B, C, H, W).
        condition: What it sees beside them, if anything.

    Raises:
        TypeError: If it does not return one tensor of logits.
        ValueError: If it cannot judge such images.
    """
    weight = next(discriminator.parameters(), target)
    images, beside = (
        None if x is None else torch.zeros_like(x, device=weight.device)
        for x in (target, condition)
    )
    assert images is not None
    images = images.to(weight.dtype)
    channels = " + ".join(str(x.shape[1]) for x in (images, beside) if x is not None)
    try:
        with evaluating(discriminator), same_randomness(weight.device):
            logits = judge(discriminator, {}, images, beside)
    except TypeError:
        raise
    except Exception as error:
        raise ValueError(
            f"DiRA: the discriminator cannot judge images of {channels} channels and "
            f"{tuple(images.shape[2:])} pixels: {error} Pass one that can, "
            "DiRA(..., discriminator=PatchDiscriminator(channels, strides=...)), give "
            "larger images, or leave the adversary out: adversarial_start=None."
        ) from error
    if not logits.numel():
        raise ValueError("DiRA: the discriminator returned no logits.")


def reached(head: nn.Module, target: Tensor) -> Tensor:
    """Returns the targets, and checks once that a head's sigmoid can reach them.

    Raises:
        ValueError: If they leave [0, 1].
    """
    ends = getattr(head, "activation", None)
    if head in _reaching or not isinstance(ends, nn.Sigmoid) or not target.numel():
        return target
    low, high = (float(value) for value in target.aminmax())
    if not -1e-3 <= low <= high <= 1 + 1e-3:
        raise ValueError(
            f"DiRA: targets reach from {low:.4g} to {high:.4g}, and the head's sigmoid "
            "makes values in [0, 1]. Scale the targets, before any normalisation, or "
            "give a head without it: RestorationHead(..., activation=None)."
        )
    _reaching.add(head)
    return target


_reaching: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def check_last_layer(last_layer: Tensor | None) -> None:
    """Checks that an adversary can be balanced by these weights.

    Raises:
        ValueError: If there are none, or they are frozen.
    """
    if last_layer is None:
        raise ValueError(
            "DiRA: balanced=True needs the weights of the decoder's last layer. A "
            "`RestorationHead` names them; a head or a host of your own does so by an "
            "attribute: `head.last_layer = weight`."
        )
    if not last_layer.requires_grad:
        raise ValueError(
            "DiRA: balanced=True compares gradients at the decoder's last layer, but "
            "its weights are frozen. Set `requires_grad_(True)` on them, name others, "
            "`head.last_layer = weight`, or choose balanced=False."
        )


def check_same_place(weight: Tensor, own: Tensor) -> None:
    """Checks that backbone and head have one device and one precision.

    Raises:
        RuntimeError: If one of them was moved or converted without the other.
    """
    if (own.device, own.dtype) != (weight.device, weight.dtype):
        raise RuntimeError(
            f"DiRA: the backbone is {weight.dtype} on {weight.device}, but the head is "
            f"{own.dtype} on {own.device}. Move both: after wrapping, call "
            "`dira.to(...)` with every `model.to(...)`."
        )


def check_assigned(name: str, old: nn.Module | None, new: nn.Module | None) -> None:
    """Checks that a part that is assigned has the parameters of the old one.

    Raises:
        AttributeError: If it has others, which no optimiser would train.
    """
    known, given = (
        {id(p) for p in module.parameters()} if module else set()
        for module in (old, new)
    )
    if known != given:
        raise AttributeError(
            f"DiRA: a module assigned to `dira.{name}` would never be trained, since "
            "the optimisers hold the parameters of the old one. Create a new wrapper: "
            f"DiRA(backbone, optimizer, {name}=...)."
        )
