"""Notebooks are those of their scripts, and run from top to bottom."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import jupytext
import nbformat
import pandas as pd
import pytest
from nbclient import NotebookClient

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPTS = sorted(EXAMPLES.glob("notebooks/*.py"))


def read(script: Path) -> tuple[nbformat.NotebookNode, nbformat.NotebookNode]:
    committed = nbformat.read(script.with_suffix(".ipynb"), as_version=4)
    return jupytext.read(script), committed


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_committed_is_of_the_script(script: Path) -> None:
    """Else: jupytext --to ipynb --execute examples/notebooks/*.py"""
    ours, committed = read(script)
    assert [(c.cell_type, c.source) for c in ours.cells] == [
        (c.cell_type, c.source) for c in committed.cells
    ]
    code = [cell for cell in committed.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    kinds = {output.output_type for cell in code for output in cell.outputs}
    assert "error" not in kinds
    assert any("image/png" in o.get("data", {}) for c in code for o in c.outputs)
    assert script.with_suffix(".ipynb").stat().st_size < 2_000_000


@pytest.mark.parametrize("table", ["03_localisation", "04_linear_probe"])
def test_tables_are_those_of_the_files(table: str) -> None:
    """Which notebooks write when they are executed; their plots show the others."""
    (script,) = (path for path in SCRIPTS if path.stem[:2] == table[:2])
    _, committed = read(script)
    shown = [
        re.findall(r"<td[^>]*>(.+?)</td>", output["data"]["text/html"])
        for cell in committed.cells
        if f"{table}.csv" in cell.source
        for output in cell.outputs
    ]
    kept = pd.read_csv(EXAMPLES / f"results/notebooks/{table}.csv")
    rows = kept.map(lambda x: x if isinstance(x, str) else f"{x:.3f}")
    assert shown == [[*rows.to_numpy().flat]]


@pytest.mark.parametrize(
    "script",
    [
        pytest.param(path, marks=[pytest.mark.rare] * (path.stem[:2] != "02"))
        for path in SCRIPTS
    ],
    ids=lambda path: path.stem,
)
def test_runs(script: Path, tmp_path: Path, monkeypatch) -> None:
    """On a copy, since the second writes beside itself; one thread for each process."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    kept = shutil.ignore_patterns("runs", "__pycache__")
    examples = shutil.copytree(EXAMPLES, tmp_path / "examples", ignore=kept)
    notebook, committed = read(script)
    folder = examples / "notebooks"
    client = NotebookClient(
        notebook,
        timeout=1200,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute()
    for cell, before in zip(notebook.cells, committed.cells, strict=True):
        if cell.cell_type == "code":
            kinds = [
                sorted({kind for o in c.outputs for kind in o.get("data", {})})
                for c in (cell, before)
            ]
            assert kinds[0] == kinds[1], cell.source
