"""The options of the command, from which its settings follow."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from pathlib import Path
from typing import Any, get_args

import timm
from discriminative import METHODS
from recipe import CURVED
from restorative import HOSTS
from settings import ENCODERS, ENCODERS_3D, PRESETS, STAGES, Settings

from lightly_dira.data.white import check_window, parse_window
from lightly_dira.evaluation.protocol import Protocol
from lightly_dira.loss.adversaries import ADVERSARIES

EXAMPLE = '{"Genesis": {"contrastive_weight": 0.001}}'


def parse(arguments: list[str] | None, description: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", choices=PRESETS, default="smoke")
    parser.add_argument(
        "--data",
        help="your images: a folder of classes, a folder with images and masks, or a "
        "CSV file (image, label, mask, patient, split); or a folder of .npz files, of "
        "ChestX-ray14 or of a task of the Medical Segmentation Decathlon, a file of CT "
        "nodules (images, masks, diagnosis, patient, split), or a set of MedMNIST, "
        "which is downloaded; by default the MNI152 brain",
    )
    parser.add_argument("--out", type=Path, help="folder of results")
    parser.add_argument(
        "--split",
        choices=("val", "test"),
        default="test",
        help="val while you choose settings; test once",
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument(
        "--options",
        type=read_options,
        metavar="JSON",
        help=f"arguments of methods, beside the preset's: {EXAMPLE}",
    )
    known = {
        "methods": [*METHODS, *HOSTS],
        "stages": STAGES,
        "protocols": get_args(Protocol),
        "decoder": ("pre-trained", "new"),
        "adversary": ADVERSARIES,
        "precision": ("32", "bf16-mixed"),
    }
    for field in dataclasses.fields(Settings):
        if field.name != "options":
            default = getattr(PRESETS["cpu"], field.name)
            if isinstance(default, bool):
                kind = argparse.BooleanOptionalAction
                parser.add_argument(f"--{field.name}", action=kind, default=None)
                continue
            several = isinstance(default, tuple)
            kind = type(default[0] if default else 0) if several else type(default)
            kind = str if field.name == "window" else kind
            parser.add_argument(
                f"--{field.name.replace('_', '-')}",
                type=kind,
                nargs="+" if several else None,
                choices=known.get(field.name),
                help="instead of the preset's",
            )
    options = parser.parse_args(arguments)
    changed = {
        field.name: tuple(value) if isinstance(value, list) else value
        for field in dataclasses.fields(Settings)
        if (value := getattr(options, field.name, None)) is not None
    }
    preset = PRESETS[options.preset]
    of_methods = preset.options.copy()
    for method, own in changed.get("options", {}).items():
        of_methods[method] = of_methods.get(method, {}) | own
    changed["options"] = of_methods
    options.settings = dataclasses.replace(preset, **changed)
    if problem := find_problem(options.settings):
        parser.error(problem)
    if options.out is None:
        options.out = Path(f"compare-{options.preset}")
    return options


def read_options(text: str) -> dict[str, dict[str, Any]]:
    try:
        options = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text} is not JSON: {error}") from None
    of_methods = options.values() if isinstance(options, dict) else [options]
    if not all(isinstance(own, dict) for own in of_methods):
        raise argparse.ArgumentTypeError(f"expected e.g. {EXAMPLE}, got {text}")
    return options


def find_problem(settings: Settings) -> str | None:
    """Returns what is wrong with settings that do not fit together."""
    if unknown := set(settings.options) - (METHODS | HOSTS).keys():
        return f"--options are of methods; got {', '.join(sorted(unknown))}"
    for name in settings.methods:
        host = HOSTS.get(name)
        if host is not None and settings.encoder != host.encoder:
            return f"{name} needs --encoder {host.encoder}"
        if host is not None and set(settings.stages) - {"di", "dira"}:
            return f"{name} restores: choose --stages di dira"
        if name == "TransVW" and not settings.words:
            return "TransVW needs --words FOLDER, as volumes/visual_words.py writes it"
    if settings.cube and {"apart", "recipe", "published"} & set(settings.stages):
        return "the stages apart, recipe and published are of images"
    if "recipe" in settings.stages and settings.intensity != CURVED:
        return f"the recipe needs --intensity {CURVED}"
    fixed = settings.cube or {"recipe", "published"} & set(settings.stages)
    if settings.distortions < 1 or (fixed and settings.distortions > 1):
        return "--distortions is 1, or of images more; recipe and published have 1"
    parts = {"di+curves", "di+distortions"} & set(settings.stages)
    if parts and (settings.cube or not settings.intensity):
        return f"{min(parts)} needs images and --intensity: choose di+views"
    try:
        check_window(parse_window(settings.window))
    except ValueError:
        got = " ".join(settings.window)
        return f"--window LOW HIGH needs two numbers or the word percentiles, got {got}"
    encoder = settings.encoder
    if settings.cube and encoder not in ENCODERS_3D:
        return f"encoders of volumes are {', '.join(ENCODERS_3D)}; got {encoder}"
    if not settings.cube and encoder not in ENCODERS and not timm.is_model(encoder):
        return f"encoders of images are {', '.join(ENCODERS)}, or timm's; got {encoder}"
    if settings.start and (settings.cube or encoder == "vit" or "-" in encoder):
        return "--start is for torchvision and timm: choose --encoder resnet18"
    return None
