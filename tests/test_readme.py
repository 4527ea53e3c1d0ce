"""Numbers in the README are those of the committed files."""

from __future__ import annotations

import csv
import importlib
import json
import re
import shlex
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pandas as pd
import pytest
import torch
import torchvision
from lightly.transforms import MoCoV2Transform
from lightning_modules import SimSiam as LightningSimSiam
from made_files import make_files
from methods import MoCo

from lightly_dira import Adversary, DiRA, DiRATransform
from lightly_dira.models import fill_masked_patches
from lightly_dira.weights import to_smp_unet

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


def rows_of(head: str) -> list[tuple[str, ...]]:
    """Returns the cells of a table of the README."""
    columns = head.count("|") + 1
    line = f"| {head} |\n|{columns * '---|'}\n"
    table = README.split(line)[1].split("\n\n")[0]
    return [
        tuple(cell.strip() for cell in row.strip("|").split("|"))
        for row in table.splitlines()
    ]


def test_quickstart_is_as_it_was_run() -> None:
    with (ROOT / "examples/quickstart.csv").open(newline="") as file:
        found = {row["what"]: float(row["value"]) for row in csv.DictReader(file)}
    means = {
        name: sum(found[f"Dice of {t} matter, {name}"] for t in ("grey", "white")) / 2
        for name in ("untrained", "bare", "DiRA")
    }
    text = " ".join(README.split())
    assert (
        f"was {means['untrained']:.3f} untrained, {means['bare']:.3f} bare and "
        f"{means['DiRA']:.3f} with DiRA"
    ) in text
    for what in ("restored", "distorted view", "mean image"):
        assert f"{found[f'error, {what}']:.3f}" in text


def test_ratios_are_those_measured() -> None:
    with (ROOT / "tests/benchmarks/ratios.csv").open(newline="") as file:
        measured = {row["what"]: float(row["ratio"]) for row in csv.DictReader(file)}
    head = "step of MoCo / bare | lean | recipe | dir | dira"
    ((name, *ratios),) = rows_of(head)
    assert name == "measured"
    for what, ratio in zip(("lean", "recipe", "dir", "dira"), ratios, strict=True):
        assert ratio == f"{measured[f'step of MoCo, {what} / bare']:.2f}", what


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
    "folder",
    [
        "chest",
        "chest64",
        "chest64_secondary",
        "hippocampus_unet",
        "hippocampus_views",
        "nodules",
        "recipe_unet",
    ],
)
def test_studies_are_those_of_the_rows(folder: str, compare_report) -> None:
    rows = pd.read_csv(ROOT / "examples/results" / folder / "results.csv")
    tables = compare_report.make_tables(rows)
    assert compare_report.outcomes_as_markdown(tables["outcomes"]) in TEXT
    assert compare_report.differences_as_markdown(tables["outcome_tests"]) in TEXT


def test_the_third_study_is_that_of_the_rows(compare_report) -> None:
    """What was planned with Holm's correction over all of it, and all else."""
    rows = pd.read_csv(RESULTS / "recipe/results.csv")
    tables = compare_report.make_tables(rows)
    assert compare_report.outcomes_as_markdown(tables["outcomes"]) in TEXT
    assert compare_report.recipe_as_markdown(tables["recipe_tests"]) in TEXT
    tests = tables["outcome_tests"]
    planned = (tests["first"] == "recipe") & tests["second"].isin(["di", "di+views"])
    assert compare_report.differences_as_markdown(tests[~planned]) in TEXT
    assert sorted(rows.loc[rows["stage"] == "recipe", "seed"].unique()) == [*range(10)]


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
    tests = pd.read_csv(RESULTS / "recipe/recipe_tests.csv")
    rows = tests.set_index(["protocol", "against", "method"])
    gains = rows["difference"].map("{:+.3f}".format)
    methods = ["MoCo", "MeanBarlowTwins", "SimSiam"]
    one, two, three = gains["linear", "di"][methods]
    assert f"AUC is {one}, {two}, {three} over bare (not significant)" in text
    assert (rows["p_holm"]["linear", "di"] > 0.05).all()
    significant = rows["p_holm"]["linear", "di+views"] < 0.05
    assert [name for name in methods if significant[name]] == ["MoCo", "SimSiam"]
    (gain,) = {gains["linear", "di+views"][name] for name in ("MoCo", "SimSiam")}
    said = f"{gain} over DiRA's views with MoCo and SimSiam (significant)"
    assert said in text
    one, two, three = gains["dense", "di"][methods]
    assert f"its Dice {one}, {two} (significant), {three} over bare" in text
    assert [*(rows["p_holm"]["dense", "di"][methods] < 0.05)] == [True, True, False]
    outcomes = pd.read_csv(RESULTS / "recipe/outcomes.csv").set_index("stage")
    untrained = outcomes.loc["random"].set_index("protocol")["mean"]["dense"]
    assert f"dense Dice (untrained: {untrained:.3f})" in text
    assert f"(thumbnails: {outcomes.loc['thumbnail', 'mean']:.3f})" in text


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


def means_of_the_recipes_pilots() -> pd.DataFrame:
    """Means of AUC and Dice by settings, protocol and seed, in the order of rows."""
    rows = pilot("recipe")
    rows = rows[rows["metric"].isin(["auc", "dice"])]
    keys = ["stage", "intensity", "distortions"]
    keys += ["restored_share", "head_cost", "restorative_weight"]
    rows[keys] = rows[keys].astype(object).fillna("")
    means = rows.groupby([*keys, "protocol", "seed"], sort=False)["value"].mean()
    return means.unstack(["protocol", "seed"])


def test_the_recipes_pilots_are_those_of_the_rows() -> None:
    """Found: what was called AUC was a mean of it and of accuracies."""
    table = TEXT.split("(pilots.csv), `recipe`:\n\n")[1].split("\n\n")[0]
    lines = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in table.splitlines()[2:]
    ]
    expected = []
    for key, row in means_of_the_recipes_pilots().iterrows():
        cells = [f"{x:g}" if isinstance(x, float) else str(x) for x in key]
        for protocol in ("linear", "dense"):
            known = row[protocol].dropna()
            several = ", ".join(f"{value:.3f}" for value in known)
            cells += [several, f"{known.mean():.3f}" if len(known) else ""]
        expected.append(cells)
    assert lines == expected


def test_the_gain_of_the_readme_is_that_of_the_study(compare_report) -> None:
    """Of its recipe, on test images, beside the bare method on either views."""
    results = pd.read_csv(RESULTS / "recipe/results.csv")
    outcomes = compare_report.make_tables(results)["outcomes"]
    means = outcomes.set_index(["method", "stage", "protocol"])["mean"]
    rows = rows_of("AUC, Dice | bare | bare, DiRA's views | recipe | dir")
    names = {"Barlow Twins, mean": "MeanBarlowTwins"}
    assert [name for name, *_ in rows] == ["MoCo", *names, "SimSiam"]
    for name, *cells in rows:
        method = names.get(name, name)
        for stage, cell in zip(("di", "di+views", "recipe", "dir"), cells, strict=True):
            of = means[method, stage]
            assert cell == f"{of['linear']:.3f}, {of['dense']:.3f}", (name, stage)


def test_results_can_be_read() -> None:
    """A short summary, and few pictures, each of which is linked."""
    assert len((RESULTS / "README.md").read_text().splitlines()) <= 200
    pictures = sorted(RESULTS.glob("*/*.png"))
    assert 0 < len(pictures) <= 15
    shown = TEXT + README
    assert all(f"]({p.relative_to(RESULTS)})" in shown for p in pictures)
    several = [path.parent for path in RESULTS.glob("*/settings.json")]
    for folder in several:
        assert len(json.loads((folder / "settings.json").read_text())["seeds"]) > 1


@pytest.fixture
def hour(tmp_path: Path, monkeypatch) -> dict[str, object]:
    """What the README's lines are given: files, a method, its optimiser, a host."""
    monkeypatch.chdir(tmp_path)
    make_files(tmp_path / "files")
    model = MoCo(torchvision.models.resnet18(), 1000)
    images = torch.rand(2, 3, 64, 64)
    return {
        "torchvision": torchvision,
        "DataLoader": torch.utils.data.DataLoader,
        "MoCoV2Transform": MoCoV2Transform,
        "DiRA": DiRA,
        "DiRATransform": DiRATransform,
        "folder": tmp_path / "files/xrays",
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "MoCo": LightningSimSiam,
        "backbone": torchvision.models.resnet18(),
        "to_smp_unet": to_smp_unet,
        "Adversary": Adversary,
        "fill_masked_patches": fill_masked_patches,
        "images": images,
        "predictions": torch.rand(2, 4, 16 * 16 * 3, requires_grad=True),
        "idx_mask": torch.arange(1, 5).expand(2, 4),
    }


def test_its_lines_run(hour, monkeypatch) -> None:
    """All code blocks of the README, one after the other, as a user would."""
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) >= 5
    for block in blocks:
        if "Adversary(" in block:
            host = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 3, padding=1))
            optimizer = torch.optim.SGD(host.parameters(), lr=0.1)
            model = SimpleNamespace(backbone=host, patch_size=16)
            hour |= {"model": model, "optimizer": optimizer}
            hour["loss"] = hour["predictions"].square().mean()
        exec(block, hour)
        if "ImageFiles(" in block:
            batch = next(iter(hour["dataloader"]))
            assert batch[0].target.mean() > 0.1
        if "light_head(" in block:
            loss = hour["model"].loss(*batch[0])
            hour["dira"](loss, batch).backward()
            hour["optimizer"].step()
            self_made, recipe = hour["dira"], study_recipe(monkeypatch)
            assert described(self_made) == described(recipe)
    assert hour["loss"].requires_grad


def study_recipe(monkeypatch) -> DiRA:
    """Returns the wrapper that the study makes around the same encoder."""
    monkeypatch.syspath_prepend(ROOT / "examples/compare")
    recipe = importlib.import_module("recipe").recipe
    backbone = torchvision.models.resnet18()
    return recipe(backbone, torch.optim.SGD(backbone.parameters(), lr=0.1))


def described(dira: DiRA) -> dict[str, object]:
    return {
        "loss": vars(dira.loss) | {"_modules": {}},
        "head": dira.head.settings,
        "critic": dira.discriminator,
        "share": dira.restored_share,
        "schedule": str(dira.schedule),
        "conditional": dira.conditional,
    }


def test_its_views_are_those_of_the_study(hour, monkeypatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "examples/compare")
    settings = importlib.import_module("settings").PRESETS["cpu"]
    made = importlib.import_module("views").make_transforms(settings)["distorted"]
    (block,) = re.findall(
        r"```python\n([^`]*?light_head\(.*?)```", README, flags=re.DOTALL
    )
    exec(block, hour)
    assert repr(hour["transform"].distortion) == repr(made.distortion)


def test_the_diff_is_that_of_the_example() -> None:
    (diff,) = re.findall(r"```diff\n(.*?)```", README, flags=re.DOTALL)
    lines = [line[1:].strip() for line in diff.splitlines() if line.startswith("+")]
    example = (ROOT / "examples/pytorch/moco.py").read_text()
    assert len([line for line in lines if line]) == 4
    assert "dira = DiRA(model.backbone, optimizer)" in example
    assert "loss = dira(loss, batch)" in example


def test_commands_of_the_examples_are_known(monkeypatch) -> None:
    """Lines of examples/README.md: comparisons are parsed, scripts are there."""
    monkeypatch.syspath_prepend(ROOT / "examples/compare")
    command = importlib.import_module("command")
    text = (ROOT / "examples/README.md").read_text()
    lines = "\n".join(re.findall(r"```bash\n(.*?)```", text, re.DOTALL)).splitlines()
    parsed = 0
    for line in lines:
        words = shlex.split(line, comments=True)
        if words[:2] == ["python", "examples/compare"]:
            command.parse(words[2:], "")
            parsed += 1
        for word in words:
            if word.endswith(".py"):
                assert list(ROOT.glob(f"examples/**/{Path(word).name}")), word
    assert parsed >= 6
