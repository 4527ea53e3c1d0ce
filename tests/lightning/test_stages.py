"""Stages in epochs, and training that would leave DiRA out."""

from __future__ import annotations

import pytest
import pytorch_lightning as pl
import torch
from lightning_modules import DiRASimSiam, Images, SimSiam, loader, trainer
from methods import tiny_backbone
from timm.optim import Lookahead
from torch.utils.data import DataLoader

from lightly_dira import DiRA
from lightly_dira.lightning.mixin import DiRAMixin
from lightly_dira.loss.schedule import Schedule

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pytorch_lightning")


class TestStages:
    def test_in_epochs(self, tmp_path) -> None:
        class Staged(DiRASimSiam):
            restorative_start_epoch = 1
            adversarial_start_epoch = 1.5

        stages = []

        class Note(pl.Callback):
            def on_train_batch_start(self, trainer, module, batch, index):
                stages.append(module.dira.stage)

        fit = trainer(tmp_path, callbacks=[Note()], accumulate_grad_batches=2)
        fit.fit(Staged(), loader())
        assert stages == ["di"] * 6 + ["dir"] * 4 + ["dira"] * 2

    def test_in_steps(self, tmp_path) -> None:
        class Staged(DiRASimSiam):
            def configure_dira(self) -> DiRA:
                return DiRA(self.backbone, adversarial_start=None)

        model = Staged()
        trainer(tmp_path).fit(model, loader())
        assert model.dira.stage == "dir"

    @pytest.mark.parametrize("adversarial", [None, 1])
    def test_without_an_adversary(self, adversarial, tmp_path, recwarn) -> None:
        """Asked for in epochs, one that is not there is missed; else it is not."""

        class Staged(DiRASimSiam):
            restorative_start_epoch = 1
            adversarial_start_epoch = adversarial

            def configure_dira(self) -> DiRA:
                return DiRA(self.backbone, adversarial_start=None)

        model = Staged()
        trainer(tmp_path, max_epochs=2).fit(model, loader())
        assert model.dira.stage == "dir"
        missed = [w for w in recwarn if "was made without one" in str(w.message)]
        assert bool(missed) == (adversarial is not None)

    def test_epochs_without_length(self, tmp_path) -> None:
        class Staged(DiRASimSiam):
            adversarial_start_epoch = 1

        class Stream(torch.utils.data.IterableDataset):
            def __iter__(self):
                return iter(Images())

        with pytest.raises(RuntimeError, match="in steps, in configure_dira"):
            trainer(tmp_path).fit(Staged(), DataLoader(Stream(), batch_size=4))


class TestDiRAIsNeverLeftOut:
    def test_a_training_step_in_front_of_the_mixin(self, tmp_path) -> None:
        """Found: trained without DiRA, in silence."""

        class Mine(DiRAMixin, pl.LightningModule):
            def __init__(self) -> None:
                super().__init__()
                self.backbone = tiny_backbone()

            def training_step(self, batch, index):
                return self.backbone(batch[0][0]).mean()

            def configure_optimizers(self):
                return torch.optim.SGD(self.parameters(), lr=0.1)

        with pytest.raises(RuntimeError, match=r"class Mine\(DiRAMixin, Method\)"):
            trainer(tmp_path).fit(Mine(), loader())

    def test_a_training_step_that_calls_on(self, tmp_path) -> None:
        class Mine(DiRASimSiam):
            def training_step(self, batch, index):
                return super().training_step(batch, index)

        model = Mine()
        trainer(tmp_path).fit(model, loader())
        assert model.dira.steps == 12

    def test_hooks_overridden_without_super(self, tmp_path) -> None:
        """Found: `adversarial_start_epoch` was ignored."""

        class Staged(DiRASimSiam):
            adversarial_start_epoch = 1

            def on_fit_start(self):
                pass

            def on_train_start(self):
                pass

            def on_train_epoch_start(self):
                pass

        stages = []

        class Note(pl.Callback):
            def on_train_batch_start(self, trainer, module, batch, index):
                stages.append(module.dira.stage)

        trainer(tmp_path, callbacks=[Note()]).fit(Staged(), loader())
        assert stages == ["dir"] * 6 + ["dira"] * 6


class TestEpochsOfChangingLength:
    """EpochStages in epochs begin with those epochs, however many steps they have."""

    def stages(self, tmp_path, callbacks=(), **flags) -> list[str]:
        class Staged(DiRASimSiam):
            adversarial_start_epoch = 2

            def train_dataloader(self):
                return loader(4 if self.current_epoch == 0 else 12)

        seen = []

        class Note(pl.Callback):
            def on_train_batch_start(self, trainer, module, batch, index):
                if index == 0:
                    seen.append(module.dira.stage)

        settings = dict(max_epochs=4, callbacks=[Note(), *callbacks]) | flags
        trainer(tmp_path, **settings).fit(Staged())
        return seen

    @pytest.mark.parametrize("plan", [{0: 1, 1: 3}, {0: 3, 1: 1}])
    def test_accumulation(self, plan, tmp_path) -> None:
        callbacks = [pl.callbacks.GradientAccumulationScheduler(plan)]
        assert self.stages(tmp_path, callbacks) == ["dir"] * 2 + ["dira"] * 2

    def test_other_loaders(self, tmp_path) -> None:
        flags = dict(reload_dataloaders_every_n_epochs=1)
        assert self.stages(tmp_path, **flags) == ["dir"] * 2 + ["dira"] * 2


class TestOverridden:
    def test_configure_optimizers(self, tmp_path) -> None:
        """Found: the critic was moved by the user's AdamW, and the head by nobody."""

        class Mine(DiRAMixin, SimSiam):
            def configure_optimizers(self):
                return torch.optim.AdamW(self.parameters())

        with pytest.raises(RuntimeError, match=r"class Mine\(DiRAMixin, Method\)"):
            trainer(tmp_path).fit(Mine(), loader())

    @pytest.mark.parametrize("form", ["list", "lists", "plans", "dict"])
    def test_in_every_form(self, form: str, tmp_path) -> None:
        class Mine(DiRAMixin, SimSiam):
            def configure_optimizers(self):
                return SimSiam.configure_optimizers(self)

        with pytest.raises(RuntimeError, match="configure_optimizers overrides"):
            trainer(tmp_path).fit(Mine(form), loader())

    def test_that_calls_on(self, tmp_path) -> None:
        class Mine(DiRAMixin, SimSiam):
            def configure_optimizers(self):
                return super().configure_optimizers()

        class Attached(DiRAMixin, SimSiam):
            def configure_optimizers(self):
                optimizer = torch.optim.AdamW(self.parameters())
                self.dira.attach(optimizer)
                return optimizer

        for kind in (Mine, Attached):
            model = kind()
            trainer(tmp_path, max_epochs=1).fit(model, loader())
            assert model.dira.steps == 6

    def test_attached_to_the_inner_one(self, tmp_path) -> None:
        class Mine(DiRAMixin, SimSiam):
            def configure_optimizers(self):
                inner = torch.optim.SGD(self.backbone.parameters(), lr=0.1)
                self.dira.attach(inner)
                return Lookahead(inner)

        model = Mine()
        trainer(tmp_path, max_epochs=1).fit(model, loader())
        assert model.dira.steps == 6

    def test_attached_to_an_optimiser_of_the_past(self, tmp_path) -> None:
        class Mine(DiRAMixin, SimSiam):
            def configure_optimizers(self):
                self.dira.attach(torch.optim.AdamW(self.parameters()))
                return torch.optim.AdamW(self.parameters())

        with pytest.raises(RuntimeError, match="no optimiser holds"):
            trainer(tmp_path).fit(Mine(), loader())


class TestSmallThings:
    def test_two_ways_to_start_a_part(self, tmp_path) -> None:
        class Mine(DiRASimSiam):
            adversarial_start_epoch = 1
            schedule_in_epochs = Schedule.stepwise(4)

        with pytest.raises(ValueError, match="not both"):
            trainer(tmp_path).fit(Mine(), loader())
