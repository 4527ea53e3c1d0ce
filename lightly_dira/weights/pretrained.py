"""Writing encoder and decoder as safetensors, and reading them."""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
import os
from collections.abc import Mapping
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import torch
from torch import Tensor, nn

from lightly_dira import __version__
from lightly_dira.core.extras import extra
from lightly_dira.core.modes import evaluating
from lightly_dira.core.private_torch import uncompiled
from lightly_dira.core.user_warnings import warn
from lightly_dira.dira import DiRA
from lightly_dira.features.pyramid import FeaturePyramid
from lightly_dira.models.decoded_layers import are_in
from lightly_dira.models.restoration_head import RestorationHead
from lightly_dira.weights.checks import check_values, load_weights, reading
from lightly_dira.weights.encoders import copied, image_for
from lightly_dira.weights.inputs import Inputs
from lightly_dira.weights.model_card import model_card

_WEIGHTS, _SETTINGS, _CARD = "model.safetensors", "config.json", "README.md"
# Whose versions are kept.
_PACKAGES = ("torch", "torchvision", "lightly")


def save_pretrained(
    folder: str | os.PathLike[str],
    backbone: nn.Module,
    head: RestorationHead | DiRA | None = None,
    *,
    inputs: Inputs | None = None,
    method: str = "",
) -> None:
    """Writes weights as safetensors, and as JSON what a colleague needs to use them.

    Needs ``pip install lightly-dira[safetensors]``. The folder can be pushed to a hub
    and pulled from it (``lightly-dira[hub]``)::

        huggingface_hub.upload_folder(folder_path=folder, repo_id="owner/name")
        folder = huggingface_hub.snapshot_download("owner/name")

    Args:
        folder: Where to write ``model.safetensors``, ``config.json`` and a short model
            card, ``README.md``; it is made if it does not exist. A card that is there
            is left as it is.
        backbone: The trained encoder.
        head: The trained wrapper `dira`, whose loss, schedule and steps are kept as the
            recipe, or the head alone, `dira.head`; None for a host that restored by
            itself.
        inputs: What the encoder was fed with, `Inputs.of(transform, image)`.
        method: Name of the discriminative method, such as "MoCo v2".

    Raises:
        ImportError: If safetensors is not installed.
        TypeError: If the head is not a `RestorationHead`, whose settings are known.

    Examples:
        >>> import numpy as np, tempfile, torchvision
        >>> from lightly_dira import DiRA, DiRATransform
        >>> from lightly_dira.weights import Inputs, from_pretrained, save_pretrained
        >>> backbone, transform = torchvision.models.resnet18(), DiRATransform()
        >>> dira, folder = DiRA(backbone), tempfile.mkdtemp()
        >>> scan = np.zeros((256, 256), dtype=np.uint8)
        >>> inputs = Inputs.of(transform, scan)
        >>> save_pretrained(folder, backbone, dira, inputs=inputs, method="MoCo v2")
        >>> fresh = torchvision.models.resnet18()
        >>> head, inputs = from_pretrained(folder, fresh, return_inputs=True)
        >>> fresh.eval()(inputs(scan)[None]).shape
        torch.Size([1, 1000])
    """
    with extra("safetensors"):
        from safetensors.torch import save_file
    weights = {f"backbone.{name}": v for name, v in backbone.state_dict().items()}
    settings: dict[str, Any] = {
        "lightly_dira": __version__,
        "head": None,
        "layers": None,
        "backbone": type(uncompiled(backbone)).__name__,
        "inputs": None if inputs is None else dataclasses.asdict(inputs),
        "method": method,
        "recipe": None,
        "versions": {name: version_of(name) for name in _PACKAGES},
        "shown": _shown_by(backbone),
    }
    if isinstance(head, DiRA):
        settings["recipe"] = _recipe_of(head)
        head = head.head  # type: ignore[assignment]
    if head is not None:
        check_head("save_pretrained", head)
        weights |= {f"head.{name}": value for name, value in head.state_dict().items()}
        settings["head"] = head.settings
        settings["layers"] = head.layers
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # Copies, because safetensors rejects tensors that share memory.
    copies = {name: copied(value) for name, value in weights.items()}
    # safetensors sorts names, but pairing with another library's needs their order.
    metadata = {"format": "pt", "order": json.dumps(list(copies))}
    save_file(copies, folder / _WEIGHTS, metadata)
    text = json.dumps(settings, indent=2, default=_as_json)
    (folder / _SETTINGS).write_text(f"{text}\n")
    if not (folder / _CARD).exists():
        (folder / _CARD).write_text(model_card(settings))


@overload
def from_pretrained(
    folder: str | os.PathLike[str],
    backbone: nn.Module,
    *,
    return_inputs: Literal[False] = ...,
) -> RestorationHead | None: ...


@overload
def from_pretrained(
    folder: str | os.PathLike[str], backbone: nn.Module, *, return_inputs: Literal[True]
) -> tuple[RestorationHead | None, Inputs | None]: ...


def from_pretrained(
    folder: str | os.PathLike[str], backbone: nn.Module, *, return_inputs: bool = False
) -> Any:
    """Loads what `save_pretrained` wrote.

    Args:
        folder: Where it was written.
        backbone: An encoder of the saved architecture, to load the weights into; names
            may differ as in `export_encoder`. It stays in its mode: call
            ``backbone.eval()`` to encode images.
        return_inputs: Whether to return what the encoder was fed with, too.

    Returns:
        The head, with its weights, for ``DiRA(backbone, optimizer, head=head)``; None
        if none was saved. With `return_inputs` the head and the `Inputs`, or None if
        they were not saved.

    Raises:
        ImportError: If safetensors is not installed.
        FileNotFoundError: If one of the two files is missing.
        ValueError: If the weights do not fit or are not finite, or the file is damaged
            or of a newer version.

    Warns:
        UserWarning: If the weights were stored in lower precision than the model's, or
            the backbone makes other feature maps of them than the saved one.
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
        # Folders of earlier versions have none.
        kept = settings.get("inputs")
        inputs = None if kept is None else Inputs(**kept)
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
    # Some folders have nothing to compare with.
    shown = _shown_by(backbone) if (saved := settings.get("shown")) else None
    if head is not None and (layers := settings.get("layers")):
        # Those that are found by themselves are so under other names, too.
        found = saved is not None and layers == saved.get("layers")
        if found and shown is not None and not are_in(layers, backbone):
            layers = shown["layers"]
        head.layers = tuple(layers)
    if saved and not _alike(saved, shown):
        warn(
            f"from_pretrained: the weights fit, but {type(backbone).__name__} makes "
            f"other feature maps of them than the {settings['backbone']} that was "
            "saved: its layers come in another order, or compute something else, such "
            "as a stem without pooling. Build it as it was trained."
        )
    if head is not None:
        head.to(next(backbone.parameters()))
    return (head, inputs) if return_inputs else head


@torch.no_grad()
def _shown_by(backbone: nn.Module) -> dict[str, Any] | None:
    """Returns what tells a network's maps apart: of the coarsest one of a ramp.

    None if it has no such maps.
    """
    try:
        pyramid = FeaturePyramid(backbone)
    except ValueError:
        return None
    with evaluating(pyramid.backbone):
        # In one of two networks a later layer may have rectified it in place.
        coarsest = pyramid(image_for(pyramid))[-1].float().relu()
    return {
        "layers": pyramid.layers,
        "image": list(pyramid.image_shape),
        "map": list(coarsest.shape[1:]),
        "mean": coarsest.mean().item(),
        "std": coarsest.std().item(),
    }


def _alike(saved: Mapping[str, Any], shown: Mapping[str, Any] | None) -> bool:
    """Whether two networks show the same, up to precision, if they can be compared."""
    if shown is None or saved["image"] != shown["image"]:
        return True
    near = all(math.isclose(saved[n], shown[n], rel_tol=0.02) for n in ("mean", "std"))
    return saved["map"] == shown["map"] and near


def _recipe_of(dira: DiRA) -> dict[str, Any]:
    """Returns what the wrapper did, as JSON can keep it."""
    names = [*inspect.signature(type(dira.loss)).parameters]
    return {
        "stage": dira.stage,
        "steps": dira.steps,
        **{name: getattr(dira.loss, name, None) for name in names},
        "restored_share": dira.restored_share,
        "conditional": dira.conditional,
        "schedule": str(dira.schedule),
        "critic": dira.discriminator is not None,
    }


def _as_json(value: Any) -> Any:
    """Returns a number of NumPy as one of Python, and others as text."""
    return value.item() if isinstance(value, np.generic) else str(value)


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
