"""The state of a run: buffers, and one tensor for all that is none."""

from __future__ import annotations

import copy

import pytest
import torch
from followed import made, train
from lightly.loss import DINOLoss, NTXentLoss
from lightning_modules import DiRASimSiam, assert_same
from loops import make_views
from timm.utils import ModelEmaV2, ModelEmaV3
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from lightly_dira import DiRA
from lightly_dira.training.state import buffers_of, load_buffers


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
        with pytest.raises(ValueError, match=r"buffer \S*bank .* \(8, 4\)"):
            load_buffers(NTXentLoss(memory_bank_size=(16, 4)), saved)

    def test_of_a_size_not_yet_known(self) -> None:
        saved = buffers_of(NTXentLoss(memory_bank_size=(8, 4)))
        criterion = NTXentLoss(memory_bank_size=(8, 4))
        # In Lightly 1.5.13 the criterion is the bank itself.
        getattr(criterion, "memory_bank", criterion).bank = torch.empty(0)
        load_buffers(criterion, saved)
        assert_same(buffers_of(criterion), saved)


class TestStateOfTensors:
    """Found: a dict in the state, at which averages and safetensors failed."""

    def test_tensors_of_the_same_shapes_throughout(self) -> None:
        criterion = nn.BatchNorm1d(3)
        run = made(criterion=criterion)
        before = run[2].state_dict()
        train(*run)
        after = run[2].state_dict()
        assert list(before) == list(after)
        for name, value in after.items():
            assert isinstance(value, torch.Tensor)
            assert value.shape == before[name].shape
            assert value.dtype == before[name].dtype

    def test_safetensors(self) -> None:
        safetensors = pytest.importorskip("safetensors.torch")
        run = made(restorative_start=1)
        train(*run)
        again = made(restorative_start=1)
        saved = safetensors.save(run[2].state_dict())
        again[2].load_state_dict(safetensors.load(saved))
        assert again[2].steps == 3
        assert again[2].stage == run[2].stage
        again[0].load_state_dict(run[0].state_dict())
        for twin in (run, again):
            torch.manual_seed(1)
            train(*twin)
        for one, other in zip(run[2].parameters(), again[2].parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0)

    @pytest.mark.parametrize("kind", [ModelEmaV2, ModelEmaV3])
    def test_averages_of_timm(self, kind) -> None:
        backbone, optimizer, dira = made()
        model = nn.ModuleDict(dict(backbone=backbone, dira=dira))
        average = kind(model, decay=0.5)
        for _ in range(3):
            train(backbone, optimizer, dira, 1)
            average.update(model)
        assert dira.steps == 3

    def test_averages_by_hand(self) -> None:
        run = made()
        average = copy.deepcopy(run[2].state_dict())
        train(*run)
        for name, value in run[2].state_dict().items():
            if value.is_floating_point():
                average[name].lerp_(value, 0.5)
            else:
                average[name].copy_(value)
        again = made()[2]
        again.load_state_dict(average)
        assert again.steps == 3

    def test_averages_that_are_not_possible(self) -> None:
        state = made()[2].state_dict()
        half = {name: value.half() for name, value in state.items()}
        with pytest.raises(ValueError, match="copy those of integers"):
            made()[2].load_state_dict(half)

    def test_averages_of_torch(self) -> None:
        backbone, optimizer, dira = made()
        model = nn.ModuleDict(dict(backbone=backbone, dira=dira))
        average = AveragedModel(
            model, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=True
        )
        train(backbone, optimizer, dira)
        average.update_parameters(model)
        average.load_state_dict(copy.deepcopy(average.state_dict()))

    def test_accelerate(self, tmp_path) -> None:
        accelerate = pytest.importorskip("accelerate")
        backbone, optimizer, dira = made()
        accelerator = accelerate.Accelerator(cpu=True)
        accelerator.prepare(backbone, dira)
        train(backbone, optimizer, dira)
        accelerator.save_state(tmp_path)
        train(backbone, optimizer, dira)
        accelerator.load_state(tmp_path)
        assert dira.steps == 3

    def test_of_another_critic(self) -> None:
        state = made(conditional=True)[2].state_dict()
        with pytest.raises(RuntimeError, match=r"size mismatch for discriminator"):
            made()[2].load_state_dict(state)

    def test_adam_moves_with_the_critic(self) -> None:
        backbone, optimizer, dira = made()
        train(backbone, optimizer, dira)
        backbone.double()
        dira.double()
        moments = [
            value
            for state in dira._discriminator_step.adam.state.values()
            for name, value in state.items()
            if name != "step"
        ]
        assert moments
        assert all(value.dtype == torch.float64 for value in moments)
        for views in (make_views(2).to(torch.float64),):
            dira(backbone(views[0]).mean(), views).backward()
            optimizer.step()
        assert dira.steps == 4
