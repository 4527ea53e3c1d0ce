"""Joins folders of results, of seeds or methods that ran side by side.

python examples/compare/join.py OUT PART [PART ...]

The parts must have the same settings but for methods, stages, seeds and protocols. Rows
that several parts have are those of the first.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pandas as pd
from report import report
from results import JOINING, Results, as_json, write_whole
from settings import Settings


def join_parts(out: Path, parts: list[Path]) -> None:
    settings = join_settings(parts)
    out.mkdir(parents=True, exist_ok=True)
    rows = pd.concat([Results(part / "results.csv").table for part in parts])
    keys = [column for column in rows if column != "value"]
    rows = rows.drop_duplicates(keys)
    # Baselines, untrained encoders, then seed by seed.
    first = ["baseline", "random", "start"]
    place = rows["method"].map({name: i for i, name in enumerate(first)}).fillna(9)
    rows = rows.assign(place=place).sort_values(["place", "seed"], kind="stable")
    write_whole(out / "results.csv", rows.drop(columns="place").to_csv(index=False))
    write_whole(out / "settings.json", json.dumps(settings, indent=2) + "\n")
    if out.resolve() != parts[0].resolve():
        shutil.copy(parts[0] / "environment.txt", out)
    report(out)


def join_settings(parts: list[Path]) -> dict[str, Any]:
    for part in parts:
        if not (part / "settings.json").is_file():
            sys.exit(f"{part} is no folder of results: it has no settings.json.")
    # Settings that a file lacks did not exist yet: they have their defaults.
    kept = [json.loads((part / "settings.json").read_text()) for part in parts]
    for settings in kept:
        for name, default in as_json(Settings()).items():
            settings.setdefault(name, default)
    joined = dict(kept[0])
    for part, other in zip(parts, kept, strict=True):
        for name in JOINING:
            joined[name] = list(dict.fromkeys([*joined[name], *other[name]]))
        if differing := [
            name
            for name in joined | other
            if joined.get(name) != other.get(name) and name not in JOINING
        ]:
            sys.exit(f"{part} holds results of another {', '.join(differing)}.")
    return joined


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    join_parts(Path(sys.argv[1]), [Path(part) for part in sys.argv[2:]])
