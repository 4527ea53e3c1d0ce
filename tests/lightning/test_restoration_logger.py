"""Pictures of what is restored reach loggers or files."""

from __future__ import annotations

import pytest
import pytorch_lightning as pl
import torch
from lightning_modules import DiRASimSiam, loader, trainer
from PIL import Image

from lightly_dira.lightning import RestorationLogger

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pytorch_lightning")


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
