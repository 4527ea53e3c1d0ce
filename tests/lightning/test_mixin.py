"""A DiRA variant of any LightningModule, by a mixin."""

from __future__ import annotations

import copy

import pytest
import pytorch_lightning as pl
import torch
from lightning_modules import (
    DiRAMoCo,
    DiRASimSiam,
    Images,
    MoCo,
    SimSiam,
    assert_same,
    loader,
    state,
    trainer,
)
from methods import tiny_backbone
from pytorch_lightning.callbacks import StochasticWeightAveraging
from torch import nn
from torch.optim.swa_utils import get_ema_avg_fn
from torch.utils.data import DataLoader

from lightly_dira import DiRA
from lightly_dira.lightning.mixin import DiRAMixin
from lightly_dira.loss.schedule import Schedule
from lightly_dira.training.state import buffers_of, load_buffers

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pytorch_lightning")


@pytest.mark.parametrize(
    ("chosen", "shown"),
    [
        (None, {"dira/restorative"}),
        (("adversarial", "discriminator"), {"dira/adversarial", "dira/discriminator"}),
        ((), set()),
    ],
)
def test_terms_in_the_progress_bar(chosen, shown, tmp_path) -> None:
    model = DiRASimSiam()
    if chosen is not None:
        model.progress_bar_terms = chosen
    fit = trainer(tmp_path, max_epochs=1)
    fit.fit(model, loader())
    assert {n for n in fit.progress_bar_metrics if n.startswith("dira/")} == shown
    assert len([n for n in fit.callback_metrics if n.startswith("dira/")]) == 4


@pytest.mark.parametrize("form", ["one", "lars", "list", "lists", "plans", "dict"])
def test_every_form_of_optimisers(form: str, tmp_path) -> None:
    torch.manual_seed(0)
    model = DiRASimSiam(optimizers=form)
    before = state(model.dira)
    fit = trainer(tmp_path)
    fit.fit(model, loader())
    assert model.dira.steps == 12
    after = state(model.dira)
    moved = [name for name, _ in model.dira.named_parameters()]
    assert not any(torch.equal(before[name], after[name]) for name in moved)
    held = [p for g in fit.optimizers[0].param_groups for p in g["params"]]
    for parameter in model.dira.head.parameters():
        assert sum(parameter is other for other in held) == 1
    for parameter in model.dira.discriminator.parameters():
        assert not any(parameter is other for other in held)


def test_equals_the_plain_loop(tmp_path) -> None:
    torch.manual_seed(0)
    model = DiRAMoCo()
    plain = copy.deepcopy(MoCo())
    plain.load_state_dict(
        {k: v for k, v in model.state_dict().items() if not k.startswith("dira.")}
    )
    load_buffers(plain, buffers_of(model, left_out=True))
    (optimizer,), (plan,) = plain.configure_optimizers()
    dira = DiRA(plain.backbone, optimizer)
    dira.load_state_dict(model.dira.state_dict())
    for _ in range(2):
        for batch in loader():
            total = dira(plain.training_step(batch), batch)
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
            plan["scheduler"].step()
    trainer(tmp_path).fit(model, loader())
    assert_same(
        state(plain), {k: v for k, v in state(model).items() if "dira" not in k}
    )
    assert_same(state(dira), state(model.dira))


@pytest.mark.parametrize("output", ["tensor", "dict", "nothing"])
def test_every_form_of_output(output: str, tmp_path) -> None:
    model = DiRASimSiam(output=output)
    model.dira  # noqa: B018
    before = dict(model.named_parameters())
    before = {name: value.detach().clone() for name, value in before.items()}
    fit = trainer(tmp_path)
    fit.fit(model, loader())
    # Lightning steps its optimiser, which has no gradients then, nevertheless.
    assert model.dira.steps == 12
    same = [torch.equal(before[name], p) for name, p in model.named_parameters()]
    assert all(same) == (output == "nothing")
    names = ("discriminative", "restorative", "adversarial", "discriminator")
    for name in names:
        assert (f"dira/{name}" in fit.callback_metrics) == (output != "nothing")


@pytest.mark.parametrize(
    "flags",
    [
        dict(accumulate_grad_batches=3),
        dict(gradient_clip_val=0.1),
        dict(gradient_clip_val=0.1, gradient_clip_algorithm="value"),
        dict(precision="bf16-mixed"),
        dict(precision="16-mixed"),
        dict(val_check_interval=3),
        dict(max_time="00:00:10:00"),
        dict(benchmark=True, enable_checkpointing=True),
        dict(profiler="simple", inference_mode=False, barebones=False),
        dict(reload_dataloaders_every_n_epochs=1),
        dict(limit_train_batches=2),
        dict(overfit_batches=1),
        dict(detect_anomaly=True),
        dict(fast_dev_run=True),
        dict(max_steps=5, max_epochs=None),
        dict(num_sanity_val_steps=0),
        dict(deterministic=True),
    ],
    ids=str,
)
def test_flags_of_the_trainer(flags, tmp_path) -> None:
    model = DiRASimSiam()
    before = state(model.dira)
    trainer(tmp_path, **flags).fit(model, loader())
    assert model.dira.steps > 0
    after = state(model.dira)
    assert all(value.isfinite().all() for value in after.values())
    for name, _ in model.dira.named_parameters():
        assert not torch.equal(before[name].to(after[name].dtype), after[name])


@pytest.mark.parametrize("precision", ["64-true", "bf16-true"])
def test_precisions_that_lose_the_target(precision: str, tmp_path) -> None:
    with pytest.raises(TypeError, match=r"expected a target.*bf16-mixed"):
        trainer(tmp_path, precision=precision).fit(DiRASimSiam(), loader())


def test_accumulated_batches_equal_one_large_batch(tmp_path) -> None:
    runs = []
    for size, batches in ((2, 4), (8, 1)):
        torch.manual_seed(0)
        model = DiRASimSiam().double()
        model.dira.double()
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.train = lambda mode=True: None
                module.eval()
                module.training = False
        data = DataLoader(Images(dtype=torch.float64), batch_size=size)
        flags = dict(accumulate_grad_batches=batches, max_epochs=1)
        trainer(tmp_path, **flags).fit(model, data)
        assert model.dira.steps == 3
        runs.append(state(model))
    assert_same(*runs, rtol=1e-9, atol=1e-9)


class TestBackbone:
    def test_other_name(self) -> None:
        class Student(DiRAMixin, pl.LightningModule):
            def __init__(self) -> None:
                super().__init__()
                self.student_backbone = tiny_backbone()

        model = Student()
        assert model.dira.features.backbone is model.student_backbone
        assert model.dira is model.dira

    def test_none(self, tmp_path) -> None:
        class Empty(DiRAMixin, pl.LightningModule):
            pass

        assert not hasattr(Empty(), "dira")
        with pytest.raises(AttributeError, match="Override `configure_dira"):
            Empty().dira  # noqa: B018
        with pytest.raises(RuntimeError, match="Override `configure_dira"):
            Empty().configure_dira()

    def test_unknown_attributes_stay_unknown(self) -> None:
        assert not hasattr(DiRASimSiam(), "something")

    def test_manual_optimisation(self, tmp_path) -> None:
        model = DiRASimSiam()
        model.automatic_optimization = False
        with pytest.raises(RuntimeError, match="automatic optimisation"):
            trainer(tmp_path).fit(model, loader())

    def test_sharding(self, tmp_path) -> None:
        class FSDPStrategy(pl.strategies.SingleDeviceStrategy):
            pass

        with pytest.raises(RuntimeError, match=r"Choose strategy=.ddp"):
            trainer(tmp_path, strategy=FSDPStrategy("cpu")).fit(DiRASimSiam(), loader())

    def test_no_optimiser(self, tmp_path) -> None:
        with pytest.raises(RuntimeError, match="none of the optimisers"):
            trainer(tmp_path).fit(DiRASimSiam(optimizers="none"), loader())


@pytest.mark.parametrize("kind", [DiRAMoCo, DiRASimSiam])
@pytest.mark.parametrize("stages", [(0, 0), (4, 9)])
def test_resuming_is_as_if_never_interrupted(kind, stages, tmp_path) -> None:
    """Encoder, twins, queue, head, critic, optimisers, schedule and counters."""

    class Staged(kind):
        def configure_dira(self) -> DiRA:
            dira = DiRA(self.backbone)
            dira.schedule = Schedule.starting(*stages)
            return dira

    def run(epochs: int, checkpoint=None):
        torch.manual_seed(0 if checkpoint is None else 1)
        model = Staged()
        fit = trainer(tmp_path, max_epochs=epochs)
        fit.fit(model, loader(), ckpt_path=checkpoint)
        return model, fit

    whole, _ = run(4)
    half, fit = run(2)
    fit.save_checkpoint(tmp_path / "half.ckpt")
    resumed, _ = run(4, tmp_path / "half.ckpt")
    assert resumed.dira.steps == whole.dira.steps == 24
    assert_same(state(resumed), state(whole))
    assert not torch.equal(half.backbone[0][0].weight, whole.backbone[0][0].weight)


def test_load_from_checkpoint(tmp_path) -> None:
    model = DiRAMoCo()
    fit = trainer(tmp_path, max_epochs=1)
    fit.fit(model, loader())
    fit.save_checkpoint(tmp_path / "last.ckpt")
    loaded = DiRAMoCo.load_from_checkpoint(tmp_path / "last.ckpt", weights_only=False)
    assert_same(state(loaded), state(model))


class TestDiRAIsNeverLeftOut:
    def test_callbacks_overridden_without_super(self, tmp_path) -> None:
        class Mine(DiRASimSiam):
            def configure_callbacks(self):
                return []

        with pytest.raises(RuntimeError, match=r"super\(\)\.configure_callbacks\(\)"):
            trainer(tmp_path).fit(Mine(), loader())


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

    def test_the_trained_one_of_twins(self) -> None:
        """As in MSN, where `backbone` is the frozen teacher."""

        class Twins(DiRAMixin, pl.LightningModule):
            def __init__(self) -> None:
                super().__init__()
                self.backbone = tiny_backbone().requires_grad_(False)
                self.anchor_backbone = tiny_backbone()

        model = Twins()
        assert model.dira.features.backbone is model.anchor_backbone


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
