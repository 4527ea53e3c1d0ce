"""The comparison runs from files to figures, and takes up where it was killed."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
import timm
import torch
import torchvision
from PIL import Image
from safetensors.torch import load_file
from scipy import stats

from lightly_dira import DiRAViews
from lightly_dira.evaluation.protocol import Task
from lightly_dira.evaluation.read_volumes import read_mni152

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parents[2] / "examples"
SMALL = ["--methods", "SimSiam", "--stages", "di", "dira", "--seeds", "0"]
SMALL += ["--epochs", "3", "--size", "32", "--batch-size", "16"]
SMALL += ["--fractions", "0.5", "1", "--finetuning-steps", "10", "--threads", "1"]
SMALL += ["--precision", "32", "--intensity", "0.5"]  # bfloat16 is slow on some CPUs


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """The three files that the preset "cpu" knows, with images of noise."""
    folder, random = tmp_path_factory.mktemp("data"), np.random.default_rng(0)

    def images(count: int, side: int) -> np.ndarray:
        return random.integers(0, 256, (count, side, side), dtype=np.uint8)

    medmnist = {}
    for split, count in (("train", 24), ("val", 8), ("test", 8)):
        medmnist[f"{split}_images"] = images(count, 28)
        medmnist[f"{split}_labels"] = np.arange(count)[:, None] % 2
    np.savez(folder / "pneumoniamnist_full.npz", **medmnist)

    splits = np.repeat(["train", "val", "test"], [12, 6, 6])
    masks = np.zeros((24, 128, 128), np.uint8)
    masks[:, :40] = 1
    np.savez(
        folder / "lung_seg_128.npz",
        images=images(24, 128),
        masks=masks,
        tb_label=np.arange(24) % 2,
        source=np.array(["shenzhen", "montgomery"])[np.arange(24) // 2 % 2],
        split=splits,
    )
    np.savez(
        folder / "nih_cxr_mini_128.npz",
        images=images(24, 128),
        label=np.arange(24) % 2,
        patient_id=np.arange(24).astype(str),
        split=splits,
        bbox_image_index=[1, 21],
        bbox_xywh=[[10, 10, 40, 40], [60, 60, 30, 30]],
        bbox_label=["Pneumonia", "Pneumonia"],
    )
    return folder


def command(*arguments: object) -> list[str]:
    return [sys.executable, str(EXAMPLES / "compare"), *SMALL, *map(str, arguments)]


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    options = dict(capture_output=True, text=True, timeout=500)
    return subprocess.run(command(*arguments), **options)


def rows_of(folder: Path) -> pd.DataFrame:
    """Reads the table, in which no row may stand twice, and all that lies beside it."""
    for path in folder.glob("*.json"):
        json.loads(path.read_text())
    path = folder / "results.csv"
    if not path.exists():
        return pd.DataFrame()
    table = pd.read_csv(path)
    assert not table.drop(columns="value").duplicated().any()
    return table


def test_joining(tmp_path, monkeypatch) -> None:
    """Two seeds that ran apart are one comparison; other settings are an error."""
    monkeypatch.syspath_prepend(EXAMPLES / "compare")
    from join import join_parts
    from results import as_json
    from settings import Settings

    whole = EXAMPLES / "results/hippocampus_unet"
    rows = pd.read_csv(whole / "results.csv", dtype=str)
    settings = json.loads((whole / "settings.json").read_text())
    for seed in settings["seeds"]:
        part = tmp_path / f"part{seed}"
        part.mkdir()
        rows[rows["seed"] == str(seed)].to_csv(part / "results.csv", index=False)
        own = settings | {"seeds": [seed]}
        (part / "settings.json").write_text(json.dumps(own))
        shutil.copy(whole / "environment.txt", part)
    parts = sorted(tmp_path.glob("part*"))
    join_parts(tmp_path / "out", parts[:2])
    join_parts(tmp_path / "out", [tmp_path / "out", *parts])
    for name in ("results.csv", "outcomes.csv", "environment.txt"):
        assert (tmp_path / "out" / name).read_text() == (whole / name).read_text()
    joined = json.loads((tmp_path / "out/settings.json").read_text())
    # Settings that did not exist yet have their defaults.
    assert joined == as_json(Settings()) | settings
    other = json.loads((parts[1] / "settings.json").read_text()) | {"lr": 5}
    (parts[1] / "settings.json").write_text(json.dumps(other))
    with pytest.raises(SystemExit, match="part1 holds results of another lr"):
        join_parts(tmp_path / "other", parts)
    with pytest.raises(SystemExit, match="no folder of results"):
        join_parts(tmp_path / "other", [tmp_path / "nowhere"])


def test_two_in_one_folder(data, tmp_path) -> None:
    """Found: each rewrote its own table, and rows of one were lost."""
    short = ("--data", data, "--out", tmp_path, "--epochs", 1, "--stages", "di")
    short += ("--protocols", "linear", "--precision", "bf16-mixed")
    methods = ("SimSiam", "BarlowTwins")
    both = [
        subprocess.Popen(command(*short, "--methods", method), stdout=subprocess.PIPE)
        for method in methods
    ]
    outputs = [process.communicate(timeout=500)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sum(b"waiting for another comparison" in output for output in outputs) == 1
    assert set(methods) <= set(rows_of(tmp_path)["method"])
    assert set(methods) == set(
        json.loads((tmp_path / "settings.json").read_text())["methods"]
    )


@pytest.fixture
def hippocampus(tmp_path) -> Path:
    """Noise in the layout of the Medical Segmentation Decathlon's fourth task."""
    random = np.random.default_rng(0)
    for name in ("imagesTr", "labelsTr"):
        (tmp_path / "task" / name).mkdir(parents=True)
    for case in range(1, 41):
        sides = random.integers(20, 24, 3)
        volume = random.gamma(2, 100 * case, sides).astype(np.float32)
        classes = random.integers(0, 3, sides, dtype=np.uint8)
        for name, values in (("imagesTr", volume), ("labelsTr", classes)):
            path = tmp_path / "task" / name / f"hippocampus_{case:03}.nii.gz"
            nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), path)
    return tmp_path / "task"


@pytest.mark.rare
def test_hosts_of_volumes(hippocampus, tmp_path) -> None:
    random, words = np.random.default_rng(0), tmp_path / "words"
    words.mkdir()
    for number in range(3):
        cubes = random.random((6, 12, 16, 12)).astype(np.float16)
        np.savez(words / f"word-{number:03}.npz", cubes=cubes)
    small = ("--preset", "volumes", "--cube", 12, 16, 12, "--width", 0.125)
    small += ("--encoder", "unet", "--conditional", "--balanced", "--epochs", 2)
    small += ("--methods", "Genesis", "TransVW", "SimSiam", "--words", words)
    small += ("--data", hippocampus, "--out", tmp_path / "out", "--protocols", "dense")
    other = run(*small, "--cube", 16, 16, 16)
    expected = "holds cubes of (12, 16, 12) voxels, but --cube is (16, 16, 16)"
    assert expected in other.stderr
    done = run(*small, "--precision", "32", "--batch-size", 8)
    assert done.returncode == 0, done.stderr
    rows = rows_of(tmp_path / "out")
    assert {"Genesis", "TransVW", "SimSiam"} < set(rows["method"])
    for host in ("Genesis", "TransVW"):
        di, dira = (
            load_file(tmp_path / f"out/runs/{host}-{stage}-0/model.safetensors")
            for stage in ("di", "dira")
        )
        assert di.keys() == dira.keys()
        name = "backbone.0.conv_0.conv.weight"
        assert not torch.equal(di[name], dira[name])


@pytest.mark.rare
def test_nodules(tmp_path) -> None:
    random = np.random.default_rng(0)
    file = tmp_path / "nodules.npz"
    np.savez(
        file,
        images=random.integers(0, 256, (36, 16, 18, 18), dtype=np.uint8),
        masks=random.integers(0, 2, (36, 16, 18, 18), dtype=np.uint8),
        diagnosis=np.arange(36) % 2,
        patient=np.arange(36),
        split=np.repeat([0, 1, 2], [20, 8, 8]),
    )
    options = ("--preset", "volumes", "--data", file, "--out", tmp_path / "out")
    options += ("--cube", 16, 16, 16, "--zoom", 0.9, 1.0, "--width", 0.125)
    options += ("--stages", "dira", "--protocols", "linear", "dense", "--epochs", 1)
    done = run(*options, "--precision", "32", "--batch-size", 8)
    assert done.returncode == 0, done.stderr
    rows = rows_of(tmp_path / "out")
    assert set(rows["task"]) == {"nodules"}
    assert {"auc", "dice"} <= set(rows["metric"])
    np.savez(file, other=np.zeros(3))
    done = run(*options)
    assert "expected CT nodules, and read_npz: expected arrays" in done.stderr


def test_a_critic_of_masked_hosts_sees_masks(monkeypatch) -> None:
    """Found: the clean image was shown as what the restored one was made from."""
    monkeypatch.syspath_prepend(EXAMPLES / "compare")
    from encoders import make_encoder
    from restorative import HOSTS
    from settings import Settings

    settings = Settings(encoder="vit", size=32)
    images = [torch.rand(4, 3, 32, 32) for _ in "12"]
    views = DiRAViews(images, torch.rand(4, 1, 32, 32))
    for name in ("MAE", "SimMIM"):
        host = HOSTS[name](make_encoder(settings, 0).cpu(), 192)
        _, restored, target, view = host(views, torch.zeros(4), bare=False)
        assert torch.equal(target, views[0])
        masked = (view != target).any(dim=1)
        assert masked.float().mean() == pytest.approx(0.75, abs=0.02)
        assert not view.movedim(1, 3)[masked].any()
        assert torch.equal((restored == target).all(dim=1), ~masked)


def test_a_start(data, tmp_path) -> None:
    """Weights of a file of torchvision's: evaluated, and pre-trained from."""
    torch.manual_seed(5)
    resnet = torchvision.models.resnet18()
    torch.save(resnet.state_dict(), tmp_path / "weights.pth")
    options = ("--data", data, "--encoder", "resnet18", "--stages", "di", "--epochs", 1)
    options += ("--protocols", "linear", "--start", tmp_path / "weights.pth")
    done = run(*options, "--out", tmp_path / "out", "--lr", 0.0)
    assert done.returncode == 0, done.stderr
    rows = rows_of(tmp_path / "out")
    assert set(rows["stage"]) == {"thumbnail", "histogram", "random", "start", "di"}
    kept = load_file(tmp_path / "out/runs/SimSiam-di-0/model.safetensors")
    assert torch.equal(kept["backbone.1.0.weight"], resnet.conv1.weight)
    written = (tmp_path / "out/settings.json").read_text()
    assert json.loads(written)["start"] == "weights.pth"
    assert str(tmp_path) not in written
    # Other weights of the same name are other settings.
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "weights.pth")
    done = run(*options, "--out", tmp_path / "out", "--lr", 0.0)
    assert "holds results of another data" in done.stderr


def test_encoders_that_start(monkeypatch) -> None:
    """Are torchvision's, with its normalisation; ImageNet's weights are its own."""
    monkeypatch.syspath_prepend(EXAMPLES / "compare")
    from encoders import make_encoder, make_started_encoder
    from settings import Settings

    torch.manual_seed(5)
    resnet = torchvision.models.resnet18()
    asked = []

    def get_state_dict(weights, **_):
        asked.append(weights)
        return resnet.state_dict()

    enum = torchvision.models.ResNet18_Weights
    monkeypatch.setattr(enum, "get_state_dict", get_state_dict)
    settings = Settings(start="imagenet")
    encoder = make_started_encoder(settings, 0).cpu().eval()
    assert asked == [enum.DEFAULT]
    resnet.fc = torch.nn.Identity()
    images = torch.rand(2, 3, 64, 64)
    normalised = (images - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / (
        torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    )
    with torch.no_grad():
        expected = resnet.eval()(normalised)
        found = encoder(images).flatten(1)
        other = make_encoder(settings, 0).cpu().eval()(images).flatten(1)
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(other, expected)


def test_encoders_of_timm_that_start(monkeypatch, tmp_path) -> None:
    """They have the weights of a file, and the normalisation that timm names."""
    monkeypatch.syspath_prepend(EXAMPLES / "compare")
    from encoders import make_started_encoder
    from settings import Settings

    network = timm.create_model("test_efficientnet").eval()
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    settings = Settings(encoder="test_efficientnet", start=f"{tmp_path}/weights.pth")
    encoder = make_started_encoder(settings, 0).cpu().eval()
    images = torch.rand(2, 3, 64, 64)
    mean, std = (
        torch.tensor(network.pretrained_cfg[name])[:, None, None]
        for name in ("mean", "std")
    )
    network.reset_classifier(0)
    with torch.no_grad():
        torch.testing.assert_close(encoder(images), network((images - mean) / std))


def test_volumes(hippocampus, tmp_path) -> None:
    small = ("--preset", "volumes", "--cube", 12, 16, 12, "--width", 0.125)
    small += ("--stages", "dira", "--data", hippocampus, "--out", tmp_path / "out")
    done = run(*small, "--precision", "32", "--batch-size", 8)
    assert done.returncode == 0, done.stderr
    rows = rows_of(tmp_path / "out")
    assert set(rows["protocol"]) == {"dense", "frozen U-Net", "U-Net"}
    assert set(rows["stage"]) == {"position", "random", "dira"}
    assert {"dice", "surface distance"} <= set(rows["metric"])
    for name in ("restored", "features"):
        assert (tmp_path / f"out/{name}.png").stat().st_size > 10_000
    errors = pd.read_csv(tmp_path / "out/restored.csv").set_index("what")["error"]
    assert set(errors.index) == {
        "distorted view",
        "mean image",
        "restored by SimSiam-dira-0",
    }
    assert errors.between(0, 1, inclusive="neither").all()


def test_hosts_that_restore(data, tmp_path) -> None:
    """Bare and as variants, side by side; one trained alone is the same."""
    options = ("--data", data, "--out", tmp_path, "--encoder", "vit", "--balanced")
    options += ("--protocols", "linear", "dense", "--methods", "MAE", "SimMIM")
    done = run(*options, "--epochs", 2, "--adversarial-weight", 1)
    assert done.returncode == 0, done.stderr
    rows = rows_of(tmp_path)
    assert {"MAE", "SimMIM"} < set(rows["method"])
    assert json.loads((tmp_path / "settings.json").read_text())["balanced"] is True
    weights = [
        load_file(tmp_path / f"runs/MAE-{stage}-0/model.safetensors")
        for stage in ("di", "dira")
    ]
    assert weights[0].keys() == weights[1].keys()
    assert not any(name.startswith("head.") for name in weights[0])
    name = "backbone.blocks.0.attn.qkv.weight"
    assert not torch.equal(weights[0][name], weights[1][name])
    alone = ("--methods", "MAE", "--stages", "dira", "--out", tmp_path / "alone")
    done = run(*options, "--epochs", 2, "--adversarial-weight", 1, *alone)
    assert done.returncode == 0, done.stderr
    again = load_file(tmp_path / "alone/runs/MAE-dira-0/model.safetensors")
    assert all(torch.equal(again[name], weights[1][name]) for name in again)


def test_pairs_of_scans_stay_together(hippocampus, monkeypatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLES / "compare")
    from tasks import load_hippocampus

    data = load_hippocampus(hippocampus)
    assert len(set(data.patients)) == len(data) / 2
    assert data.patients[0] == data.patients[1] == "1", "cases 1 and 2"
    parts = [set(data.split(name).patients) for name in ("train", "val", "test")]
    assert sum(map(len, parts)) == len(set.union(*parts))
    assert {data.pixels(i).max() for i in range(len(data))} == {255}


@pytest.mark.parametrize("name", ["results.csv", "settings.json"])
def test_files_of_nothing(name: str, data, tmp_path) -> None:
    (tmp_path / name).touch()
    done = run("--data", data, "--out", tmp_path)
    assert done.returncode == 1
    assert f"{name} is damaged" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.rare
def test_killed_at_any_moment(data, tmp_path) -> None:
    """By SIGKILL, twenty times: no row is lost or stands twice, every file parses."""
    random, folder = np.random.default_rng(0), tmp_path / "killed"
    known = 0
    for _ in range(20):
        process = subprocess.Popen(command("--data", data, "--out", folder))
        time.sleep(random.uniform(2, 15))
        process.kill()
        process.wait()
        rows = len(rows_of(folder))
        assert rows >= known
        known = rows
    assert run("--data", data, "--out", folder).returncode == 0
    assert run("--data", data, "--out", tmp_path / "whole").returncode == 0
    found, whole = rows_of(folder), rows_of(tmp_path / "whole")
    keys = [column for column in whole if column != "value"]
    pd.testing.assert_frame_equal(
        found.sort_values(keys, ignore_index=True),
        whole.sort_values(keys, ignore_index=True),
    )


@pytest.mark.rare
def test_killed_and_started_again_gives_the_same_rows(data, tmp_path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    done = run("--data", data, "--out", whole)
    assert done.returncode == 0, done.stderr
    rows = pd.read_csv(whole / "results.csv")
    runs = rows[["method", "stage"]].drop_duplicates().itertuples(index=False)
    assert set(map(tuple, runs)) == {
        ("baseline", "thumbnail"),
        ("baseline", "histogram"),
        ("baseline", "position"),
        ("random", "random"),
        ("SimSiam", "di"),
        ("SimSiam", "dira"),
    }
    assert {"auc", "dice", "pointing"} <= set(rows["metric"])
    for name in ("bars", "fractions", "restored", "activations"):
        assert (whole / f"{name}.png").stat().st_size > 10_000

    # Killed when the second run has kept an epoch, and is in its next.
    part = ("--data", data, "--out", killed, "--protocols", "linear", "frozen U-Net")
    process = subprocess.Popen(command(*part), stderr=subprocess.DEVNULL)
    kept = killed / "runs" / "SimSiam-dira-0.pt"
    while not kept.exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = pd.read_csv(killed / "results.csv")
    assert "dira" not in set(before["stage"])
    done = run(*part)
    assert done.returncode == 0, done.stderr
    for name in ("results", "summary"):
        expected = pd.read_csv(whole / f"{name}.csv")
        expected = expected[expected["protocol"].isin(part[-2:])]
        found = pd.read_csv(killed / f"{name}.csv")
        pd.testing.assert_frame_equal(found, expected.reset_index(drop=True))
    # Once more: all is there, and nothing is done.
    changed = (killed / "results.csv").stat().st_mtime_ns
    assert run(*part).returncode == 0
    assert (killed / "results.csv").stat().st_mtime_ns == changed

    # A new decoder is for the U-Nets of encoders that have one.
    shutil.copytree(killed / "runs", tmp_path / "new" / "runs")
    done = run(*part, "--out", tmp_path / "new", "--decoder", "new")
    assert done.returncode == 0, done.stderr
    new = pd.read_csv(tmp_path / "new" / "results.csv")
    rows = pd.read_csv(killed / "results.csv")
    decoded = (rows["stage"] == "dira") & (rows["protocol"] == "frozen U-Net")
    assert new[~decoded].equals(rows[~decoded])
    assert (new["value"] != rows["value"])[decoded].any()

    other = run(*part, "--lr", 0.5)
    assert other.returncode == 1
    assert "holds results of another lr: {'lr': 0.001}. Choose" in other.stderr
    other = run("--out", killed)
    assert other.returncode == 1
    assert "holds results of another data: {'data': {'images': 47," in other.stderr


def test_what_a_run_lacks(tmp_path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLES / "compare")
    from results import Results

    results = Results(tmp_path / "results.csv")
    tasks = [Task("brain", read_mni152(), 32, ("linear", "dense"))]
    run = ("SimSiam", "dira", 1)

    def lacking(*run: object) -> list[list[str]]:
        return [task.protocols for task in results.lacking(run, tasks)]

    assert lacking(*run) == [["linear", "dense"]]
    row = {"task": "brain", "protocol": "linear", "fraction": 1.0, "seed": 1}
    results.add("SimSiam", "dira", 1, [row])
    assert lacking(*run) == [["dense"]]
    assert lacking("SimSiam", "dira", 0) == [["linear", "dense"]]
    assert lacking("baseline", "thumbnail", 1) == [["linear"]]
    assert lacking("baseline", "position", 1) == [["dense"]]
    results = Results(tmp_path / "results.csv")
    results.add("SimSiam", "dira", 1, [row | {"protocol": "dense"}])
    assert lacking(*run) == []


def test_summary_and_tests_are_of_the_rows(tmp_path) -> None:
    random = np.random.default_rng(0)
    rows = pd.DataFrame(
        [
            {
                "method": method,
                "stage": stage,
                "task": "lungs",
                "protocol": "dense",
                "fraction": 0.05,
                "images": 5,
                "split": "test",
                "seed": seed,
                "metric": "dice",
                "value": random.random(),
            }
            for method, stage in [
                ("random", "random"),
                *((m, s) for m in ("MoCo", "SimSiam") for s in ("di", "dira")),
            ]
            for seed in range(3)
        ]
    )
    rows.to_csv(tmp_path / "results.csv", index=False)
    script = str(EXAMPLES / "compare/report.py")
    done = subprocess.run(
        [sys.executable, script, str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr

    def values(method: str, stage: str) -> np.ndarray:
        return rows[(rows.method == method) & (rows.stage == stage)].value.to_numpy()

    tests = pd.read_csv(tmp_path / "tests.csv").set_index(["method", "first", "second"])
    for method in ("MoCo", "SimSiam"):
        of_dira = values(method, "dira")
        for second, other in (("di", values(method, "di")), ("random", None)):
            other = values("random", "random") if other is None else other
            expected = stats.ttest_rel(of_dira, other).pvalue
            found = tests.loc[(method, "dira", second), "p"]
            assert found == pytest.approx(expected, abs=1e-4)
    assert (tmp_path / "gains.png").stat().st_size > 5_000
    # Without the bare method there are no gains, but tables.
    rows[rows["stage"] != "di"].to_csv(tmp_path / "results.csv", index=False)
    few = [sys.executable, script, str(tmp_path)]
    subprocess.run(few, capture_output=True, check=True)
    mean = values("MoCo", "dira").mean()
    assert f"| {mean:.3f} ± " in done.stdout
    header = done.stdout.splitlines()[0]
    assert header.endswith(
        "| not trained | MoCo di | MoCo dira | SimSiam di | SimSiam dira |"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "Magic"], "--methods: invalid choice: 'Magic' (choose from"),
        (["--methods", "MAE"], "MAE needs --encoder vit"),
        (
            ["--methods", "TransVW", "--stages", "di", "--encoder", "unet"],
            "needs --words",
        ),
        (["--encoder", "unet"], "encoders of images are resnet18, resnet34,"),
        (["--encoder", "no_encoder"], "or timm's; got no_encoder"),
        (["--preset", "volumes", "--encoder", "vit"], "encoders of volumes are"),
        (["--start", "imagenet", "--encoder", "resnet-9"], "for torchvision and timm"),
        (["--distortions", "0"], "--distortions is 1, or of images more"),
        (["--stages", "published", "--distortions", "2"], "published have 1"),
        (["--preset", "volumes", "--distortions", "2"], "of images more"),
        (["--options", "[3]"], "expected e.g."),
        (["--options", "{width"], "{width is not JSON"),
        (["--options", '{"Magic": {}}'], "are of methods; got Magic"),
    ],
)
def test_errors_of_options(
    arguments: list[str], message: str, monkeypatch, capsys
) -> None:
    monkeypatch.syspath_prepend(EXAMPLES / "compare")
    import command

    with pytest.raises(SystemExit):
        command.parse(arguments, "")
    assert message in capsys.readouterr().err


def test_options_join_those_of_the_preset(monkeypatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLES / "compare")
    import command

    given = '{"MoCo": {"queue": 9}, "SimSiam": {"width": 8}}'
    options = command.parse(["--preset", "paper", "--options", given], "").settings
    assert options.options == {
        "MoCo": {"queue": 9, "momentum": 0.999},
        "SimSiam": {"width": 8},
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "nowhere"], "no such folder, and read_medmnist: 'nowhere' is not"),
        (["--protocols", "fine-tuned"], "evaluated by --protocols linear, knn, dense"),
        (
            ["--start", "nowhere.pth", "--encoder", "resnet18"],
            "no such file of weights",
        ),
        (["--batch-size", "999"], "do not fill a batch"),
        (["--encoder", "test_vit3"], "SimSiam around test_vit3 cannot be made"),
        (["--options", '{"SimSiam": {"widht": 3}}'], "argument 'widht'"),
    ],
)
def test_errors(arguments: list[str], message: str, tmp_path) -> None:
    done = run(*arguments, "--out", tmp_path / "results")
    assert done.returncode != 0
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_controls_get_parts_of_the_views(monkeypatch) -> None:
    """All stages see the same crops; what differs is what is done to them after."""
    monkeypatch.syspath_prepend(EXAMPLES / "compare")
    from settings import STAGES, Settings, views_of
    from views import make_transforms

    from lightly_dira.views import find_views

    image = Image.fromarray(np.arange(64 * 64).reshape(64, 64).astype(np.uint8))
    transforms = make_transforms(Settings(size=32, intensity=1.0))
    assert views_of(("MoCo", "recipe", 0)) == "distorted"
    views, targets = {}, {}
    for stage in STAGES:
        torch.manual_seed(0)
        first, *others = find_views(transforms[views_of(("MoCo", stage, 0))](image))
        views[stage], targets[stage] = first[0], first.target
        if others:
            assert stage == "apart"
            apart = others[0]
    assert all(target.equal(targets["di"]) for target in targets.values())
    assert not views["di+curves"].equal(views["di"])
    assert not views["di+views"].equal(views["di+curves"])
    for stage in ("lean", "dir", "dira"):
        assert views[stage].equal(views["di+views"])
    assert views["published"].equal(views["di+distortions"])
    # The method's views are plain, and the distorted one is of the same crop.
    assert views["apart"].equal(views["di"])
    assert apart[0].equal(views["di+views"])
    assert apart.target.equal(targets["di"])


def test_distortions_follow_one_another(monkeypatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLES / "compare")
    import views
    from settings import Settings

    seen = []

    def halve(image: np.ndarray, random: np.random.Generator) -> np.ndarray:
        seen.append(image.max())
        return image // 2

    monkeypatch.setattr(views, "published_mixture", lambda: halve)
    image = Image.fromarray(np.full((64, 64), 200, np.uint8))
    views.make_transforms(Settings(jitter=0, distortions=3))["distorted"](image)
    assert seen == [200, 100, 50] * 2


def test_stages_train_what_they_say(monkeypatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLES / "compare")
    from pretraining import Training
    from settings import Settings

    settings = Settings(encoder="resnet-9", width=0.25, size=32, head_cost=0.5)
    made = {}
    for stage in ("di", "di+views", "apart", "lean", "dir", "published"):
        torch.manual_seed(0)
        views = [
            DiRAViews(torch.rand(2, 8, 3, 32, 32), torch.rand(8, 1, 32, 32))
            for _ in range(2 if stage == "apart" else 1)
        ]
        training = Training(settings, ("SimSiam", stage, 0), 4, Path("nowhere"))
        training.step(views, torch.zeros(8))
        made[stage] = training.dira
        bare = stage in ("di", "di+views")
        assert (training.dira.components.restorative == 0) == bare
    assert made["lean"].discriminator is None
    assert made["lean"].restored_share == 0.25
    weights = {n: sum(p.numel() for p in d.head.parameters()) for n, d in made.items()}
    assert weights["lean"] < weights["dir"] / 2
    assert weights["published"] == weights["apart"] == weights["dir"]
    assert made["published"].stage == "dira"
    assert made["published"].loss.restorative_weight == 10
    heavy = dataclasses.replace(settings, head_cost=0, restored_share=0.5)
    lean = Training(heavy, ("SimSiam", "lean", 0), 4, Path("nowhere")).dira
    assert lean.restored_share == 0.5
    assert sum(p.numel() for p in lean.head.parameters()) == weights["dir"]


def test_apart_restores_the_distorted_copy(monkeypatch) -> None:
    """Its loss is the bare one's of plain views and a restoration of the other view."""
    monkeypatch.syspath_prepend(EXAMPLES / "compare")
    from pretraining import Training
    from settings import Settings

    settings = Settings(encoder="resnet-9", width=0.25, size=32, restorative_weight=1)
    torch.manual_seed(0)
    plain, distorted = (
        DiRAViews(torch.rand(2, 8, 3, 32, 32), torch.rand(8, 1, 32, 32))
        for _ in range(2)
    )
    apart, bare = (
        Training(settings, ("SimSiam", stage, 0), 4, Path("nowhere"))
        for stage in ("apart", "di")
    )
    total = apart.loss_of([plain, distorted], torch.zeros(8))
    of_plain = bare.loss_of([plain], torch.zeros(8))
    maps = apart.dira.features(distorted[0])
    restored = apart.dira.head(maps, (32, 32))
    assert total.item() == pytest.approx(
        of_plain.item() + apart.dira.components.restorative.item()
    )
    expected = (restored - distorted.target).square().mean().item()
    found = apart.dira.components.restorative.item()
    assert found == pytest.approx(expected, rel=1e-3)


def test_gains_are_also_given_against_the_better_bare_method(monkeypatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLES / "compare")
    import report

    scores = {"di": 0.5, "di+views": 0.6, "dir": 0.7}
    rows = pd.DataFrame(
        [
            {
                "method": method,
                "stage": stage,
                "task": "lungs",
                "protocol": "dense",
                "fraction": 0.05,
                "seed": seed,
                "metric": "dice",
                "value": score * (-1 if method == "SimSiam" else 1) + 0.01 * seed,
            }
            for method in ("MoCo", "SimSiam")
            for stage, score in scores.items()
            for seed in range(3)
        ]
    )
    tests = report.compare_stages(rows).set_index(["method", "first", "second"])
    found = tests.loc[(slice(None), "dir", "better bare"), "difference"]
    assert found.tolist() == pytest.approx([0.1, -0.2])
    alone = rows[rows["stage"] != "di+views"]
    assert "better bare" not in set(report.compare_stages(alone)["second"])


def test_the_recipe_is_tested_against_both_bare_forms(monkeypatch) -> None:
    """With Holm's correction over all twelve tests, by hand."""
    monkeypatch.syspath_prepend(EXAMPLES / "compare")
    import report

    random = np.random.default_rng(0)
    stages = ("di", "di+views", "recipe", "dir")
    metrics = {"linear": "auc", "dense": "dice"}
    rows = pd.DataFrame(
        [
            (method, stage, seed, protocol, metrics[protocol], "lungs", 0.1, value)
            for method in ("MoCo", "MeanBarlowTwins", "SimSiam")
            for stage in stages
            for seed in range(5)
            for protocol in metrics
            for value in [random.normal(0.05 * (stage == "recipe"), 0.05)]
        ],
        columns="method stage seed protocol metric task fraction value".split(),
    )
    table = report.make_tables(rows)["recipe_tests"]
    assert len(table) == 12
    index = ["method", "stage", "protocol", "seed"]
    values = rows.set_index(index)["value"].sort_index()
    for row in table.itertuples():
        ours, bare = (
            values[row.method, stage, row.protocol] for stage in ("recipe", row.against)
        )
        assert row.difference == pytest.approx((ours - bare).mean())
        assert row.p == pytest.approx(stats.ttest_rel(ours, bare).pvalue)
    ranked = table.sort_values("p")
    steps = ranked["p"] * np.arange(12, 0, -1)
    assert ranked["p_holm"].tolist() == pytest.approx(steps.cummax().clip(upper=1))
    without = rows[rows["stage"] != "di+views"]
    assert "recipe_tests" not in report.make_tables(without)


def test_stages_are_in_order(monkeypatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLES / "compare")
    import report

    rows = pd.DataFrame(
        {
            "method": ["random", "MoCo", "MoCo", "SimSiam", "MoCo"],
            "stage": ["random", "dira", "di", "di", "dir"],
        }
    )
    ordered = report.in_order(rows)
    assert [*ordered["method"]] == ["random", "MoCo", "MoCo", "MoCo", "SimSiam"]
    assert [*ordered["stage"]] == ["random", "di", "dir", "dira", "di"]


def test_mean_of_barlow_twins_is_its_loss_by_dimensions(monkeypatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLES / "compare")
    from discriminative import METHODS

    losses = []
    for name in ("BarlowTwins", "MeanBarlowTwins"):
        torch.manual_seed(0)
        backbone = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 8))
        method = METHODS[name](backbone, 8, width=16)
        losses.append(method(torch.rand(6, 3, 2, 2), torch.rand(6, 3, 2, 2)))
    assert losses[1] == losses[0] / 16


def test_committed_results_are_of_their_commands(monkeypatch) -> None:
    """Every folder of results was made by the command that the README there names."""
    monkeypatch.syspath_prepend(EXAMPLES / "compare")
    import command
    import results
    import settings
    from baselines import BASELINES

    table = (EXAMPLES / "results/README.md").read_text()
    commands = re.findall(r"`python examples/compare (.+?)`", table)
    folders = {path.parent for path in EXAMPLES.glob("results/*/settings.json")}
    for line in commands:
        options = command.parse(shlex.split(line), "")
        folder = EXAMPLES.parent / options.out
        folders.remove(folder)
        kept = results.as_json(settings.Settings())
        kept |= json.loads((folder / "settings.json").read_text())
        asked = results.as_json(options.settings)
        for name in results.JOINING:
            asked[name] = kept[name]
        assert asked == {name: kept[name] for name in asked}
        rows = pd.read_csv(folder / "results.csv")
        assert set(rows["split"]) == {options.split}
        for column, known in (
            ("seed", kept["seeds"]),
            ("method", [*kept["methods"], "random", "start", "baseline"]),
            ("stage", [*kept["stages"], "random", "start", *BASELINES]),
            ("protocol", kept["protocols"]),
        ):
            assert set(rows[column]) <= set(known)
    assert not folders
