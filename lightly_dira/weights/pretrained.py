"""Writing encoder and decoder as safetensors, and reading them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lightly_dira import __version__
from lightly_dira.core.extras import extra
from lightly_dira.models.restoration_head import RestorationHead
from lightly_dira.weights.checks import check_values, load_weights, reading
from lightly_dira.weights.encoders import copied

_WEIGHTS, _SETTINGS = "model.safetensors", "config.json"


def save_pretrained(
    folder: str | os.PathLike[str],
    backbone: nn.Module,
    head: RestorationHead | None = None,
) -> None:
    """Writes the weights of both as safetensors and the head's settings as JSON.

    Needs ``pip install lightly-dira[safetensors]``.

    Args:
        folder: Where to write ``model.safetensors`` and ``config.json``; it is made if
            it does not exist.
        backbone: The trained encoder.
        head: The trained head, `dira.head`; None for a host that restored by itself.

    Raises:
        ImportError: If safetensors is not installed.
        TypeError: If the head is not a `RestorationHead`, whose settings are known.

    Examples:
        >>> import tempfile, torchvision
        >>> from lightly_dira import DiRA
        >>> from lightly_dira.weights import from_pretrained, save_pretrained
        >>> backbone = torchvision.models.resnet18()
        >>> folder = tempfile.mkdtemp()
        >>> save_pretrained(folder, backbone, DiRA(backbone).head)
        >>> fresh = torchvision.models.resnet18()
        >>> head = from_pretrained(folder, fresh)
    """
    with extra("safetensors"):
        from safetensors.torch import save_file
    weights = {f"backbone.{name}": v for name, v in backbone.state_dict().items()}
    settings: dict[str, Any] = {"lightly_dira": __version__, "head": None}
    if head is not None:
        check_head("save_pretrained", head)
        weights |= {f"head.{name}": value for name, value in head.state_dict().items()}
        settings["head"] = head.settings
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # Copies, because safetensors rejects tensors that share memory.
    copies = {name: copied(value) for name, value in weights.items()}
    # safetensors sorts names, but pairing with another library's needs their order.
    metadata = {"format": "pt", "order": json.dumps(list(copies))}
    save_file(copies, folder / _WEIGHTS, metadata)
    (folder / _SETTINGS).write_text(json.dumps(settings, indent=2) + "\n")


def from_pretrained(
    folder: str | os.PathLike[str], backbone: nn.Module
) -> RestorationHead | None:
    """Loads what `save_pretrained` wrote.

    Args:
        folder: Where it was written.
        backbone: An encoder of the saved architecture, to load the weights into; names
            may differ as in `export_encoder`.

    Returns:
        The head, with its weights, for ``DiRA(backbone, optimizer, head=head)``; None
        if none was saved.

    Raises:
        ImportError: If safetensors is not installed.
        FileNotFoundError: If one of the two files is missing.
        ValueError: If the weights do not fit or are not finite, or the file is damaged
            or of a newer version.

    Warns:
        UserWarning: If the weights were stored in lower precision than the model's.
    """
    with extra("safetensors"):
        from safetensors import safe_open
    folder = Path(folder)
    for name in (_SETTINGS, _WEIGHTS):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"from_pretrained: {folder} has no {name}. Expected a folder that "
                "save_pretrained has written."
            )
    try:
        settings = json.loads((folder / _SETTINGS).read_text())
        version, arguments = settings["lightly_dira"], settings["head"]
        arguments = None if arguments is None else dict(arguments)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"from_pretrained: {folder / _SETTINGS} is not what save_pretrained "
            f"writes: {error!r}."
        ) from error
    try:
        head = None if arguments is None else RestorationHead(**arguments)
    except TypeError as error:
        raise ValueError(
            f"from_pretrained: {folder} was written by lightly-dira {version}, and "
            f"this is {__version__}, which does not know all of its settings "
            f"({error}). Update lightly-dira."
        ) from error
    with (
        reading(folder / _WEIGHTS),
        safe_open(folder / _WEIGHTS, framework="pt") as file,
    ):
        metadata = file.metadata() or {}
        names = json.loads(metadata.get("order", "null")) or list(file.keys())
        weights = {name: file.get_tensor(name) for name in names}
    if head is not None:
        check_values(below("head.", weights), head.state_dict())
        head.load_state_dict(below("head.", weights))
    load_weights(backbone, below("backbone.", weights))
    return None if head is None else head.to(next(backbone.parameters()))


def below(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Selects the names with a prefix, and removes it."""
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def check_head(caller: str, head: nn.Module) -> None:
    """Raises a TypeError for what is not a `RestorationHead`."""
    if not isinstance(head, RestorationHead):
        raise TypeError(
            f"{caller}: expected a RestorationHead, whose settings are known, got "
            f"{type(head).__name__}. Save the state_dict() of another head yourself."
        )
