"""Look before you train: what the files of a folder hold, and what is made of them.

    python -m lightly_dira FOLDER                        # images
    python -m lightly_dira FOLDER --window 0 4095        # 12 bits
    python -m lightly_dira FOLDER --window percentiles   # no common unit
    python -m lightly_dira FOLDER --volumes              # NIfTI, DICOM series, NumPy

Reads files as `ImageFiles` and `VolumeFiles` do, says which bits, values and sizes they
have and which of them cannot be read, and writes preview.png, a column for each of 8
files: the clean target of the first view, this view, and the second one, which is
another crop. The targets must show what you want to see: white areas or a dark image
mean that the window is wrong. The views have other grey levels and distortions.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torchvision.utils import save_image

from lightly_dira.data import ImageFiles, VolumeFiles
from lightly_dira.data.white import parse_window
from lightly_dira.transforms.dira_transform import DiRATransform

# Columns of the picture, and files that cannot be read that are named.
COLUMNS, NAMED = 8, 5


class Facts(NamedTuple):
    """What is reported of a file."""

    kind: str
    size: str
    low: float
    high: float


def main(arguments: list[str] | None = None) -> None:
    """Runs the command; see the head of this file."""
    parser = argparse.ArgumentParser(
        "python -m lightly_dira",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--window",
        nargs="+",
        default=(),
        metavar="VALUE",
        help="the values that become black and white, or percentiles",
    )
    parser.add_argument("--voi", action="store_true", help="DICOM's own windows")
    parser.add_argument("--volumes", action="store_true", help="in three dimensions")
    parser.add_argument("--input-size", type=int, help="224 pixels")
    parser.add_argument("--files", type=int, default=200, help="how many to read: 200")
    parser.add_argument("--out", type=Path, default=Path("preview.png"))
    options = parser.parse_args(arguments)
    if options.files < 1:
        parser.error(f"--files must be at least 1, got {options.files}")
    if options.folder.resolve() in options.out.resolve().parents:
        parser.error(
            f"{options.out} would lie among the images of {options.folder}, and be "
            "taken for one: give another place, --out FILE"
        )
    try:
        window = parse_window(options.window)
        sizes = {} if options.input_size is None else {"input_size": options.input_size}
        transform = DiRATransform(
            window=window, spatial_dims=3 if options.volumes else 2, **sizes
        )
        items = read(options.folder, options, transform)
        save_image(transform.contact_sheet(items), options.out)
    except (FileNotFoundError, ModuleNotFoundError, ValueError) as error:
        volumes = not options.volumes and any(options.folder.rglob("*.nii*"))
        sys.exit(f"{error}{' NIfTI files need --volumes.' if volumes else ''}")
    print(f"Wrote {options.out}: targets in the first row, the two views below.")


def read(
    folder: Path, options: argparse.Namespace, transform: DiRATransform
) -> list[Any]:
    """Reads files, prints what they hold, and returns those of the picture.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If nothing can be read.
    """
    kind = VolumeFiles if options.volumes else ImageFiles
    files = kind(folder, voi=options.voi)
    count = min(options.files, len(files))
    chosen = np.linspace(0, len(files) - 1, count).round().astype(int).tolist()
    shown = [chosen[i] for i in np.linspace(0, count - 1, COLUMNS).round().astype(int)]
    facts: list[Facts] = []
    items: dict[int, Any] = {}
    failures: dict[str, str] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("once")
        for index in chosen:
            try:
                item, *_ = files[index]
                facts.append(_facts_of(np.asarray(item)))
                # Whatever cannot be read is replaced in the picture.
                if index in shown or len(items) < COLUMNS:
                    transform(item)
                    items[index] = item
            except (ModuleNotFoundError, OSError, TypeError, ValueError) as error:
                failures[files.names[index]] = str(error)
    opened = f"{count - len(failures)} of {count} that were opened can be used"
    print(f"{len(files)} files in {folder}; {opened}")
    for name, message in list(failures.items())[:NAMED]:
        print(f"  {name}: {message}")
    for line in describe(facts):
        print(line)
    if not items:
        raise ValueError("None of them can be used: see above.")
    best = [index for index in dict.fromkeys(shown) if index in items]
    rest = [index for index in items if index not in best]
    return [items[index] for index in sorted([*best, *rest][:COLUMNS])]


def describe(facts: Iterable[Facts]) -> list[str]:
    """Returns lines that say which bits, values and sizes there are."""
    facts = list(facts)
    if not facts:
        return []
    lines = []
    for kind, number in Counter(each.kind for each in facts).most_common():
        own = [each for each in facts if each.kind == kind]
        low, high = min(each.low for each in own), max(each.high for each in own)
        lines.append(f"{number} of {kind}, values from {low:g} to {high:g}")
    sizes = Counter(each.size for each in facts).most_common()
    most = ", ".join(f"{size} ({number})" for size, number in sizes[:3])
    others = f", and {len(sizes) - 3} other sizes" if len(sizes) > 3 else ""
    return [*lines, f"sizes: {most}{others}"]


def _facts_of(pixels: np.ndarray[Any, Any]) -> Facts:
    bits = {"u": "unsigned", "i": "signed", "f": "float"}.get(pixels.dtype.kind, "bool")
    kind = f"{8 * pixels.dtype.itemsize} bits, {bits}"
    size = " x ".join(map(str, pixels.shape))
    return Facts(kind, size, float(pixels.min()), float(pixels.max()))


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
