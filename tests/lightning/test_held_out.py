"""Callbacks that look at one batch, always the same."""

from __future__ import annotations

import pytest
import torch
from lightning_modules import DiRASimSiam, Images, SimSiam, loader, trainer
from torch.utils.data import DataLoader

from lightly_dira import Adversary
from lightly_dira.lightning import CollapseWatch, RestorationLogger
from lightly_dira.lightning.mixin import DiRAMixin

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pytorch_lightning")


class TestCallbacks:
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

    @pytest.mark.parametrize("callback", [RestorationLogger, CollapseWatch])
    def test_bad_arguments(self, callback, tmp_path) -> None:
        with pytest.raises(ValueError, match="every_n_epochs"):
            callback(every_n_epochs=0)
        with pytest.raises(ValueError, match="no restoration target"):
            callback([torch.rand(2, 3, 8, 8)])
        settings = dict(max_epochs=1, callbacks=[callback()])
        with pytest.raises(RuntimeError, match="has no `dira`"):
            trainer(tmp_path, **settings).fit(SimSiam(), loader())
