"""Numbers in the README are those of the committed files."""

from __future__ import annotations

import csv
import importlib
import json
import re
import subprocess
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest
import torch
import torchvision
from methods import SimSiam

from lightly_dira import DiRA, DiRAViews

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
RESULTS = ROOT / "examples/results"
# All texts beside results, the summary first.
TEXT = "".join(
    path.read_text()
    for path in [RESULTS / "README.md", *sorted(RESULTS.glob("[a-z]*.md"))]
)


def pilot(name: str) -> pd.DataFrame:
    """Rows of a pilot, with the columns that it has."""
    rows = pd.read_csv(RESULTS / "pilots.csv", low_memory=False)
    return rows[rows["pilot"] == name].dropna(axis=1, how="all").drop(columns="pilot")


def settings_of(rows: pd.DataFrame) -> list[str]:
    """Columns that tell runs apart."""
    return list(rows.columns[: list(rows.columns).index("task")])


@pytest.fixture
def compare_report(monkeypatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "examples/compare")
    return importlib.import_module("report")


def rows_of(head: str) -> list[tuple[str, str]]:
    table = README.split(f"| | {head} |\n|---|---|\n")[1].split("\n\n")[0]
    return [
        re.fullmatch(r"\| (.+) \| ([\d.]+) \|", row).groups()
        for row in table.splitlines()
    ]


def test_quickstart_is_as_it_was_run() -> None:
    with (ROOT / "examples/quickstart.csv").open(newline="") as file:
        assert rows_of("value") == [tuple(row) for row in csv.reader(file)][1:]


def test_ratios_are_those_measured() -> None:
    """Every row of a table of numbers is one of ratios.csv."""
    with (ROOT / "tests/benchmarks/ratios.csv").open(newline="") as file:
        measured = {row["what"]: float(row["ratio"]) for row in csv.DictReader(file)}
    for what, ratio in rows_of("ratio"):
        assert ratio == f"{measured[what]:.2f}", what
    adversary = measured["multiply-adds, DiRA-MoCo, stage dira / dir"]
    text = " ".join(README.split())
    assert f"a step has {adversary:.2f} times the arithmetic" in text


@pytest.mark.parametrize(
    "folder",
    sorted(path.parent for path in ROOT.glob("examples/results/*/summary.csv")),
)
def test_results_are_those_of_the_rows(folder: Path, compare_report) -> None:
    """Summaries and tests follow from results.csv."""
    rows = pd.read_csv(folder / "results.csv")
    for name, table in compare_report.make_tables(rows).items():
        written = (folder / f"{name}.csv").read_text()
        assert compare_report.as_csv(table) == written


@pytest.mark.parametrize("folder", ["mae", "masked", "genesis", "transvw"])
def test_hosts_are_those_of_the_rows(folder: str, compare_report) -> None:
    rows = pilot(folder)
    table = compare_report.as_markdown(compare_report.make_tables(rows)["summary"])
    assert table in TEXT


def test_volumes_are_those_of_the_rows(compare_report) -> None:
    folder = RESULTS / "hippocampus"
    tables = compare_report.make_tables(pd.read_csv(folder / "results.csv"))
    assert compare_report.as_markdown(tables["summary"]) in TEXT
    assert compare_report.differences_as_markdown(tables["outcome_tests"]) in TEXT
    errors = pd.read_csv(folder / "restored.csv")["error"]
    distorted, mean, restored = (f"{error:.3f}" for error in errors)
    assert f"an error of {restored}, the\n  mean crop {mean}" in TEXT
    assert f"the distorted ones {distorted}" in TEXT
    assert restored < mean < distorted


@pytest.mark.parametrize(
    "folder", ["chest", "chest64", "chest64_secondary", "hippocampus_unet", "nodules"]
)
def test_studies_are_those_of_the_rows(folder: str, compare_report) -> None:
    rows = pd.read_csv(ROOT / "examples/results" / folder / "results.csv")
    tables = compare_report.make_tables(rows)
    assert compare_report.outcomes_as_markdown(tables["outcomes"]) in TEXT
    assert compare_report.differences_as_markdown(tables["outcome_tests"]) in TEXT


def test_pilots_at_64_pixels_are_those_of_the_rows() -> None:
    rows = pilot("64")
    runs = [name for name in settings_of(rows) if name != "seed"]
    means = rows.groupby([*runs, "seed", "task", "protocol"])["value"].mean()
    means = means.groupby([*runs, "seed", "protocol"]).mean().unstack()
    known = {
        tuple(f"{x:.3f}" for x in [*both["linear"], *both["dense"]])
        for _, both in means.groupby(level=runs)
    }
    table = TEXT.split("| encoder | linear, AUC (two seeds)")[1].split("\n\n")[0]
    written = [tuple(re.findall(r"0\.\d{3}", line)) for line in table.splitlines()[2:]]
    assert len(written) == 12
    assert set(written) <= known


def test_imagenet_is_that_of_the_rows(compare_report) -> None:
    outcomes = compare_report.make_tables(pilot("imagenet"))["outcomes"]
    assert compare_report.outcomes_as_markdown(outcomes) in TEXT


def test_parts_of_genesis_are_those_of_the_rows() -> None:
    rows = pilot("genesis parts")
    parts = ["contrastive_weight", "adversarial_weight"]
    rows = rows[rows["metric"] == "dice"]
    means = rows.groupby([*parts, "protocol"])["value"].mean().unstack()
    for name, key in (
        ("bare", (0, 0)),
        ("contrastive term and adversary", (0.01, 0.3)),
        ("contrastive term", (0.01, 0)),
        ("adversary", (0, 0.3)),
    ):
        dense, unet = means.loc[key, ["dense", "frozen U-Net"]]
        assert f"| {name} | {dense:.3f} | {unet:.3f} |" in TEXT


def test_gains_in_the_readme_are_those_of_the_rows() -> None:
    text = " ".join(README.split())
    for folder, method, protocol, said in (
        ("chest64", "MoCo", "dense", "dense Dice by {} (MoCo)"),
        ("chest64", "MeanBarlowTwins", "dense", "{} (Barlow Twins, mean)"),
        ("chest64", "SimSiam", "dense", "{} (SimSiam, not significant)"),
        ("chest64", "SimSiam", "linear", "AUC by {} with SimSiam only"),
        ("hippocampus_unet", "SimSiam", "dense", "dense Dice by {} and"),
        ("hippocampus_unet", "SimSiam", "frozen U-Net", "a frozen U-Net by {}."),
    ):
        tests = pd.read_csv(ROOT / f"examples/results/{folder}/outcome_tests.csv")
        rows = tests[(tests.method == method) & (tests.protocol == protocol)]
        row = rows[(rows["first"] == "dira") & (rows["second"] == "di")].iloc[0]
        assert said.format(f"{row.difference:+.3f}") in text
        assert (row.p_holm < 0.05) == ("not significant" not in said)


def test_readme_is_short_and_its_links_lead_somewhere() -> None:
    assert len(README.splitlines()) <= 190
    texts = [ROOT / "README.md", ROOT / "examples/README.md", *RESULTS.glob("*.md")]
    for path in texts:
        for link, anchor in re.findall(
            r"\]\(([^)#:]*)(?:#([^):]*))?\)", path.read_text()
        ):
            to = path.parent / link if link else path
            assert to.exists(), (path, link)
            if anchor:
                heads = re.findall(r"^#+ (.+)$", to.read_text(), re.MULTILINE)
                known = [re.sub(r"[^\w -]", "", h).lower() for h in heads]
                assert anchor in [h.replace(" ", "-") for h in known], (path, anchor)


@pytest.mark.parametrize("name", ["first", "published", "final", "decoders"])
def test_pilots_are_those_of_the_rows(name: str) -> None:
    """Means over parts of the labels and draws, in the order of the rows."""
    rows = pilot(name)
    runs = settings_of(rows)
    rows[runs] = rows[runs].astype(object).fillna("")
    means = rows.groupby([*runs, "task"], sort=False)["value"].mean().unstack()
    settings = rows[runs].drop_duplicates()
    means = means.reindex(pd.MultiIndex.from_frame(settings))
    table = TEXT.split(f"(pilots.csv), `{name}`")[-1]
    table = table.split("\n| method |")[1].split("\n\n")[0]
    head, _, *lines = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in f"| method |{table}".splitlines()
    ]
    numbers = means[head[len(runs) - 1 :]].to_numpy()
    for line, run, values in zip(
        lines, settings.itertuples(index=False), numbers, strict=True
    ):
        method, stage, *cells = run
        trained = "not trained" if stage == "random" else f"{method} {stage}"
        cells = [f"{x:g}" if isinstance(x, float) else str(x) for x in cells]
        assert line == [trained, *cells, *(f"{value:.3f}" for value in values)]


def test_results_can_be_read() -> None:
    """A short summary, and few pictures, each of which is linked."""
    assert len((RESULTS / "README.md").read_text().splitlines()) <= 200
    listed = subprocess.run(
        ["git", "ls-files", "examples/results"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    pictures = [p for p in listed.stdout.split() if p.endswith(".png")]
    assert len(pictures) <= 15
    shown = TEXT + README
    assert all(p.removeprefix("examples/results/") in shown for p in pictures)
    several = [path.parent for path in RESULTS.glob("*/settings.json")]
    for folder in several:
        assert len(json.loads((folder / "settings.json").read_text())["seeds"]) > 1


def test_the_lean_lines_run() -> None:
    lines = README.split("by a light head, without the adversary:\n\n```python\n")[1]
    names = {"model": SimSiam(torchvision.models.resnet18(), 1000), "DiRA": DiRA}
    names["optimizer"] = torch.optim.SGD(names["model"].parameters(), lr=0.1)
    exec(lines.split("```")[0], names)
    dira = names["dira"]
    assert dira.discriminator is None
    assert dira.restored_share == 0.25
    views = DiRAViews(torch.rand(2, 4, 3, 64, 64), torch.rand(4, 1, 64, 64))
    dira(names["model"].loss(*views), views).backward()
    assert max(dira.head.settings["decoder_channels"]) == 8
