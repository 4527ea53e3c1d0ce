"""Lightning's ways of doing things that could leave DiRA out, or half of it."""

from __future__ import annotations

import contextlib
import copy
import inspect

import pytest
import pytorch_lightning as pl
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
from methods import tiny_backbone
from pytorch_lightning.callbacks import ModelCheckpoint, StochasticWeightAveraging
from torch import nn
from torch.optim.swa_utils import get_ema_avg_fn
from torch.utils.data import DataLoader, Dataset

from lightly_dira import DiRA, DiRAViews
from lightly_dira.lightning.mixin import DiRAMixin

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pytorch_lightning")


class TestDiRAIsNeverLeftOut:
    def test_asking_makes_nothing(self) -> None:
        """Found: `hasattr` built and registered a network."""

        class Late(DiRAMixin, SimSiam):
            def __init__(self) -> None:
                super().__init__()
                self.late = self.backbone
                del self.backbone

        model = Late()
        assert not hasattr(model, "dira")
        model.backbone = model.late
        before = len(list(model.modules()))
        assert not hasattr(model, "dira")
        assert len(list(model.modules())) == before
        assert "dira" in dict(DiRASimSiam().named_children())

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

    def test_the_mixin_behind_the_method(self) -> None:
        """Found: trained without DiRA, in silence."""
        with pytest.raises(TypeError, match=r"class Wrong\(DiRAMixin, SimSiam\)"):

            class Wrong(SimSiam, DiRAMixin):
                pass

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

    def test_callbacks_overridden_without_super(self, tmp_path) -> None:
        class Mine(DiRASimSiam):
            def configure_callbacks(self):
                return []

        with pytest.raises(RuntimeError, match=r"super\(\)\.configure_callbacks\(\)"):
            trainer(tmp_path).fit(Mine(), loader())


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


class TestTrainingSteps:
    def test_of_any_arguments(self, tmp_path) -> None:
        class Any(SimSiam):
            def training_step(self, *arguments):
                batch, _ = arguments
                return super().training_step(batch, 0)

        class DiRAAny(DiRAMixin, Any):
            pass

        model = DiRAAny()
        trainer(tmp_path).fit(model, loader())
        assert model.dira.steps == 12

    def test_of_the_loader_itself(self, tmp_path) -> None:
        class Iterating(SimSiam):
            def training_step(self, dataloader_iter):
                return None

        class DiRAIterating(DiRAMixin, Iterating):
            pass

        with pytest.raises(RuntimeError, match="dataloader_iter"):
            trainer(tmp_path).fit(DiRAIterating(), loader())


class TestLateBackbones:
    """Found: a backbone made in `setup` or `configure_model` was a crash."""

    @pytest.mark.parametrize("hook", ["setup", "configure_model"])
    def test_made_by_a_hook(self, hook: str, tmp_path) -> None:
        def make(self, *stage) -> None:
            if not hasattr(self, "backbone"):
                self.backbone = self.made_late

        class Late(SimSiam):
            def __init__(self) -> None:
                super().__init__()
                object.__setattr__(self, "made_late", self.backbone)
                del self.backbone

        setattr(Late, hook, make)

        class DiRALate(DiRAMixin, Late):
            pass

        torch.manual_seed(0)
        model = DiRALate()
        assert not hasattr(model, "dira")
        fit = trainer(tmp_path)
        fit.fit(model, loader())
        assert model.dira.steps == 12
        torch.manual_seed(0)
        usual = DiRASimSiam()
        trainer(tmp_path).fit(usual, loader())
        torch.testing.assert_close(
            model.backbone[0][0].weight, usual.backbone[0][0].weight
        )

    def test_the_trained_one_of_twins(self) -> None:
        """As in MSN, where `backbone` is the frozen teacher."""

        class Twins(DiRAMixin, pl.LightningModule):
            def __init__(self) -> None:
                super().__init__()
                self.backbone = tiny_backbone().requires_grad_(False)
                self.anchor_backbone = tiny_backbone()

        model = Twins()
        assert model.dira.features.backbone is model.anchor_backbone


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

    def test_checkpoint_of_the_bare_method(self, tmp_path) -> None:
        """Found: a list of missing keys."""
        path = self.checkpoint(tmp_path, SimSiam())
        with pytest.raises(RuntimeError, match=r"written without DiRA.*strict=False"):
            trainer(tmp_path, max_epochs=3).fit(DiRASimSiam(), loader(), ckpt_path=path)
        weights = torch.load(path)["state_dict"]
        model = DiRASimSiam()
        model.load_state_dict(weights, strict=False)
        trainer(tmp_path).fit(model, loader())


class TestAveragedWeights:
    """Found: without head and critic, or a crash, as `dira` was made too late."""

    def test_stochastic(self, tmp_path) -> None:
        """The average is that of head and critic, too, over the epochs of averaging."""
        values = []

        class Note(pl.Callback):
            def on_train_epoch_start(self, trainer, module) -> None:
                if trainer.current_epoch <= averaging.swa_end:
                    parameters = module.dira.named_parameters()
                    values.append({n: p.detach().clone() for n, p in parameters})

        averaging = StochasticWeightAveraging(0.05, swa_epoch_start=1)
        fit = trainer(tmp_path, max_epochs=4, callbacks=[Note(), averaging])
        fit.fit(DiRASimSiam(), loader())
        averages = dict(averaging._average_model.dira.named_parameters())
        for name, average in averages.items():
            expected = torch.stack([value[name] for value in values]).mean(dim=0)
            torch.testing.assert_close(average.data, expected)

    def test_exponential(self, tmp_path) -> None:
        averaging = pytest.importorskip("pytorch_lightning.callbacks.weight_averaging")
        callback = averaging.WeightAveraging(avg_fn=get_ema_avg_fn(0.9))
        model = DiRASimSiam()
        fit = trainer(tmp_path, callbacks=[callback])
        fit.fit(model, loader())
        fit.save_checkpoint(tmp_path / "average.ckpt")
        saved = torch.load(tmp_path / "average.ckpt", weights_only=False)
        again = DiRASimSiam()
        again.load_state_dict(saved["state_dict"])
        assert again.dira.steps == 12


def test_optimisers_in_use_keep_off_the_head_in_stage_di() -> None:
    """Found: of two processes, AdamW decayed it by gradients of zero in its closure."""
    torch.manual_seed(0)
    model = nn.ModuleDict(dict(backbone=tiny_backbone()))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
    dira = DiRA(model["backbone"], optimizer, restorative_start=2)
    before = copy.deepcopy(dict(dira.head.named_parameters()))
    views = DiRAViews(torch.rand(2, 2, 3, 32, 32), torch.rand(2, 1, 32, 32))

    def closure():
        optimizer.zero_grad()
        loss = dira(model["backbone"](views[0]).mean(), views)
        loss = loss + 0 * sum(p.sum() for p in dira.head.parameters())
        loss.backward()
        return loss

    for step in (
        lambda: optimizer.step(closure),
        lambda: optimizer.step(closure=closure),
    ):
        step()
        for name, value in dira.head.named_parameters():
            assert torch.equal(value, before[name])
    assert dira.stage == "dira"
    optimizer.step(closure)
    moved = [not torch.equal(v, before[n]) for n, v in dira.head.named_parameters()]
    assert all(moved)
