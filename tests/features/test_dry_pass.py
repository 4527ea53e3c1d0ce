"""The dry pass: it changes nothing, and knows what depends on weights."""

from __future__ import annotations

import copy

import pytest
import torch
from methods import tiny_backbone
from torch import Tensor, nn
from torch.nn import functional as F

from lightly_dira import DiRA, DiRAViews
from lightly_dira.features import FeaturePyramid
from lightly_dira.features.compiled_passes import CAN_TRACE


class Branches(nn.Module):
    """Layers beside a branch that carries the image itself, in one form or another."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.first, self.second = nn.Identity(), nn.Identity()
        self.side = nn.Conv2d(3, 8, 3, 2, 1)
        self.b = nn.Conv2d(8, 16, 3, 2, 1)
        self.c = nn.Conv2d(16 + 3 * (how == "pooled"), 16, 3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        stem = self.stem(x)
        if self.how == "dropped out":  # as LoRA does in front of its weights
            stem = stem + self.side(self.first(x))
        elif self.how == "normalised":
            stem = stem + self.side(self.first((x - 0.5) / 0.2))
        elif self.how == "in two steps":
            stem = stem + self.side(self.second(self.first(x).flip(-1)))
        coarse = self.b(stem)
        if self.how == "pooled":  # images are given again at a coarser stage
            image = self.second(F.avg_pool2d(self.first(x), 4))
            coarse = torch.cat([coarse, image], dim=1)
        return self.c(coarse).mean((2, 3))


@pytest.mark.parametrize("how", ["dropped out", "normalised", "in two steps", "pooled"])
@pytest.mark.parametrize("frozen", [False, True])
def test_the_image_is_no_map(how: str, frozen: bool) -> None:
    """Found: the distorted image was the finest map."""
    backbone = Branches(how).requires_grad_(not frozen)
    pyramid = FeaturePyramid(backbone)
    assert not {"first", "second"} & set(pyramid.layers)
    assert pyramid.strides == [2, 4, 8]
    assert [p.requires_grad for p in backbone.parameters()] == [not frozen] * 8


def test_lora() -> None:
    peft = pytest.importorskip("peft")
    backbone = nn.Sequential()
    for name, part in zip("abc", tiny_backbone()[:3], strict=True):
        backbone.add_module(name, part)
    config = peft.LoraConfig(target_modules=["a.0", "b.0"], lora_dropout=0.1, r=2)
    adapted = peft.get_peft_model(backbone, config).base_model.model
    pyramid = FeaturePyramid(adapted)
    assert pyramid.strides == [2, 4, 8]
    image = torch.rand(2, 3, 32, 32)
    assert all(each.shape[2] < 32 for each in pyramid(image))


def test_maps_made_without_gradients() -> None:
    """A stem within `no_grad` still gives maps."""

    class Stem(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = tiny_backbone()[:3]

        def forward(self, x):
            with torch.no_grad():
                x = self.parts[0](x)
            return self.parts[1:](x)

    assert FeaturePyramid(Stem()).strides == [2, 4, 8]


class Unruly(nn.Module):
    """Changes its buffers whenever it is called."""

    def __init__(self) -> None:
        super().__init__()
        self.net = tiny_backbone()
        self.register_buffer("written", torch.zeros(3))
        self.register_buffer("resized", torch.zeros(0))
        self.register_buffer("replaced", torch.zeros(2))
        self.register_buffer("missing", None)
        self.register_buffer("of_numbers", torch.tensor(0), persistent=False)

    def forward(self, x):
        self.written += 1
        self.resized.resize_(4).fill_(1)
        self.replaced = torch.ones(5)
        self.missing = torch.ones(1)
        self.of_numbers += 1
        return self.net(x)


def test_buffers_stay_the_same_tensors() -> None:
    """Found: those that are resized or replaced were not restored."""
    backbone = Unruly()
    before = dict(backbone._buffers)
    values = {n: None if b is None else b.clone() for n, b in before.items()}
    FeaturePyramid(backbone)
    for name, buffer in backbone._buffers.items():
        assert buffer is before[name]
        if buffer is not None:
            assert torch.equal(buffer, values[name])


def test_quantised_for_training() -> None:
    """Found: 36 buffers of observers were changed."""
    quantization = pytest.importorskip("torch.ao.quantization")
    backbone = tiny_backbone().train()
    backbone.qconfig = quantization.get_default_qat_qconfig("fbgemm")
    quantization.prepare_qat(backbone, inplace=True)
    before = copy.deepcopy(backbone.state_dict())
    DiRA(backbone)
    for name, value in backbone.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_a_graph_that_waits_for_its_backward_pass() -> None:
    """Found: the statistics counted as changed, and the pass failed."""
    backbone = tiny_backbone()
    loss = backbone(torch.rand(2, 3, 32, 32)).mean()
    DiRA(backbone)
    loss.backward()


def test_no_value_is_kept_for_a_backward_pass(monkeypatch) -> None:
    kept = []
    monkeypatch.setattr(
        "lightly_dira.features.dry_pass._nothing",
        lambda value: (kept.append(value.numel()), torch.empty(0))[1],
    )
    FeaturePyramid(tiny_backbone())
    assert kept


@pytest.mark.skipif(CAN_TRACE, reason="hooks are compiled from PyTorch 2.7 on")
def test_hints_for_compilers() -> None:
    backbone = tiny_backbone()
    dira = DiRA(backbone)
    torch._dynamo.reset()
    compiled = torch.compile(backbone, fullgraph=True, backend="eager")
    with pytest.raises(torch._dynamo.exc.Unsupported) as found:
        compiled(torch.rand(2, 3, 32, 32))
    reasons = "lightly-dira watches this module" in str(found.value)
    assert reasons or "reason" not in str(found.value)
    assert dira.features.backbone is backbone


@pytest.mark.parametrize("how", ["quantised", "exported"])
def test_copies_that_others_make(how: str) -> None:
    """The error says why a copy is not watched."""
    backbone = tiny_backbone().train()
    dira = DiRA(backbone)
    views = DiRAViews(torch.rand(2, 2, 3, 32, 32), torch.rand(2, 1, 32, 32))
    if how == "quantised":
        quantization = pytest.importorskip("torch.ao.quantization")
        backbone.qconfig = quantization.get_default_qat_qconfig("fbgemm")
        twin = quantization.prepare_qat(backbone)
    else:
        twin = torch.export.export(backbone, (views[0],), strict=False).module()
    with pytest.raises(RuntimeError, match=r"prepare_qat.*torch\.export"):
        dira(twin(views[0]).mean(), views)
