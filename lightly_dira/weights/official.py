"""Weights of the authors' published code, loaded into an encoder and a head."""

import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
import torchvision
from torch import Tensor, nn

from lightly_dira.core.extras import extra
from lightly_dira.features.pyramid import FeaturePyramid
from lightly_dira.models.restoration_head import RestorationHead
from lightly_dira.weights.checks import load_weights, reading
from lightly_dira.weights.names import pair_names
from lightly_dira.weights.pretrained import below
from lightly_dira.weights.smp_unet import official_name

# What training scripts put in front of the names, in any order.
_PREFIXES = ("module.", "encoder_q.", "backbone.", "_orig_mod.")
_MARKS = {"encoder_q", "backbone"}


class DiRACheckpoint(NamedTuple):
    """What `load_dira_checkpoint` loaded from a file.

    Attributes:
        backbone: The encoder, with the file's weights.
        head: The decoder, with the file's weights; None if the file has none.
        used: Names, as in the file, of the loaded tensors.
        left_over: Names of the file's other tensors.
    """

    backbone: nn.Module
    head: RestorationHead | None
    used: list[str]
    left_over: list[str]


def load_dira_checkpoint(
    path: str | os.PathLike[str], backbone: nn.Module | None = None
) -> DiRACheckpoint:
    """Loads weights of the authors' published code [0].

    Files are state dicts, alone or under ``state_dict`` in a whole training
    checkpoint, with names ``encoder.*``, ``decoder.blocks.*`` and
    ``segmentation_head.0.*``, or those of the encoder alone, after any of the prefixes
    ``module.``, ``encoder_q.`` and ``backbone.``. No code in a file is ever run.

    Args:
        path: A file of PyTorch or, by its suffix, of safetensors.
        backbone: The encoder to load the weights into. By default the torchvision
            ResNet that they fit, without classifier.

    Raises:
        ValueError: If the file has no such weights, or holds more than tensors and
            plain values, or the weights do not fit.

    - [0]: https://github.com/fhaghighi/DiRA

    Examples:
        >>> import tempfile, torch, torchvision
        >>> from lightly_dira.weights import load_dira_checkpoint
        >>> resnet = torchvision.models.resnet18().state_dict()
        >>> published = {f"module.encoder_q.{name}": v for name, v in resnet.items()}
        >>> path = tempfile.mkdtemp() + "/published.pth"
        >>> torch.save({"epoch": 7, "state_dict": published}, path)
        >>> checkpoint = load_dira_checkpoint(path)
        >>> type(checkpoint.backbone).__name__, checkpoint.left_over
        ('ResNet', ['module.encoder_q.fc.weight', 'module.encoder_q.fc.bias'])
    """
    file = _read(path)
    official = {_without_prefixes(name): name for name in file}
    if len(official) < len(file):
        twice = sorted(set(file) - set(official.values()))
        raise ValueError(
            f"load_dira_checkpoint: {path} has several tensors for one place, for "
            f"example {twice[0]} and {official[_without_prefixes(twice[0])]}. Save the "
            "state dict of one encoder alone."
        )
    weights = {new: file[old] for new, old in official.items()}
    encoder = below("encoder.", weights)
    if not encoder:
        # Without that name, the prefixes of an encoder mark its weights.
        marked = {
            n: v for n, v in weights.items() if _MARKS & {*official[n].split(".")}
        }
        encoder = marked or weights
    in_file = {n: official.get(f"encoder.{n}", official.get(n, n)) for n in encoder}
    if backbone is None:
        backbone = _resnet_like(encoder, path)
    used = [in_file[name] for name in load_weights(backbone, encoder)]
    head = None
    if "decoder.blocks.0.conv1.0.weight" in weights:
        head = _head_like(weights, backbone)
        state = {
            official_name(name): value for name, value in head.state_dict().items()
        }
        missing = [name for name in state if name not in weights]
        if missing:
            raise ValueError(
                f"load_dira_checkpoint: {path} has an incomplete decoder. "
                f"Missing: {', '.join(missing)}."
            )
        decoder = {name: weights[name] for name in state}
        pair_names(decoder, state, into="The decoder that fits the encoder")
        head.load_state_dict({k: weights[official_name(k)] for k in head.state_dict()})
        head.to(next(backbone.parameters()))
        used += [official[name] for name in state]
    loaded = set(used)
    left_over = [name for name in file if name not in loaded]
    return DiRACheckpoint(backbone, head, used, left_over)


def _resnet_like(weights: Mapping[str, Tensor], path: object) -> nn.Module:
    """Makes the ResNet of torchvision that the weights fit, without classifier."""
    first = weights.get("conv1.weight", torch.empty(0))
    channels = first.shape[1] if first.ndim == 4 else 3

    def make(name: str) -> nn.Module:
        resnet: Any = torchvision.models.get_model(name, weights=None)
        resnet.conv1 = nn.Conv2d(channels, 64, 7, 2, 3, bias=False)
        resnet.fc = nn.Identity()
        return cast(nn.Module, resnet)

    fitting: dict[int, str] = {}  # by the number of parameters
    for name in torchvision.models.list_models(include=["resne*", "wide_resnet*"]):
        with torch.device("meta"):
            wanted = dict(make(name).named_parameters())
        if all(k in weights and weights[k].shape == v.shape for k, v in wanted.items()):
            fitting[len(wanted)] = name
    if fitting:
        # The weights of a larger ResNet may contain all of a smaller one.
        return make(fitting[max(fitting)])
    raise ValueError(
        f"load_dira_checkpoint: the weights in {path} fit no ResNet of torchvision. "
        f"Pass the encoder, `backbone=`. First names: {', '.join([*weights][:5])}."
    )


def _head_like(weights: Mapping[str, Tensor], backbone: nn.Module) -> RestorationHead:
    """Makes the head that the weights of a decoder fit."""
    pyramid = FeaturePyramid(backbone)
    blocks: list[int] = []
    while (name := f"decoder.blocks.{len(blocks)}.conv2.0.weight") in weights:
        blocks.append(len(weights[name]))
    image = weights.get("segmentation_head.0.weight", torch.empty(1))
    return RestorationHead(
        pyramid.channels,
        decoder_channels=blocks,
        out_channels=len(image),
        strides=pyramid.strides,
    )


def _read(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Reads the tensors of a state dict, also from under ``state_dict``."""
    if Path(path).suffix == ".safetensors":
        with reading(path):
            with extra("safetensors"):
                from safetensors.torch import load_file
            state: Any = load_file(path)
    else:
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, EOFError, KeyError, RuntimeError) as error:
            raise ValueError(
                f"{path} is not a file of PyTorch, or holds more than tensors and "
                "plain values. Only code from the file could restore the rest, and "
                "such code is not run. If you trust the file, load it with "
                "weights_only=False and save its state_dict alone. PyTorch says: "
                f"{str(error).partition(chr(10))[0]}"
            ) from error
    if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]
    if not isinstance(state, Mapping):
        raise ValueError(f"{path} holds a {type(state).__name__}, not a state dict.")
    tensors = {str(key): v for key, v in state.items() if isinstance(v, Tensor)}
    if not tensors:
        raise ValueError(f"{path} holds no tensors, nor does its `state_dict`.")
    return tensors


def _without_prefixes(name: str) -> str:
    while name.startswith(_PREFIXES):
        name = name.partition(".")[2]
    return name
