"""`dira` is made after the module, and nothing else shows of that."""

from __future__ import annotations

import inspect

import pytest
import torch
from lightning_modules import DiRASimSiam, SimSiam, loader, trainer

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

    def test_the_mixin_behind_the_method(self) -> None:
        """Found: trained without DiRA, in silence."""
        with pytest.raises(TypeError, match=r"class Wrong\(DiRAMixin, SimSiam\)"):

            class Wrong(SimSiam, DiRAMixin):
                pass


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


class TestSmallThings:
    def test_the_signature_stays(self) -> None:
        """Found: `inspect` saw the metaclass, and so did Lightning's command line."""
        assert inspect.signature(DiRASimSiam) == inspect.signature(SimSiam)
        assert list(inspect.signature(DiRASimSiam).parameters) == [
            "optimizers",
            "output",
        ]
