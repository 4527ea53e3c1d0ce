"""Which maps a head was trained to decode; of others it makes images all the same."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from lightly_dira.core.private_torch import uncompiled
from lightly_dira.core.user_warnings import warn
from lightly_dira.models.light_head import Features
from lightly_dira.models.restoration_head import RestorationHead


def join_layers(head: nn.Module, features: Features) -> None:
    """Lets a head know which maps it decodes from now on.

    Raises:
        ValueError: If it was trained on other maps of the backbone.
    """
    own = uncompiled(head)
    if not isinstance(own, RestorationHead):
        return
    check_layers(layers_for(own, features.backbone), features)
    own.layers = tuple(features.layers)


def check_layers(layers: Sequence[str] | None, features: Features) -> None:
    """Raises a ValueError if a head was trained on other maps of this backbone.

    Names that it has not may be those of the same layers in another network.
    """
    if layers is None or [*layers] == features.layers:
        return
    if are_in(layers, features.backbone):
        raise ValueError(
            f"DiRA: the head was trained on the maps of {[*layers]}, and would get "
            f"those of {features.layers}. Take the same ones, features=FeaturePyramid("
            f"backbone, layers={[*layers]}). If they are the same under other names, "
            "say so: `head.layers = None`."
        )


def layers_for(head: nn.Module | None, backbone: nn.Module) -> list[str] | None:
    """Returns the layers of a backbone that a head was trained on, None if unknown.

    Warns:
        UserWarning: If the head was trained on layers that this backbone has not, as
            after `export_encoder` into a network with other names.
    """
    own = None if head is None else uncompiled(head)
    if not isinstance(own, RestorationHead) or own.layers is None:
        return None
    if are_in(own.layers, backbone):
        return [*own.layers]
    warn(
        f"RestorationHead: it was trained on the maps of {[*own.layers]}, which are no "
        f"layers of this {type(uncompiled(backbone)).__name__}; it gets those that are "
        "found. If they are others, its images are wrong: FeaturePyramid(backbone, "
        "layers=...)."
    )
    return None


def are_in(layers: Sequence[str], backbone: nn.Module) -> bool:
    """Whether a network has modules of these names, "relu[2]" being the third pass."""
    known = dict(uncompiled(backbone).named_modules())
    return all(name.partition("[")[0] in known for name in layers)
