"""The house: who may import whom."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import lightly_dira

ROOT, TESTS = Path(lightly_dira.__file__).parent, Path(__file__).parent
# From the ground floor up; folders and files of one storey do not know each other.
STOREYS = [
    {"core"},
    {"data", "features", "loss", "models", "views"},
    {"training", "transforms"},
    {"wrapper"},
    {"adversary", "dira"},
    {"weights", "evaluation"},
    {"lightning", "__main__"},
]
LEVEL = {name: level for level, names in enumerate(STOREYS) for name in names}
# Which folders of one storey or below are known all the same.
PUBLIC = "lightly_dira"


def imported(path: Path) -> set[str]:
    """The parts of this package that a file imports, at any place."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
            if node.module == PUBLIC:
                names = [f"{PUBLIC}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        found |= {n.split(".")[1] for n in names if n.startswith(f"{PUBLIC}.")}
    return found


def parts() -> dict[str, set[str]]:
    """What each folder, or file at the top, imports of the others."""
    known: dict[str, set[str]] = {}
    for path in ROOT.rglob("*.py"):
        own = path.relative_to(ROOT).parts[0].removesuffix(".py")
        if own != "__init__":
            known.setdefault(own, set()).update(imported(path) - {own})
    return known


def test_every_part_has_its_storey() -> None:
    assert set(parts()) == set(LEVEL)


def test_arrows_point_down() -> None:
    """No circle, and no arrow upward or aside."""
    wrong = [
        f"{own} -> {other}"
        for own, others in parts().items()
        for other in others & set(LEVEL)
        if LEVEL[other] >= LEVEL[own]
    ]
    assert not wrong


def private_names(path: Path) -> set[str]:
    """Names of PyTorch that begin with `_`, of modules and of what they hold."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("torch"):
            names = [*node.module.split("."), *(alias.name for alias in node.names)]
            found |= {name for name in names if name.startswith("_")}
        elif isinstance(node, ast.Attribute) and node.attr in (
            "_C",
            "_execution_engine",
            "_iterator",
            "_buffers",
            "_modules",
            "_version",
        ):
            found.add(node.attr)
        elif isinstance(node, ast.Constant) and node.value == "_orig_mod":
            found.add(node.value)
    return found


def test_private_names_of_torch_stand_in_one_module() -> None:
    names = {
        path.relative_to(ROOT).as_posix(): private_names(path)
        for path in ROOT.rglob("*.py")
    }
    assert names.pop("core/private_torch.py") >= {"_C", "_pytree", "_utils"}
    assert not any(names.values()), names


def test_private_names_of_lightning_stand_in_one_module() -> None:
    holders = {
        path.relative_to(ROOT).as_posix()
        for path in ROOT.rglob("*.py")
        if re.search("_data_source|_data_fetcher", path.read_text())
    }
    assert holders == {"lightning/mid_epoch.py"}


def test_albumentations_is_adapted_in_one_module() -> None:
    holders = {
        path.relative_to(ROOT).as_posix()
        for path in ROOT.rglob("*.py")
        if re.search(r"^\s*(import|from) albumentations", path.read_text(), re.M)
    }
    assert holders == {"transforms/albumentations_steps.py"}


def test_files_are_short() -> None:
    """One idea each, that one reads from top to bottom."""
    lengths = {p: len(p.read_text().splitlines()) for p in ROOT.rglob("*.py")}
    assert not {str(p): n for p, n in lengths.items() if n > 300}


def test_tests_mirror_the_package() -> None:
    """Each module has a file of tests of its name."""
    lacking = [
        path.relative_to(ROOT).as_posix()
        for path in ROOT.rglob("*.py")
        if path.name != "__init__.py"
        and not Path(
            TESTS, path.relative_to(ROOT).parent, f"test_{path.stem.strip('_')}.py"
        ).exists()
    ]
    assert not lacking
