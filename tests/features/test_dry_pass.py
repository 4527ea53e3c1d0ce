"""The dry pass: it changes nothing, and knows what depends on weights."""

from __future__ import annotations

import copy

import pytest
import torch
import torchvision
from maps_by_hand import images
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


class TestDiscovery:
    def test_grey_input(self) -> None:
        assert FeaturePyramid(tiny_backbone(in_channels=1)).channels == [4, 8, 16]

    def test_grey_images_repeated_inside(self) -> None:
        class Repeated(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.net = tiny_backbone()

            def forward(self, *, mask: Tensor | None = None, image: Tensor) -> Tensor:
                return self.net(image.repeat(1, 3, 1, 1))

        class Positional(Repeated):
            def forward(self, image: Tensor) -> Tensor:
                return super().forward(image=image)

        assert FeaturePyramid(Positional()).image_shape[0] == 1

    def test_no_images(self) -> None:
        with pytest.raises(ValueError, match=r"could not be run.*input_size"):
            FeaturePyramid(nn.Sequential(nn.Flatten(), nn.Linear(12, 3)))

    def test_failing_backbone_lists_what_came_by(self) -> None:
        backbone = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Linear(5, 5))
        with pytest.raises(
            ValueError, match=r"(?s)input_size.*\n  0: \(2, 4, 64, 96\)"
        ):
            FeaturePyramid(backbone)

    @pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
    @pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
    def test_script_modules(self) -> None:
        """Found: "unsupported operand type(s) for -: 'list' and 'dict'"."""
        traced = torch.jit.trace(tiny_backbone(), torch.rand(2, 3, 32, 32))
        for backbone in (traced, nn.Sequential(traced)):
            with pytest.raises(ValueError, match="ScriptModule or holds one"):
                FeaturePyramid(backbone)

    def test_wide_input_size(self) -> None:
        backbone = nn.Sequential(
            *tiny_backbone()[:3], nn.Flatten(), nn.Linear(16 * 4 * 6, 4)
        )
        assert FeaturePyramid(backbone, input_size=(32, 48)).strides == [2, 4, 8]

    def test_one_input_size_only(self) -> None:
        backbone = nn.Sequential(
            *tiny_backbone()[:3], nn.Flatten(), nn.Linear(16 * 6 * 6, 4)
        )
        with pytest.raises(ValueError, match="input_size"):
            FeaturePyramid(backbone)
        assert FeaturePyramid(backbone, input_size=48).strides == [2, 4, 8]

    def test_image_that_a_module_normalises_is_no_map(self) -> None:
        normalise = torchvision.transforms.Normalize([0.5] * 3, [0.5] * 3)
        pyramid = FeaturePyramid(
            nn.Sequential(nn.Dropout(), normalise, tiny_backbone())
        )
        assert pyramid.strides == [2, 4, 8]

    def test_buffers_and_merged_weights_stay(self) -> None:
        class Merging(nn.Conv2d):
            def train(self, mode: bool = True) -> nn.Module:
                self.weight.data += 1
                return super().train(mode)

        class Counting(nn.BatchNorm2d):
            def forward(self, x: Tensor) -> Tensor:
                self.num_batches_tracked += 1
                return super().forward(x)

        resnet = torchvision.models.resnet18()
        resnet.conv1, resnet.bn1 = Merging(3, 64, 7, 2, 3), Counting(64)
        torch.nn.utils.parametrizations.spectral_norm(resnet.layer1[0].conv1)
        before = copy.deepcopy(resnet.state_dict())
        dira = DiRA(resnet)
        dira.restore(images(size=64))
        after = resnet.state_dict()
        after["bn1.num_batches_tracked"] -= 1  # of restoring
        assert all(torch.equal(after[name], before[name]) for name in before)
