"""Runs that are killed end as runs that are not, to the last bit."""

from __future__ import annotations

import contextlib
import inspect
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import killed
import pytest
import torch
from lightning_modules import (
    DiRAMoCo,
    DiRASimSiam,
    Images,
    SimSiam,
    assert_same,
    loader,
    state,
    trainer,
)
from pytorch_lightning.callbacks import ModelCheckpoint
from resuming import Dimmed, assert_resumes, fit, loaded
from torch.utils.data import DataLoader, Dataset

from lightly_dira import DiRAViews
from lightly_dira.lightning.mid_epoch import PlaceInData

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pytorch_lightning")


def start(run: str, folder: Path, method: str, **options: object) -> int:
    folder.mkdir(exist_ok=True)
    command = [sys.executable, killed.__file__, run, str(folder), method]
    for name, value in options.items():
        command += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, timeout=300, env=environment).returncode


@pytest.mark.rare
@pytest.mark.parametrize("run", ["fit", "loop"])
@pytest.mark.parametrize("method", ["moco", "simsiam"])
def test_killed(run: str, method: str, tmp_path: Path) -> None:
    """By SIGKILL, in the middle of a step in the middle of an epoch."""
    torch.set_num_threads(1)
    assert start(run, tmp_path, method, kill=9) == -signal.SIGKILL
    names = [path.name for path in killed.checkpoints(tmp_path)]
    assert names == [f"step={step}.ckpt" for step in (2, 4, 6, 8)]
    function = getattr(killed, run)
    resumed = function(tmp_path, method, resume=True)
    (tmp_path / "whole").mkdir()
    assert_same(resumed, function(tmp_path / "whole", method))


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        dict(validation=0.5),
        dict(workers=2, validation=1.0, every=3),
        dict(max_epochs=None, max_steps=18, every=4),
    ],
    ids=str,
)
def test_from_every_checkpoint(settings, tmp_path: Path) -> None:
    """At the ends of epochs, in front of validations and after them, too."""
    whole = killed.fit(tmp_path, "simsiam", **{"every": 1} | settings)
    for number, path in enumerate(killed.checkpoints(tmp_path)):
        folder = tmp_path / str(number)
        folder.mkdir()
        shutil.copy(path, folder)
        resumed = killed.fit(folder, "simsiam", resume=True, **settings)
        assert_same(resumed, whole)


def test_longer_than_first_planned(tmp_path: Path) -> None:
    """Ended by `max_steps`, in the middle of an epoch, and taken up again."""
    steps = dict(max_epochs=None, every=100)
    killed.fit(tmp_path, "simsiam", max_steps=8, **steps)
    shutil.copy(tmp_path / "last.ckpt", tmp_path / "step=8.ckpt")
    resumed = killed.fit(tmp_path, "simsiam", resume=True, max_steps=18, **steps)
    assert_same(resumed, killed.fit(tmp_path, "simsiam", max_steps=18, **steps))


@pytest.mark.rare
def test_two_processes(tmp_path: Path) -> None:
    start("fit", tmp_path, "moco", kill=9, devices=2)
    assert len(killed.checkpoints(tmp_path)) == 4
    assert start("fit", tmp_path, "moco", resume=True, devices=2) == 0
    assert start("fit", tmp_path / "whole", "moco", devices=2) == 0
    for rank in range(2):
        resumed = torch.load(tmp_path / f"end-{rank}.pt")
        assert_same(resumed, torch.load(tmp_path / "whole" / f"end-{rank}.pt"))


def test_another_number_of_processes(tmp_path: Path) -> None:
    model, fit = DiRASimSiam(), trainer(tmp_path, max_epochs=1)
    fit.fit(model, loader())
    fit.save_checkpoint(tmp_path / "last.ckpt")
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    checkpoint["dira_data"]["randomness"] *= 2
    torch.save(checkpoint, tmp_path / "two.ckpt")
    with pytest.warns(UserWarning, match="written by 2 processes .* read by 1 "):
        trainer(tmp_path, max_epochs=2).fit(
            DiRASimSiam(), loader(), ckpt_path=tmp_path / "two.ckpt"
        )


def test_loaded_weights_are_no_resumption(tmp_path: Path, monkeypatch) -> None:
    model, fit = DiRASimSiam(), trainer(tmp_path, max_epochs=1)
    fit.fit(model, loader())
    fit.save_checkpoint(tmp_path / "last.ckpt")
    resumed = []
    monkeypatch.setattr(
        PlaceInData, "_resume", lambda self, trainer, **at: resumed.append(at)
    )
    loaded = DiRASimSiam.load_from_checkpoint(
        tmp_path / "last.ckpt", weights_only=False
    )
    trainer(tmp_path, max_epochs=1).fit(loaded, loader())
    assert not resumed
    again = trainer(tmp_path, max_epochs=2)
    again.fit(loaded, loader(), ckpt_path=tmp_path / "last.ckpt")
    assert len(resumed) == 1


def test_loaders_that_resume_by_themselves(tmp_path: Path) -> None:
    class Stateful(type(loader())):
        def state_dict(self):
            return {"place": "here"}

        def load_state_dict(self, state):
            loaded.append(state)

        def __iter__(self):
            iterated.append(self)
            return super().__iter__()

    loaded, iterated = [], []
    model, fit = DiRASimSiam(), trainer(tmp_path, max_epochs=None, max_steps=2)
    data = Stateful(loader().dataset, batch_size=4)
    fit.fit(model, data)
    fit.save_checkpoint(tmp_path / "last.ckpt")
    iterated.clear()
    again = trainer(tmp_path, max_epochs=None, max_steps=4)
    again.fit(DiRASimSiam(), data, ckpt_path=tmp_path / "last.ckpt")
    assert loaded == [{"place": "here"}]
    assert len(iterated) == 1


class Drawn(Dataset):
    """Views drawn from PyTorch's generator, and a note of which were trained."""

    def __init__(self) -> None:
        self.images = Images()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int):
        views, *_ = self.images[index]
        noise = torch.rand(())
        return DiRAViews([noise * view for view in views], views.target), index


class InterruptedBatchError(Exception):
    pass


@pytest.mark.skipif(
    "save_on_exception" not in inspect.signature(ModelCheckpoint).parameters,
    reason="of later Lightning",
)
class TestInterrupted:
    """Found: the batch of the exception was skipped on resuming."""

    def run(self, folder, when: int | None, path=None, where="forward"):
        trained = []

        class Method(DiRAMoCo):
            def training_step(self, batch, *args):
                count = self.trainer.fit_loop.epoch_loop.batch_progress.total.ready
                if where == "forward" and count == when:
                    raise InterruptedBatchError
                return super().training_step(batch, *args)

            def on_after_backward(self):
                count = self.trainer.fit_loop.epoch_loop.batch_progress.total.ready
                if where == "backward" and count == when:
                    raise InterruptedBatchError

            def on_train_batch_end(self, outputs, batch, index):
                trained.append(batch[1].tolist())

            def validation_step(self, batch, index):
                torch.rand(3)
                ready = self.trainer.fit_loop.epoch_loop.batch_progress.total.ready
                if where == "validation" and ready == when:
                    raise InterruptedBatchError

        torch.manual_seed(0 if path is None else 1)
        model = Method()
        callback = ModelCheckpoint(
            folder, "{step}", save_on_exception=True, every_n_epochs=100
        )
        fit = trainer(
            folder,
            callbacks=[callback],
            enable_checkpointing=True,
            val_check_interval=3,
            num_sanity_val_steps=0,
        )
        data = DataLoader(Drawn(), batch_size=4, shuffle=True)
        held_out = DataLoader(Images(4), batch_size=4)
        with contextlib.suppress(InterruptedBatchError):
            fit.fit(model, data, held_out, ckpt_path=path)
        return trained, state(model)

    @pytest.mark.parametrize("when", [2, 5, 7, 12])
    @pytest.mark.parametrize("where", ["forward", "backward", "validation"])
    def test_no_batch_is_skipped(self, when: int, where: str, tmp_path) -> None:
        whole, expected = self.run(tmp_path / "whole", None)
        assert len(whole) == 12
        when = {5: 6, 7: 9, 2: 3}.get(when, when) if where == "validation" else when
        first, _ = self.run(tmp_path, when, where=where)
        (path,) = tmp_path.glob("*.ckpt")
        second, found = self.run(tmp_path, None, path)
        assert first + second == whole
        if where != "backward":
            # What the interrupted batch had moved by then (twin, statistics) stays so.
            assert_same(found, expected)


class TestResumingElsewhere:
    def checkpoint(self, folder, model=None):
        fit = trainer(folder, max_steps=4, max_epochs=None)
        fit.fit(model or DiRASimSiam(), loader())
        fit.save_checkpoint(folder / "half.ckpt")
        return folder / "half.ckpt"

    @pytest.mark.parametrize(
        ("size", "flags"),
        [(12, {}), (4, dict(limit_train_batches=2)), (2, {})],
    )
    def test_epochs_of_another_length(self, size: int, flags, tmp_path) -> None:
        """Found: StopIteration, where bare Lightning goes on."""
        path = self.checkpoint(tmp_path)
        model = DiRASimSiam()
        with pytest.warns(UserWarning, match="data come in another order"):
            trainer(tmp_path, max_epochs=3, **flags).fit(
                model, loader(size), ckpt_path=path
            )
        assert model.dira.steps > 4

    def test_batches_of_another_size(self, tmp_path) -> None:
        """Found: as many batches in an epoch, of the size of the run before."""
        short = dict(limit_train_batches=2)
        fit = trainer(tmp_path, max_epochs=1, **short)
        fit.fit(DiRASimSiam(), loader(4))
        fit.save_checkpoint(tmp_path / "one.ckpt")
        sizes = []

        class Sizes(DiRASimSiam):
            def training_step(self, batch, index):
                sizes.append(len(batch[0].target))
                return super().training_step(batch, index)

        fit = trainer(tmp_path, max_epochs=3, **short)
        with pytest.warns(UserWarning, match=r"batches of \[4\] items.* of \[8\]"):
            fit.fit(Sizes(), loader(8), ckpt_path=tmp_path / "one.ckpt")
        assert sizes == [8] * 4

    def test_checkpoint_of_the_bare_method(self, tmp_path) -> None:
        """Found: a list of missing keys."""
        path = self.checkpoint(tmp_path, SimSiam())
        with pytest.raises(RuntimeError, match=r"written without DiRA.*strict=False"):
            trainer(tmp_path, max_epochs=3).fit(DiRASimSiam(), loader(), ckpt_path=path)
        weights = torch.load(path)["state_dict"]
        model = DiRASimSiam()
        model.load_state_dict(weights, strict=False)
        trainer(tmp_path).fit(model, loader())


class TestTheMethodAlone:
    """In stage "di" a run equals that of the method without DiRA, to the bit."""

    class Bare(SimSiam):
        def validation_step(self, batch, index):
            torch.rand(3)

    class Wrapped(DiRASimSiam):
        restorative_start_epoch = 100

        def validation_step(self, batch, index):
            torch.rand(3)

    @pytest.mark.parametrize("interval", [1.0, 0.5])
    @pytest.mark.parametrize("shuffled", [False, True])
    def test_with_validation(self, interval, shuffled: bool, tmp_path) -> None:
        """Found: validation gave its draws back, so that the next order differed."""

        def make():
            data = Dimmed(lambda: torch.rand(()))
            return loaded(data, shuffle=True), loaded(Dimmed(), shuffle=shuffled)

        flags = dict(val_check_interval=interval)
        bare = fit(tmp_path / "bare", make, kind=self.Bare, **flags)
        wrapped = fit(tmp_path / "dira", make, kind=self.Wrapped, **flags)
        assert_same(bare, {name: wrapped[name] for name in bare})

    def test_once_started_validation_draws_nothing(self, tmp_path) -> None:
        class Started(self.Wrapped):
            restorative_start_epoch = 0

        without = fit(tmp_path / "a", lambda: loaded(shuffle=True), kind=Started)
        with_one = fit(
            tmp_path / "b",
            lambda: (loaded(shuffle=True), loaded(shuffle=True)),
            kind=Started,
            num_sanity_val_steps=0,
        )
        assert_same(without, with_one)


class TestLoadersThatResumeByThemselves:
    def test_of_torchdata(self, tmp_path) -> None:
        loaders = pytest.importorskip("torchdata.stateful_dataloader")

        def make():
            data = Dimmed(lambda: torch.rand(()))
            return loaders.StatefulDataLoader(data, batch_size=4, shuffle=True)

        assert_resumes(tmp_path, make, steps=(4, 8))
