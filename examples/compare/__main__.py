"""Compares methods, bare and as DiRA variants, by what their encoders are worth.

    python examples/compare --preset smoke                 # 2 minutes, brain MRI
    python examples/compare --preset cpu --data FOLDER     # hours, chest X-rays
    python examples/compare --preset paper --data FOLDER   # days on a GPU
    python examples/compare --preset volumes --data FOLDER # hours, MRI volumes
    python examples/compare --data FOLDER_OR_CSV           # your own images
    python examples/compare --data pneumoniamnist          # a set of MedMNIST

Every method is pre-trained in every stage (`di`: the bare method on undistorted views,
`di+views`: the bare method on DiRA's views, `dir`: with restoration, `lean`: with a
cheap one, `dira`: with restoration and adversary) with every seed, then evaluated on
every task. Untrained encoders and trivial baselines are evaluated as well.
A finished run is never repeated. A killed run resumes after its last complete epoch and
gives the same rows. The folder of results gets:

    results.csv      a row for each result
    settings.json    the settings; a folder holds results of one setting only
    environment.txt  versions and machine
    summary.csv      mean and 95 % interval over seeds
    tests.csv        stages against each other: paired t-tests, corrected by Holm
    outcomes.csv, outcome_tests.csv   the same for means over all tasks, few labels
    *.png            the same as pictures, restored images, and what classifiers look at
    restored.csv     errors of restored validation images
    runs/            encoders and decoders, as `save_pretrained` writes them
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

import torch
from baselines import BASELINES
from command import parse
from encoders import make_encoder, make_started_encoder
from filelock import FileLock, Timeout
from pictures import draw_pictures
from pretraining import Training, options_of, path_of, pretrain
from report import report
from results import Results, keep_settings, known_of, list_runs, restrict
from settings import BARE, STAGES, Run, Settings, views_of
from tasks import load_tasks, read_words
from tqdm import tqdm
from views import make_transforms

from lightly_dira.evaluation.labelled import LabelledImages
from lightly_dira.evaluation.protocol import Row, Task, evaluate
from lightly_dira.weights.pretrained import from_pretrained


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments, __doc__)
    options.out.mkdir(parents=True, exist_ok=True)
    # Two comparisons at once would overwrite each other's rows. The operating system
    # releases the lock of a process that ends.
    lock = FileLock(options.out / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"waiting for another comparison in {options.out}", flush=True)
        lock.acquire()
    try:
        compare(options)
    finally:
        lock.release()


def compare(options: argparse.Namespace) -> None:
    settings, folder = options.settings, options.out
    torch.set_num_threads(options.threads)
    pool, every = load_tasks(options.data, settings)
    every = [dataclasses.replace(task, draws=settings.draws) for task in every]
    tasks = restrict(every, lambda task, protocol: protocol in settings.protocols)
    if not tasks:
        known = dict.fromkeys(protocol for task in every for protocol in task.protocols)
        sys.exit(f"these data are evaluated by --protocols {', '.join(known)}.")
    words = read_words(settings) if "TransVW" in settings.methods else None
    (folder / "runs").mkdir(parents=True, exist_ok=True)
    results = Results(folder / "results.csv")
    pending = {
        run: lacking
        for run in list_runs(settings)
        if (lacking := results.lacking(run, tasks))
    }
    check(settings, list(pending), pool, words)
    facts = [known_of(task.data) for task in every]
    keep_settings(folder, settings, options.split, pool, facts, changed=bool(pending))
    transforms = make_transforms(settings)
    groups: dict[tuple[int, str], list[Run]] = {}
    for run in pending:
        views = views_of(run) if run[1] in STAGES else ""
        groups.setdefault((run[2], views), []).append(run)
    epochs = sum(settings.epochs for _, stage, _ in pending if stage in STAGES)
    with tqdm(total=epochs, unit="epoch", disable=None) as progress:
        for (seed, views), runs in groups.items():
            if views:
                images = words if views == "words" else pool
                images = images.with_transform(transforms[views])
                progress.set_description(f"seed {seed}, {views} views")
                pretrain(settings, runs, images, folder / "runs", progress)
            for run in runs:
                rows = evaluate_run(settings, run, pending[run], folder, options.split)
                results.add(*run, rows)
    report(folder)
    if not pending and (folder / "restored.png").exists():
        return
    encoders = {
        path.name: (
            backbone := make_encoder(settings, 0),
            from_pretrained(path, backbone),
        )
        for path in sorted(folder.glob(f"runs/*-{settings.seeds[0]}"))
    }
    untrained = make_encoder(settings, settings.seeds[0])
    # A ViT takes one size only.
    enlarged = 2 if "resnet" in settings.encoder else 1
    views = transforms["distorted"]
    draw_pictures(folder, encoders, untrained, tasks, views, enlarged=enlarged)


def check(
    settings: Settings,
    pending: list[Run],
    pool: LabelledImages,
    words: LabelledImages | None,
) -> None:
    """Exits if a pending run would fail.

    Files may be missing, images too few, or encoders, weights and options unfit.
    """
    start = settings.start not in ("", "imagenet")
    if start and not Path(settings.start).is_file():
        sys.exit(f"--start {settings.start}: there is no such file of weights.")
    for images in (pool, words):
        if images is not None and len(images) < settings.batch_size:
            sys.exit(
                f"{len(images)} images do not fill a batch: choose a --batch-size "
                f"smaller than {settings.batch_size}."
            )
    trainings = {run[0]: run for run in pending if run[1] in STAGES}
    for method, run in trainings.items():
        try:
            Training(settings, run, 1, Path("nowhere"), **options_of(run, words))
        except (AssertionError, RuntimeError, TypeError, ValueError) as error:
            sys.exit(f"{method} around {settings.encoder} cannot be made: {error}")


def evaluate_run(
    settings: Settings, run: Run, tasks: list[Task], folder: Path, split: str
) -> list[Row]:
    """Evaluates a baseline or an encoder, untrained or as `pretrain` kept it."""
    _, stage, seed = run
    backbone, head = BASELINES.get(stage), None
    if stage == "start":
        backbone = make_started_encoder(settings, seed)
    elif backbone is None:
        backbone = make_encoder(settings, seed)
    if stage in STAGES:
        head = from_pretrained(path_of(folder / "runs", run), backbone)
    # The bare method did not train its head: the U-Net gets a new decoder.
    if stage in BARE or settings.decoder == "new":
        head = None
    return [
        row
        for task in tasks
        for row in evaluate(task, backbone, head, split=split, seed=seed)
    ]


if __name__ == "__main__":
    main()
