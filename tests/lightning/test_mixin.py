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
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightly_dira import Adversary, DiRA, DiRALoss
from lightly_dira.core.modes import evaluating
from lightly_dira.lightning import CollapseWatch, RestorationLogger
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


class TestCallbacks:
    def test_pictures_as_files(self, tmp_path) -> None:
        callback = RestorationLogger(every_n_epochs=2, n=3)
        csv = pl.loggers.CSVLogger(tmp_path)
        settings = dict(max_epochs=5, callbacks=[callback], logger=csv)
        trainer(tmp_path, **settings).fit(DiRASimSiam(), loader(), loader(8))
        files = sorted(path.name for path in tmp_path.glob("**/restorations/*.png"))
        assert files == ["epoch-0001.png", "epoch-0003.png"]
        with Image.open(next(tmp_path.glob("**/*.png"))) as picture:
            assert picture.size == (4 * 18 + 2, 3 * 18 + 2)

    def test_without_a_logger(self, tmp_path) -> None:
        settings = dict(max_epochs=1, callbacks=[RestorationLogger()])
        trainer(tmp_path, **settings).fit(DiRASimSiam(), loader())
        assert (tmp_path / "restorations" / "epoch-0000.png").exists()

    def test_loggers_that_take_images(self, tmp_path) -> None:
        class Writer:
            def add_image(self, name, picture, step):
                seen.append((name, picture, step))

        class Board(pl.loggers.CSVLogger):
            experiment = Writer()
            save = log_metrics = log_hyperparams = lambda *args, **settings: None

        class Weights(pl.loggers.CSVLogger):
            def log_image(self, key, images, step):
                seen.extend((key, picture, step) for picture in images)

        seen = []
        loggers = [Board(tmp_path), Weights(tmp_path)]
        model = DiRASimSiam()
        batch = next(iter(loader(2)))
        settings = dict(max_epochs=1, callbacks=[RestorationLogger(batch)])
        trainer(tmp_path, logger=loggers, log_every_n_steps=99, **settings).fit(
            model, loader()
        )
        assert [(name, step) for name, _, step in seen] == [
            ("dira/restorations", 6)
        ] * 2
        clean = seen[0][1][:1, 2:18, 2:18]
        torch.testing.assert_close(clean, batch[0].target[0])
        restored = seen[0][1][:1, 2:18, 38:54]
        torch.testing.assert_close(restored, model.dira.restore(batch[0].view)[0])
        assert not list(tmp_path.glob("**/*.png"))

    def test_the_first_batch_of_validation(self, tmp_path) -> None:
        class Validated(DiRASimSiam):
            def validation_step(self, batch, batch_index):
                loss = SimSiam.training_step(self, batch, batch_index)
                self.log("validation", self.dira(loss, batch))

        callback = RestorationLogger()
        validation = DataLoader(Images(8), batch_size=3)
        settings = dict(max_epochs=1, callbacks=[callback])
        fit = trainer(tmp_path, **settings)
        fit.fit(Validated(), loader(), validation)
        assert fit.callback_metrics["validation"].isfinite()
        assert torch.equal(callback._views.target, Images(8).targets[:3])

    def test_collapse_is_logged_and_warned_of_once(self, tmp_path) -> None:
        model = DiRASimSiam()
        nn.init.zeros_(model.backbone[2][1].weight)
        nn.init.ones_(model.backbone[2][1].bias)
        with pytest.warns(UserWarning, match="collapsed") as caught:
            self.watch(model, tmp_path)
        assert sum("collapsed" in str(w.message) for w in caught) == 1

    def watch(self, model, tmp_path, epochs: int = 3, **settings):
        class Frozen(type(model)):
            def configure_optimizers(self):
                optimizer = torch.optim.SGD(self.backbone.parameters(), lr=0.0)
                self.dira.attach(optimizer)
                return optimizer

        model.__class__ = Frozen
        watch = CollapseWatch(**settings)
        fit = trainer(tmp_path, max_epochs=epochs, callbacks=[watch])
        fit.fit(model, loader())
        return fit.callback_metrics

    def test_values(self, tmp_path) -> None:
        model = DiRASimSiam()
        metrics = self.watch(model, tmp_path, epochs=1)
        views = next(iter(loader()))[0]
        with torch.no_grad(), evaluating(model):
            representation = model.backbone(views.view)
            real = model.dira.discriminator(views.target) > 0.5
            fake = model.dira.discriminator(model.dira.restore(views.view)) < 0.5
        expected = nn.functional.normalize(representation).std(dim=0).mean() * 4
        torch.testing.assert_close(metrics["dira/std"], expected)
        for name, value in (("real", real), ("restored", fake)):
            accuracy = metrics[f"dira/accuracy_{name}"]
            torch.testing.assert_close(accuracy, value.float().mean())
        # By hand: the gradients of both terms at the maps, with their weights.
        with evaluating(model):
            maps = [m.detach().requires_grad_() for m in model.dira.features(views[0])]
            images = model.dira.head(maps, views[0].shape[2:])
            terms = (
                0.001 * (model.dira.discriminator(images) - 1).square().mean(),
                10 * (images - views.target).square().mean(),
            )
            norms = [
                torch.cat(
                    [g.flatten() for g in torch.autograd.grad(t, maps, None, True)]
                )
                for t in terms
            ]
        share = norms[0].norm() / norms[1].norm()
        assert 0 < share < 0.1
        found = metrics["dira/adversarial_share"]
        torch.testing.assert_close(found, share, rtol=1e-2, atol=0)

    @pytest.mark.parametrize("form", ["wasserstein", "balanced", "conditional"])
    def test_values_of_other_adversaries(self, form: str, tmp_path) -> None:
        class Other(DiRASimSiam):
            def configure_dira(self) -> DiRA:
                loss = DiRALoss(
                    adversarial_weight=0.5,
                    adversary="wasserstein" if form == "wasserstein" else "hinge",
                    balanced=form == "balanced",
                )
                return DiRA(self.backbone, loss=loss, conditional=form == "conditional")

        metrics = self.watch(Other(), tmp_path, epochs=1)
        assert ("dira/accuracy_real" in metrics) == (form != "wasserstein")
        share = metrics["dira/adversarial_share"]
        assert share.isfinite()
        assert share > 0

    def test_hosts_that_restore(self, tmp_path) -> None:
        class Host(DiRAMixin, SimSiam):
            def configure_dira(self) -> Adversary:
                return Adversary(self.backbone, target_channels=3)

            def training_step(self, batch, index):
                views = batch[0]
                loss = self.backbone(views[0]).square().mean()
                return self.dira(loss, restored=views[0], target=views[1])

        settings = dict(max_epochs=1, callbacks=[RestorationLogger()])
        with pytest.raises(RuntimeError, match="leave this callback out"):
            trainer(tmp_path, **settings).fit(Host(), loader())

    def test_an_adversary_that_has_won(self, tmp_path) -> None:
        class Knows(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.scale = nn.Parameter(torch.ones(()))

            def forward(self, images: Tensor) -> Tensor:
                return self.scale * (images.amax((1, 2, 3), keepdim=True) > 0.95)

        class Won(DiRASimSiam):
            def configure_dira(self) -> DiRA:
                return DiRA(self.backbone, discriminator=Knows(), discriminator_lr=1e-9)

        with pytest.warns(UserWarning, match="won outright") as caught:
            self.watch(Won(), tmp_path)
        assert sum("won outright" in str(w.message) for w in caught) == 1

    @pytest.mark.parametrize("callback", [RestorationLogger, CollapseWatch])
    def test_bad_arguments(self, callback, tmp_path) -> None:
        with pytest.raises(ValueError, match="every_n_epochs"):
            callback(every_n_epochs=0)
        with pytest.raises(ValueError, match="no restoration target"):
            callback([torch.rand(2, 3, 8, 8)])
        settings = dict(max_epochs=1, callbacks=[callback()])
        with pytest.raises(RuntimeError, match="has no `dira`"):
            trainer(tmp_path, **settings).fit(SimSiam(), loader())
