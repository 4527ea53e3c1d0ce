"""Evaluation for a while, without a trace in any submodule."""

from __future__ import annotations

import pytest
from torch import nn

from lightly_dira.core.modes import evaluating


class Merging(nn.Linear):
    """As LoRA's layers, which merge weights when the mode is set by `train`."""

    def train(self, mode: bool = True) -> nn.Module:
        self.weight.data += 1
        return super().train(mode)


@pytest.mark.parametrize("fails", [False, True])
def test_every_submodule_gets_its_own_mode_back(fails: bool) -> None:
    first = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2), Merging(2, 2))
    second = nn.Dropout().eval()
    first[1].eval()
    weight = first[2].weight.detach().clone()
    before = [module.training for module in (*first.modules(), second)]
    assert before == [True, True, False, True, False]
    try:
        with evaluating(first, second):
            assert not any(module.training for module in (*first.modules(), second))
            if fails:
                raise KeyError
    except KeyError:
        assert fails
    assert [module.training for module in (*first.modules(), second)] == before
    assert weight.equal(first[2].weight)
