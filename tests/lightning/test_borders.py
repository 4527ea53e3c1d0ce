"""Where Lightning's code, or the user's, rebuilds, replaces or overrides ours."""

from __future__ import annotations

import warnings
from collections import namedtuple

import pytest
import pytorch_lightning as pl
import torch
from lightning_modules import Images, SimSiam, loader, state, trainer
from methods import tiny_backbone
from pytorch_lightning.utilities import CombinedLoader
from rebuilding import RebuildingSingle, rebuilt, rebuilt_by_torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision.utils import save_image

from lightly_dira import Adversary, DiRA, DiRAViews
from lightly_dira.core.modes import evaluating
from lightly_dira.lightning import CollapseWatch, DiRAMixin, RestorationLogger
from lightly_dira.views import find_views

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pytorch_lightning")

Named = namedtuple("Named", "views index name")
KINDS = {
    "tuple": lambda views, index, name: (views, index, name),
    "list": lambda views, index, name: [views, index, name],
    "dict": lambda views, index, name: {"x": {"views": views}, "index": index},
    "named": Named,
    "nested": lambda views, index, name: ([(views,)], {"index": index}),
}


class Batches(Images):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = KINDS[kind]

    def __getitem__(self, index: int):
        return self.kind(*super().__getitem__(index))


class OfAnyBatch(SimSiam):
    """Looks for its two views wherever they are."""

    def training_step(self, batch, index):
        def views_in(value):
            if isinstance(value, dict):
                value = list(value.values())
            if not isinstance(value, (list, tuple)):
                return None
            if isinstance(value[0], torch.Tensor) and value[0].ndim == 4:
                return value
            return next(filter(None, map(views_in, value)), None)

        return super().training_step([views_in(batch)], index)


class DiRAOfAnyBatch(DiRAMixin, OfAnyBatch):
    pass


class TestStrategiesThatRebuildBatches:
    """Found: with `device_ids`, as on every GPU, the first restoring step failed."""

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("function", [rebuilt, rebuilt_by_torch])
    def test_the_emulation(self, kind: str, function) -> None:
        batch = next(iter(DataLoader(Batches(kind), 4)))
        assert len(list(find_views(batch))) == 1
        assert not list(find_views(function(batch)))

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("start", [0, 4])
    def test_the_mixin(self, kind: str, start: int, tmp_path) -> None:
        class Staged(DiRAOfAnyBatch):
            def configure_dira(self) -> DiRA:
                return DiRA(self.backbone, restorative_start=start)

        weights = []
        for strategy in ("auto", RebuildingSingle(torch.device("cpu"))):
            torch.manual_seed(0)
            model = Staged()
            fit = trainer(tmp_path, max_epochs=1, strategy=strategy)
            fit.fit(model, DataLoader(Batches(kind), 4))
            assert model.dira.stage == "dira"
            assert model._batch is None
            weights.append(state(model))
        for name, value in weights[0].items():
            assert torch.equal(value, weights[1][name]), name

    @pytest.mark.parametrize("function", [rebuilt, lambda b: rebuilt(b, always=False)])
    def test_a_plain_loop_within_the_model(self, function) -> None:
        model = nn.ModuleDict(dict(backbone=tiny_backbone()))
        dira = DiRA(model["backbone"])
        batch = function(
            (DiRAViews(torch.rand(2, 2, 3, 32, 32), torch.rand(2, 1, 32, 32)),)
        )
        loss = model["backbone"](batch[0][0]).mean()
        with pytest.raises(ValueError, match=r"`device_ids`.*outside of it.*DiRAMixin"):
            dira(loss, batch)

    def test_several_loaders(self, tmp_path) -> None:
        class Method(SimSiam):
            def training_step(self, batch, index):
                return sum(
                    SimSiam.training_step(self, b, index) for b in batch.values()
                )

        class Joined(DiRAMixin, Method):
            pass

        sizes = []
        model = Joined()
        model.dira.discriminator.register_forward_pre_hook(
            lambda module, args: sizes.append(len(args[0]))
        )
        data = CombinedLoader({"ct": loader(4), "mr": loader(4)}, "max_size")
        trainer(tmp_path, max_epochs=1).fit(model, data)
        assert set(sizes) == {8}


class TestOverridden:
    def test_a_key_of_the_step(self, tmp_path) -> None:
        kept = []

        class Mine(SimSiam):
            def training_step(self, batch, index):
                loss = SimSiam.training_step(self, batch, index)
                return {"loss": loss, "view": "axial"}

            def on_train_batch_end(self, outputs, batch, index):
                kept.append(outputs["view"])

        model = type("Wrapped", (DiRAMixin, Mine), {})()
        trainer(tmp_path, max_epochs=1).fit(model, loader())
        assert kept == ["axial"] * 6

    def test_a_step_that_returns_the_old_loss(self, tmp_path) -> None:
        """Found: nothing was trained but the method, without a word."""

        class Mine(pl.LightningModule):
            def __init__(self) -> None:
                super().__init__()
                self.backbone = tiny_backbone()
                self.dira = DiRA(self.backbone)

            def training_step(self, batch, index):
                loss = self.backbone(batch[0][0]).mean()
                self.dira(loss, batch)
                return loss

            def configure_optimizers(self):
                optimizer = torch.optim.SGD(self.backbone.parameters(), lr=0.1)
                self.dira.attach(optimizer)
                return optimizer

        with pytest.warns(UserWarning, match="is not differentiated"):
            trainer(tmp_path, max_epochs=1).fit(Mine(), loader())

    def test_a_step_that_calls_dira_itself(self, tmp_path) -> None:
        """Found: restoration was added twice, without a word."""

        class Twice(SimSiam):
            def training_step(self, batch, index):
                return self.dira(SimSiam.training_step(self, batch, index), batch)

        model = type("DiRATwice", (DiRAMixin, Twice), {})()
        with pytest.raises(RuntimeError, match=r"calls `self\.dira` itself"):
            trainer(tmp_path, max_epochs=1).fit(model, loader())


class TestBothPackages:
    """Found: with `lightning.pytorch`, a class in the wrong order trained bare."""

    @pytest.fixture
    def lightning(self):
        return pytest.importorskip("lightning.pytorch")

    def method(self, lightning):
        class Method(lightning.LightningModule):
            def __init__(self, width: int = 4) -> None:
                super().__init__()
                self.backbone = tiny_backbone(width)

            def training_step(self, batch, index):
                x0, x1 = batch[0]
                return (self.backbone(x0) - self.backbone(x1)).square().mean()

            def configure_optimizers(self):
                return torch.optim.SGD(self.parameters(), lr=0.05)

        return Method

    def test_the_wrong_order(self, lightning) -> None:
        method = self.method(lightning)
        with pytest.raises(TypeError, match=r"class Wrong\(DiRAMixin, Method\)"):

            class Wrong(method, DiRAMixin):
                pass

        class Between(method):
            pass

        with pytest.raises(TypeError, match=r"\(DiRAMixin, Between\)"):
            type("Wrong", (Between, DiRAMixin), {})

    def test_trains_and_resumes(self, lightning, tmp_path) -> None:
        class Mine(DiRAMixin, self.method(lightning)):
            adversarial_start_epoch = 1

        flags = dict(
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            accelerator="cpu",
            default_root_dir=tmp_path,
        )
        weights = []
        for path in (None, tmp_path / "half.ckpt"):
            torch.manual_seed(0)
            model = Mine()
            fit = lightning.Trainer(
                max_epochs=2,
                callbacks=[RestorationLogger(), CollapseWatch()],
                **flags,
            )
            if path:
                half = lightning.Trainer(max_epochs=1, **flags)
                half.fit(model, loader(shuffle=True))
                half.save_checkpoint(path)
                model = Mine()
            fit.fit(model, loader(shuffle=True), ckpt_path=path)
            assert (model.dira.steps, model.dira.stage) == (12, "dira")
            assert "dira/std" in fit.callback_metrics
            weights.append(state(model))
        for name, value in weights[0].items():
            assert torch.equal(value, weights[1][name]), name


def normalise(x):
    mean = torch.tensor([0.5, 0.4, 0.3])[:, None, None]
    return (x - mean) / 0.2


LOOPS = {
    "normalises": normalise,
    "repeats": lambda x: x.repeat(1, 3, 1, 1),
    "both": lambda x: normalise(x.expand(-1, 3, -1, -1)),
    "none": lambda x: x,
}


class Grey(Images):
    def __getitem__(self, index: int):
        views, *rest = super().__getitem__(index)
        return DiRAViews([view[:1] for view in views], views.target), *rest


def changing(loop, *, said: bool = False):
    class Changing(SimSiam):
        def training_step(self, batch, index):
            x0, x1 = map(loop, batch[0])
            loss = SimSiam.training_step(self, [[x0, x1]], index)
            return {"loss": loss, "view": x0} if said else loss

        def validation_step(self, batch, index):
            self.dira(torch.zeros(()), batch)
            self.log("held_out", self.dira.components.restorative)

    return type("DiRAChanging", (DiRAMixin, Changing), {})


class TestLoopsThatChangeTheirViews:
    """Found: pictures and spreads of views that the encoder never gets."""

    def data(self, how: str) -> Dataset:
        return Grey() if how in ("repeats", "both") else Images()

    @pytest.mark.parametrize("how", LOOPS)
    @pytest.mark.parametrize("said", [False, True])
    def test_callbacks(self, how: str, said: bool, tmp_path, monkeypatch) -> None:
        shown = []
        monkeypatch.setattr(
            "lightly_dira.lightning.restoration_logger.save_image",
            lambda grid, path: (shown.append(grid), save_image(grid, path)),
        )
        loop, data = LOOPS[how], self.data(how)
        model = changing(loop, said=said)()
        fit = trainer(
            tmp_path, max_epochs=2, callbacks=[RestorationLogger(n=2), CollapseWatch()]
        )
        fit.fit(model, DataLoader(data, 4))
        assert len(shown) == 2
        views = next(iter(DataLoader(data, 4)))[0]
        with torch.no_grad(), evaluating(model):
            restored = model.dira.restore(loop(views[0]))
            representation = model.backbone(loop(views[0]))
        found = shown[-1][:1, 2 : 2 + 16, 2 + 2 * 18 : 18 + 2 * 18]
        torch.testing.assert_close(found, restored[0])
        std = F.normalize(representation).std(dim=0).mean() * 4
        torch.testing.assert_close(fit.callback_metrics["dira/std"], std)

    def test_a_change_that_is_not_known_ends_no_run(self, tmp_path) -> None:
        loop = lambda x: x / x.amax(dim=(1, 2, 3), keepdim=True)  # noqa: E731
        model = changing(loop)()
        with pytest.warns(UserWarning, match=r"RestorationLogger shows nothing.*view"):
            trainer(tmp_path, max_epochs=2, callbacks=[RestorationLogger()]).fit(
                model, loader()
            )
        assert model.dira.steps == 12

    @pytest.mark.parametrize("how", ["none", "repeats"])
    def test_validation_that_needs_no_help(self, how: str, tmp_path) -> None:
        data = self.data(how)
        kind = changing(LOOPS[how])
        model, fit = kind(), trainer(tmp_path, max_epochs=1, num_sanity_val_steps=0)
        fit.fit(model, DataLoader(data, 4), DataLoader(data, 4))
        fit.save_checkpoint(tmp_path / "end.ckpt")
        loaded = kind.load_from_checkpoint(tmp_path / "end.ckpt", weights_only=False)
        for each in (model, loaded):
            ((found,),) = (trainer(tmp_path).validate(each, DataLoader(data, 24)),)
            views = next(iter(DataLoader(data, 24)))[0]
            restored = each.dira.restore(LOOPS[how](views[0]))
            expected = (restored - views.target).square().mean()
            assert found["held_out"] == pytest.approx(expected.item(), rel=1e-4)

    @pytest.mark.parametrize("how", ["normalises", "both"])
    @pytest.mark.parametrize("said", [False, True])
    def test_validation_that_has_to_say_it(
        self, how: str, said: bool, tmp_path
    ) -> None:
        """Found: a wrong number after loading, and no error."""
        data = self.data(how)
        kind = changing(LOOPS[how], said=said)
        model, fit = kind(), trainer(tmp_path, max_epochs=1)
        fit.fit(model, DataLoader(data, 4))
        fit.save_checkpoint(tmp_path / "end.ckpt")
        loaded = kind.load_from_checkpoint(tmp_path / "end.ckpt", weights_only=False)
        for each in (model, loaded):
            with pytest.raises(RuntimeError, match="view=x"):
                trainer(tmp_path).validate(each, DataLoader(data, 4))

    def test_a_loaded_model_needs_no_optimiser(self, tmp_path) -> None:
        """Found: a warning that none was attached."""
        model = changing(lambda x: x)()
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="DiRA")
            trainer(tmp_path).validate(model, loader())


class Host(SimSiam):
    """Restores by itself, from a view that the loop distorts."""

    def training_step(self, batch, index):
        clean = batch[0][0]
        view = clean * (torch.rand_like(clean) > 0.5)
        restored = F.interpolate(self.backbone[0](view)[:, :3], clean.shape[2:])
        loss = F.mse_loss(restored, clean)
        return {"loss": loss, "restored": restored, "target": clean, "view": view}


class TestHosts:
    @pytest.mark.parametrize("start", [0, 3])
    def test_a_conditional_critic(self, start: int, tmp_path) -> None:
        """Found: the mixin had no way to say what it sees."""

        class DiRAHost(DiRAMixin, Host):
            def configure_dira(self) -> Adversary:
                return Adversary(
                    self.backbone,
                    target_channels=3,
                    conditional=True,
                    adversarial_start=start,
                )

        model = DiRAHost()
        trainer(tmp_path, max_epochs=1).fit(model, loader())
        assert model.dira.components.discriminator > 0

    @pytest.mark.parametrize("callback", [RestorationLogger, CollapseWatch])
    def test_callbacks_refuse_them_before_the_first_step(
        self, callback, tmp_path
    ) -> None:
        """Found: at the end of the tenth epoch."""

        class DiRAHost(DiRAMixin, Host):
            def configure_dira(self) -> Adversary:
                return Adversary(self.backbone, target_channels=3)

        model = DiRAHost()
        settings = dict(max_epochs=1, callbacks=[callback(every_n_epochs=10)])
        with pytest.raises(RuntimeError, match="leave this callback out"):
            trainer(tmp_path, **settings).fit(model, loader())
        assert model.dira.steps == 0
        with pytest.raises(RuntimeError, match="has no `dira`"):
            trainer(tmp_path, **settings).fit(SimSiam(), loader())
