"""Runs that are killed end as runs that are not, to the last bit."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import killed
import pytest
import torch
from lightly.loss import DINOLoss, NTXentLoss
from lightning_modules import DiRASimSiam, assert_same, loader, trainer

from lightly_dira import DiRA
from lightly_dira.lightning.mid_epoch import PlaceInData
from lightly_dira.training.state import buffers_of, load_buffers

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


class TestMemory:
    def dira(self, criterion) -> DiRA:
        return DiRA(DiRASimSiam().backbone, criterion=criterion)

    @pytest.mark.parametrize(
        "make", [lambda: NTXentLoss(memory_bank_size=(8, 4)), lambda: DINOLoss(4)]
    )
    def test_in_the_state_of_dira(self, make) -> None:
        criterion = make()
        for buffer in criterion.buffers():
            buffer.copy_(torch.rand(buffer.shape))
        state = self.dira(criterion).state_dict()
        other = make()
        dira = self.dira(other)
        assert not any("criterion" in name for name, _ in dira.named_modules())
        dira.load_state_dict(state)
        assert_same(buffers_of(other), buffers_of(criterion))

    def test_of_another_size(self) -> None:
        saved = buffers_of(NTXentLoss(memory_bank_size=(8, 4)))
        with pytest.raises(ValueError, match=r"memory_bank\.bank .* \(8, 4\)"):
            load_buffers(NTXentLoss(memory_bank_size=(16, 4)), saved)

    def test_of_a_size_not_yet_known(self) -> None:
        saved = buffers_of(NTXentLoss(memory_bank_size=(8, 4)))
        criterion = NTXentLoss(memory_bank_size=(8, 4))
        criterion.memory_bank.bank = torch.empty(0)
        load_buffers(criterion, saved)
        assert_same(buffers_of(criterion), saved)
