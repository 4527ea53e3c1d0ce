"""The encoder's collapse, and an adversary that wins, are seen."""

from __future__ import annotations

import pytest
import torch
from lightning_modules import DiRASimSiam, loader, trainer
from torch import Tensor, nn

from lightly_dira import DiRA, DiRALoss
from lightly_dira.core.modes import evaluating
from lightly_dira.lightning import CollapseWatch

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pytorch_lightning")


class TestCallbacks:
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

    def test_collapse_is_logged_and_warned_of_once(self, tmp_path) -> None:
        model = DiRASimSiam()
        nn.init.zeros_(model.backbone[2][1].weight)
        nn.init.ones_(model.backbone[2][1].bias)
        with pytest.warns(UserWarning, match="collapsed") as caught:
            self.watch(model, tmp_path)
        assert sum("collapsed" in str(w.message) for w in caught) == 1

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
