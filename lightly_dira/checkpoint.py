"""Weights out and in: torchvision, timm, segmentation_models_pytorch, official DiRA."""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib
import json
import math
import os
import pickle
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
import torchvision
from torch import Tensor, nn

from lightly_dira import __version__
from lightly_dira.discovery import evaluating
from lightly_dira.features import FeaturePyramid
from lightly_dira.matching import pair_names
from lightly_dira.restoration import RestorationHead

# What training scripts put in front of the names, in any order.
_PREFIXES = ("module.", "encoder_q.", "backbone.", "_orig_mod.")
_MARKS = {"encoder_q", "backbone"}
_OFFICIAL = {"blocks": "decoder.blocks.", "to_image": "segmentation_head.0."}
_WEIGHTS, _SETTINGS = "model.safetensors", "config.json"


class DiRACheckpoint(NamedTuple):
    """What `load_dira_checkpoint` made of a file.

    Attributes:
        backbone: The encoder, with the file's weights.
        head: The decoder, with the file's weights; None if the file has none.
        used: Names, as in the file, of what was loaded.
        left_over: Names of the file's other tensors.
    """

    backbone: nn.Module
    head: RestorationHead | None
    used: list[str]
    left_over: list[str]


def export_encoder(backbone: nn.Module, like: nn.Module | str) -> dict[str, Tensor]:
    """Returns the backbone's weights under the names of another library's model.

    Layers are recognised by name, behind any prefix, or else by order, kind and
    shape: `nn.Sequential(*list(resnet.children())[:-1])` fits a torchvision or timm
    ResNet. All of `like` must be found in the backbone but for a classifier at its
    end, and all layers of the backbone in `like` but for one at its own end.

    Args:
        backbone: The trained encoder.
        like: A model of torchvision or timm, or the name of one.

    Returns:
        A copy of the weights on the CPU, with which `like` has been seen to make the
        backbone's feature maps. It loads into `like` with ``strict=True`` if
        `like` has no classifier, and lacks nothing but the classifier if it has.

    Raises:
        TypeError: If `like` is neither a model nor a name.
        ValueError: If one has layers that the other lacks, the maps differ, or neither
            library knows the name.

    Examples:
        >>> import torchvision
        >>> from torch import nn
        >>> from lightly_dira.checkpoint import export_encoder
        >>> resnet = torchvision.models.resnet18()
        >>> backbone = nn.Sequential(*list(resnet.children())[:-1])
        >>> classifier = torchvision.models.resnet18(num_classes=14)
        >>> weights = export_encoder(backbone, like=classifier)
        >>> classifier.load_state_dict(weights, strict=False).missing_keys
        ['fc.weight', 'fc.bias']
    """
    model = _named_model(like) if isinstance(like, str) else like
    if not isinstance(model, nn.Module):
        raise TypeError(
            "export_encoder: like must be a model of torchvision or timm or its name, "
            f"got {type(model).__name__}."
        )
    source, target = backbone.state_dict(), model.state_dict()
    pairs = pair_names(source, target, into=type(model).__name__)
    weights = {new: _copied(source[old]) for new, old in pairs.items()}
    _check_same_maps(backbone, model, weights)
    return weights


def to_smp_unet(
    backbone: nn.Module,
    head: RestorationHead,
    *,
    encoder_name: str | None = None,
    layers: Sequence[str] | None = None,
) -> nn.Module:
    """Returns an `smp.Unet` with the weights, and hence the output, of both.

    Needs ``pip install lightly-dira[smp]``. What it returns has been compared with
    backbone and head on an image. Encoders that take their maps from the same places
    are its ResNets, ResNeXts and MobileNetV2.

    Args:
        backbone: The trained encoder.
        head: The trained head, `dira.head`.
        encoder_name: Its name there, for example "tu-resnet50"; by default the first
            one into which the weights fit.
        layers: What `DiRA` was given as `layers`, if anything.

    Raises:
        ImportError: If segmentation_models_pytorch is not installed.
        TypeError: If the head is no `RestorationHead`.
        ValueError: If it has no such encoder or no such decoder.

    Examples:
        >>> import torchvision
        >>> from lightly_dira import DiRA
        >>> from lightly_dira.checkpoint import to_smp_unet
        >>> backbone = torchvision.models.resnet18()
        >>> unet = to_smp_unet(backbone, DiRA(backbone).head)
        >>> unet.name
        'u-resnet18'
    """
    smp = optional("segmentation_models_pytorch", extra="smp")
    _check_head("to_smp_unet", head)
    settings = head.settings
    channels, blocks = settings["encoder_channels"], settings["decoder_channels"]
    if len(blocks) != len(channels) or any(True for _ in head.enlarge.parameters()):
        raise ValueError(
            "to_smp_unet: smp.Unet doubles the size once for each of its encoder's "
            f"maps, so that the finest has stride 2; this head has {len(channels)} "
            f"maps, strides {settings['strides']} and {len(blocks)} decoder blocks. "
            "Use backbone and head as they are: both are ordinary modules."
        )
    pyramid = FeaturePyramid(backbone, layers=layers)
    source = backbone.state_dict()
    reasons = []
    for name in [encoder_name] if encoder_name else _with_maps(smp, channels):
        make = functools.partial(
            smp.Unet,
            name,
            encoder_depth=len(channels),
            encoder_weights=None,
            decoder_channels=blocks,
            in_channels=pyramid.image_shape[0],
            classes=settings["out_channels"],
            activation=settings["activation"],
        )
        with torch.device("meta"):
            shapes = make().encoder.state_dict()
        try:
            pairs = pair_names(source, shapes, into=name)
        except ValueError as error:
            reasons.append(str(error))
            continue
        weights = {f"encoder.{new}": source[old] for new, old in pairs.items()}
        for old, value in head.state_dict().items():
            weights[_official(old)] = value
        unet: nn.Module = make()
        unet.load_state_dict(weights)
        unet.to(next(head.parameters())).train(head.training)
        _check_equal(pyramid, head, unet)
        return unet
    raise ValueError(
        "to_smp_unet: segmentation_models_pytorch has no encoder with maps of "
        f"{channels} channels into which these weights fit; name it with "
        "`encoder_name=` or use backbone and head as they are. " + " ".join(reasons[:1])
    )


def save_pretrained(
    folder: str | os.PathLike[str], backbone: nn.Module, head: RestorationHead
) -> None:
    """Writes the weights of both as safetensors and the head's settings as JSON.

    Needs ``pip install lightly-dira[safetensors]``.

    Args:
        folder: Where to write ``model.safetensors`` and ``config.json``; it is made if
            it does not exist.
        backbone: The trained encoder.
        head: The trained head, `dira.head`.

    Raises:
        ImportError: If safetensors is not installed.
        TypeError: If the head is no `RestorationHead`, whose settings are known.

    Examples:
        >>> import tempfile, torchvision
        >>> from lightly_dira import DiRA
        >>> from lightly_dira.checkpoint import from_pretrained, save_pretrained
        >>> backbone = torchvision.models.resnet18()
        >>> folder = tempfile.mkdtemp()
        >>> save_pretrained(folder, backbone, DiRA(backbone).head)
        >>> fresh = torchvision.models.resnet18()
        >>> head = from_pretrained(folder, fresh)
    """
    safetensors = optional("safetensors.torch", extra="safetensors")
    _check_head("save_pretrained", head)
    weights = {f"backbone.{name}": v for name, v in backbone.state_dict().items()}
    weights |= {f"head.{name}": value for name, value in head.state_dict().items()}
    settings = {"lightly_dira": __version__, "head": head.settings}
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # Copies, because safetensors takes no two tensors that share memory.
    copies = {name: _copied(value) for name, value in weights.items()}
    # The file sorts its names; their order tells the layers of another library apart.
    metadata = {"format": "pt", "order": json.dumps(list(copies))}
    safetensors.save_file(copies, folder / _WEIGHTS, metadata)
    (folder / _SETTINGS).write_text(json.dumps(settings, indent=2) + "\n")


def from_pretrained(
    folder: str | os.PathLike[str], backbone: nn.Module
) -> RestorationHead:
    """Loads what `save_pretrained` wrote.

    Args:
        folder: Where it was written.
        backbone: An encoder to take the weights up, of the architecture that was
            saved; names may differ as in `export_encoder`.

    Returns:
        The head, with its weights, for ``DiRA(backbone, optimizer, head=head)``.

    Raises:
        ImportError: If safetensors is not installed.
        FileNotFoundError: If one of the two files is missing.
        ValueError: If the weights do not fit or are not finite, or the file is damaged
            or of a newer version.

    Warns:
        UserWarning: If the weights were stored in lower precision than the model's.
    """
    safetensors = optional("safetensors.torch", extra="safetensors")
    folder = Path(folder)
    for name in (_SETTINGS, _WEIGHTS):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"from_pretrained: {folder} has no {name}. Expected a folder that "
                "save_pretrained has written."
            )
    try:
        settings = json.loads((folder / _SETTINGS).read_text())
        version, arguments = settings["lightly_dira"], dict(settings["head"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"from_pretrained: {folder / _SETTINGS} is not what save_pretrained "
            f"writes: {error!r}."
        ) from error
    try:
        head = RestorationHead(**arguments)
    except TypeError as error:
        raise ValueError(
            f"from_pretrained: {folder} was written by lightly-dira {version}, and "
            f"this is {__version__}, which does not know all of its settings "
            f"({error}). Update lightly-dira."
        ) from error
    with (
        _reading(folder / _WEIGHTS),
        safetensors.safe_open(folder / _WEIGHTS, framework="pt") as file,
    ):
        metadata = file.metadata() or {}
        names = json.loads(metadata.get("order", "null")) or list(file.keys())
        weights = {name: file.get_tensor(name) for name in names}
    _check_values(_below("head.", weights), head.state_dict())
    head.load_state_dict(_below("head.", weights))
    _load(backbone, _below("backbone.", weights))
    return head.to(next(backbone.parameters()))


def load_dira_checkpoint(
    path: str | os.PathLike[str], backbone: nn.Module | None = None
) -> DiRACheckpoint:
    """Loads weights of the authors' published code [0].

    Files are state dicts, alone or under ``state_dict`` in a whole training
    checkpoint, with names ``encoder.*``, ``decoder.blocks.*`` and
    ``segmentation_head.0.*``, or those of the encoder alone, behind any of the prefixes
    ``module.``, ``encoder_q.`` and ``backbone.``. No code in a file is ever run.

    Args:
        path: A file of PyTorch or, by its suffix, of safetensors.
        backbone: The encoder to take the weights up. By default the ResNet of
            torchvision, without classifier, that they fit.

    Raises:
        ValueError: If the file has no such weights, or holds more than tensors and
            plain values, or the weights do not fit.

    - [0]: https://github.com/fhaghighi/DiRA

    Examples:
        >>> import tempfile, torch, torchvision
        >>> from lightly_dira.checkpoint import load_dira_checkpoint
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
    encoder = _below("encoder.", weights)
    if not encoder:
        # Without that name, what the marks of the encoder in front tell.
        marked = {
            n: v for n, v in weights.items() if _MARKS & {*official[n].split(".")}
        }
        encoder = marked or weights
    in_file = {n: official.get(f"encoder.{n}", official.get(n, n)) for n in encoder}
    if backbone is None:
        backbone = _resnet_like(encoder, path)
    used = [in_file[name] for name in _load(backbone, encoder)]
    head = None
    if "decoder.blocks.0.conv1.0.weight" in weights:
        head = _head_like(weights, backbone)
        state = {_official(name): value for name, value in head.state_dict().items()}
        missing = [name for name in state if name not in weights]
        if missing:
            raise ValueError(
                f"load_dira_checkpoint: {path} has a decoder but not all of it. "
                f"Missing: {', '.join(missing)}."
            )
        decoder = {name: weights[name] for name in state}
        pair_names(decoder, state, into="The decoder that fits the encoder")
        head.load_state_dict({k: weights[_official(k)] for k in head.state_dict()})
        head.to(next(backbone.parameters()))
        used += [official[name] for name in state]
    loaded = set(used)
    left_over = [name for name in file if name not in loaded]
    return DiRACheckpoint(backbone, head, used, left_over)


def _load(backbone: nn.Module, weights: Mapping[str, Tensor]) -> list[str]:
    """Loads weights under other names, and returns the names that were used."""
    pairs = pair_names(weights, backbone.state_dict(), into=type(backbone).__name__)
    state = {new: weights[old] for new, old in pairs.items()}
    _check_values(state, backbone.state_dict())
    backbone.load_state_dict(state, strict=False)
    return list(pairs.values())


def _named_model(name: str) -> nn.Module:
    if name in torchvision.models.list_models():
        model: nn.Module = torchvision.models.get_model(name, weights=None)
        return model
    with contextlib.suppress(ImportError):
        import timm

        if timm.is_model(name):
            return timm.create_model(name, pretrained=False)
    raise ValueError(
        f"export_encoder: neither torchvision nor timm, if installed, has a model "
        f"{name!r}. Pass the model itself."
    )


def _resnet_like(weights: Mapping[str, Tensor], path: object) -> nn.Module:
    """Makes the ResNet of torchvision that the weights fit, without classifier."""
    channels = weights["conv1.weight"].shape[1] if "conv1.weight" in weights else 3

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
        # A smaller one may be part of a larger one.
        return make(fitting[max(fitting)])
    raise ValueError(
        f"load_dira_checkpoint: the weights in {path} are of no ResNet of torchvision. "
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
        with _reading(path):
            state = optional("safetensors.torch", extra="safetensors").load_file(path)
    else:
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, EOFError, KeyError, RuntimeError) as error:
            raise ValueError(
                f"{path} is no file of PyTorch, or holds more than tensors and plain "
                "values, which only code from the file could restore; that is not run. "
                "Where you trust it, load it with weights_only=False and save its "
                f"state_dict alone. PyTorch says: {str(error).partition(chr(10))[0]}"
            ) from error
    if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]
    if not isinstance(state, Mapping):
        raise ValueError(f"{path} holds no state dict but {type(state).__name__}.")
    tensors = {str(key): v for key, v in state.items() if isinstance(v, Tensor)}
    if not tensors:
        raise ValueError(f"{path} holds no tensors, nor does its `state_dict`.")
    return tensors


@contextlib.contextmanager
def _reading(path: str | os.PathLike[str]) -> Iterator[None]:
    """Says of which file an error of safetensors speaks."""
    try:
        yield
    except optional("safetensors", extra="safetensors").SafetensorError as error:
        raise ValueError(
            f"{path} is not a file of safetensors, or is damaged ({error}). Copy it "
            "again, or take another."
        ) from error


def _check_values(weights: Mapping[str, Tensor], model: Mapping[str, Tensor]) -> None:
    """Looks for weights that would load and be wrong.

    Raises:
        ValueError: If weights are not finite, or integers in the place of floats.
    """
    rounded = set()
    for name, value in weights.items():
        wanted = model[name].dtype if name in model else value.dtype
        if value.is_floating_point() and not value.isfinite().all():
            raise ValueError(
                f"The weights hold NaN or infinity in {name}: the run that wrote them "
                "had diverged. Take an earlier checkpoint."
            )
        if value.is_floating_point() != wanted.is_floating_point:
            raise ValueError(
                f"The weights {name} are {value.dtype}, but the model's {wanted}. They "
                "were quantised or are of something else."
            )
        if value.is_floating_point() and value.dtype.itemsize < wanted.itemsize:
            rounded.add(str(value.dtype))
    if rounded:
        warnings.warn(
            f"The weights were stored as {', '.join(sorted(rounded))}, rounded from "
            "what they were trained in; the model keeps its own precision.",
            stacklevel=4,
        )


def _without_prefixes(name: str) -> str:
    while name.startswith(_PREFIXES):
        name = name.partition(".")[2]
    return name


def _official(name: str) -> str:
    """Returns the name that a tensor of the head has in a U-Net of smp."""
    part, _, rest = name.partition(".")
    return _OFFICIAL[part] + rest


def _below(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def _with_maps(smp: Any, channels: tuple[int, ...]) -> list[str]:
    """Lists the encoders of smp whose maps have these channels."""
    known = {n: e["params"]["out_channels"] for n, e in smp.encoders.encoders.items()}
    depth = len(channels) + 1
    return [name for name, found in known.items() if tuple(found[1:depth]) == channels]


def _check_head(caller: str, head: nn.Module) -> None:
    if not isinstance(head, RestorationHead):
        raise TypeError(
            f"{caller}: expected a RestorationHead, whose settings are known, got "
            f"{type(head).__name__}. Take another head's state_dict() yourself."
        )


@torch.no_grad()
def _check_equal(
    pyramid: FeaturePyramid, head: RestorationHead, unet: nn.Module
) -> None:
    image = _image_for(pyramid)
    with evaluating(pyramid.backbone, head, unet):
        restored, theirs = head(pyramid(image), image.shape[2:]), unet(image)
    if not _close(restored, theirs):
        raise ValueError(
            "to_smp_unet: the weights fit, but the outputs differ by up to "
            f"{(restored - theirs).abs().max().item():.2g}: the encoder of smp.Unet "
            "takes its maps from other places than the backbone's. Use backbone and "
            "head as they are."
        )


@torch.no_grad()
def _check_same_maps(
    backbone: nn.Module, model: nn.Module, weights: Mapping[str, Tensor]
) -> None:
    """Compares all maps, so that equal shapes are not taken for the same."""
    model = copy.deepcopy(model).to(next(backbone.parameters()))
    model.load_state_dict(weights, strict=False)
    ours, theirs = FeaturePyramid(backbone), FeaturePyramid(model)
    image = _image_for(ours)
    with evaluating(backbone, model):
        maps = [*zip(ours(image), theirs(image), strict=False)]
    # A map at the end may have been rectified in place by what follows in one of them.
    equal = all(_close(a.relu(), b.relu()) for a, b in maps)
    if not equal or len(ours.layers) != len(theirs.layers):
        raise ValueError(
            "export_encoder: the weights fit, but the feature maps differ: layers of "
            "one shape come in another order, or one computes something else."
        )


def _image_for(pyramid: FeaturePyramid) -> Tensor:
    """Returns a ramp of grey values that the backbone can be run on."""
    shape = pyramid.image_shape
    ramp = torch.linspace(0, 1, math.prod(shape)).reshape(1, *shape)
    return ramp.to(next(pyramid.backbone.parameters()))


def _close(ours: Tensor, theirs: Tensor) -> bool:
    return ours.shape == theirs.shape and bool(
        (ours - theirs).abs().max() <= 1e-3 * ours.abs().max().clamp_min(1)
    )


def _copied(value: Tensor) -> Tensor:
    return value.detach().cpu().clone(memory_format=torch.contiguous_format)


def optional(module: str, *, extra: str) -> Any:
    """Imports a module, or says what to install for it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"This needs {module.partition('.')[0]}: pip install lightly-dira[{extra}]"
        ) from error
