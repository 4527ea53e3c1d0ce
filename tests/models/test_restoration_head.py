from __future__ import annotations

import math

import pytest
import segmentation_models_pytorch as smp
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightly_dira import RestorationHead
from lightly_dira.models import decoder_block


def maps(channels, sizes, batch: int = 2):
    return [
        torch.rand(batch, c, *([s] if isinstance(s, tuple) else [(s, s)])[0])
        for c, s in zip(channels, sizes, strict=True)
    ]


@pytest.mark.parametrize("size", [64, 65, 97])
@pytest.mark.parametrize(
    "encoder", ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"]
)
def test_equals_segmentation_models_pytorch(encoder: str, size: int) -> None:
    torch.manual_seed(0)
    unet = smp.Unet(encoder, encoder_weights=None, classes=1, activation="sigmoid")
    head = RestorationHead(unet.encoder.out_channels[1:])
    names = iter(unet.decoder.state_dict())
    weights = {}
    for name, value in head.blocks.state_dict().items():
        theirs = next(names)
        assert theirs.rsplit(".", 1)[1] == name.rsplit(".", 1)[1]
        weights[name] = unet.decoder.state_dict()[theirs]
        assert weights[name].shape == value.shape
    head.blocks.load_state_dict(weights)
    head.to_image.load_state_dict(unet.segmentation_head[0].state_dict())
    images = torch.rand(2, 3, size, size)
    unet.eval(), head.eval()
    with torch.no_grad():
        features = unet.encoder(images)
        expected = unet.segmentation_head(unet.decoder(features))
        restored = head(features[1:], (size, size))
    torch.testing.assert_close(restored, expected, rtol=0, atol=1e-5)


def test_range_and_default_size() -> None:
    head = RestorationHead([8, 16], decoder_channels=(8, 4))
    restored = head([10 * m for m in maps([8, 16], [16, 8])])
    assert restored.shape == (2, 1, 32, 32)
    assert 0 <= restored.min() < restored.max() <= 1


@pytest.mark.parametrize("size", [(32, 32), (33, 31), (30, 47)])
def test_any_size(size: tuple[int, int]) -> None:
    h, w = size
    halves = [(-(-h // s), -(-w // s)) for s in (4, 8)]
    head = RestorationHead([8, 16], decoder_channels=(8, 4, 4), out_channels=3)
    assert head(maps([8, 16], halves), size).shape == (2, 3, h, w)


def test_full_resolution_maps_are_not_enlarged() -> None:
    head = RestorationHead([4, 8], decoder_channels=(8,), activation=None)
    assert head(maps([4, 8], [16, 8]), (16, 16)).shape == (2, 1, 16, 16)


def pass_through(head: RestorationHead) -> RestorationHead:
    """Lets the first channel of the coarsest map through every convolution."""
    for module in head.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.zeros_(module.weight)
            module.weight.data[0, 0, 1, 1] = 1
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 0.0
    return head.eval()


@pytest.mark.parametrize("size", [32, 33, 47, 49, 63, 64, 65, 97])
@pytest.mark.parametrize("strides", [(1, 2, 4, 8), (2, 4, 8), (4, 8), (8, 16, 32)])
def test_pixels_stay_in_place(strides: tuple[int, ...], size: int) -> None:
    """Every pixel, at the border of odd images too, comes from where it lies."""
    doublings = int(math.log2(strides[-1]))
    head = pass_through(
        RestorationHead(
            [2] * len(strides),
            decoder_channels=[2] * doublings,
            activation=None,
            strides=strides,
        )
    )
    features = maps([2] * len(strides), [-(-size // stride) for stride in strides])
    places = torch.arange(size) // strides[-1]
    with torch.no_grad():
        restored = head(features, (size, size))
    expected = features[-1][:, :1][..., places, :][..., places]
    torch.testing.assert_close(restored, expected)


def test_maps_of_one_size_become_a_pyramid() -> None:
    """Each is doubled as often as brings it to the resolution of its block."""
    head = RestorationHead([6] * 4, decoder_channels=(8, 5, 4, 3), strides=[16] * 4)
    skips = []
    for block in head.blocks:
        block.register_forward_pre_hook(lambda module, args: skips.append(args[1]))
    assert head(maps([6] * 4, [(3, 2)] * 4), (48, 32)).shape == (2, 1, 48, 32)
    shapes = [None if skip is None else tuple(skip.shape[1:]) for skip in skips]
    assert shapes == [(8, 6, 4), (5, 12, 8), (4, 24, 16), None]


def test_every_position_of_a_patch_is_decoded_for_itself() -> None:
    """A token's 16 x 16 pixels are no mosaic: neither of pixels nor of blocks."""
    torch.manual_seed(0)
    head = RestorationHead([64] * 4, decoder_channels=(64, 32, 16, 8), strides=[16] * 4)
    features = [torch.randn(1, 64, 3, 3) for _ in range(4)]
    patch = head.eval()(features, (48, 48))[0, 0, 16:32, 16:32]
    assert len(patch.flatten().unique()) == 256


@pytest.mark.parametrize("strides", [(2, 4, 8), (8, 8, 8)])
def test_every_parameter_is_trained(strides: tuple[int, ...]) -> None:
    head = RestorationHead([4, 8, 16], strides=strides)
    head(maps([4, 8, 16], [32 // stride for stride in strides])).mean().backward()
    assert all(p.grad is not None for p in head.parameters())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(encoder_channels=[8]), "at least two feature maps"),
        (dict(encoder_channels=[8] * 4, decoder_channels=(8, 8)), "at least 3"),
        (dict(encoder_channels=[8, 0]), "at least 1"),
        (dict(encoder_channels=[8, 8], activation="tanh"), "'sigmoid' or None"),
        (dict(encoder_channels=[8, 8], strides=[4, 2]), r"2 strides, finest.*\(4, 2"),
        (dict(encoder_channels=[8, 8], strides=[4]), "2 strides"),
    ],
)
def test_bad_arguments(arguments, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RestorationHead(**arguments)


def test_bad_features() -> None:
    head = RestorationHead([4, 8])
    with pytest.raises(ValueError, match=r"\[4, 8\] channels.*\(2, 8, 4, 4\)"):
        head(maps([8, 4], [4, 2]))


class TestSameInAnotherWay:
    """What is faster, or takes less memory, gives the same image and gradients."""

    def run(self, change, sizes=((64, 64), (32, 32), (16, 16)), **options):
        torch.manual_seed(0)
        dims = len(sizes[0])
        head = RestorationHead(
            (4, 6, 8), spatial_dims=dims, decoder_channels=(8, 6, 4), **options
        )
        head = head.double()
        maps = [
            torch.rand(2, c, *s, dtype=torch.float64, requires_grad=True)
            for c, s in zip((4, 6, 8), sizes, strict=True)
        ]
        change(head)
        for _ in range(2):
            restored = head(maps, [2 * side for side in sizes[0]])
            restored.square().mean().backward()
        leaves = [*maps, *head.parameters()]
        return [restored, *(leaf.grad for leaf in leaves), *head.buffers()]

    @pytest.mark.parametrize(
        ("sizes", "fast"),
        [
            (((64, 64), (32, 32), (16, 16)), 3),
            # An odd map is not the double of the one before.
            (((65, 65), (33, 33), (17, 17)), 1),
            (((16, 12), (16, 6), (8, 6)), 3),
            (((8, 16, 12), (4, 8, 6), (2, 4, 3)), 3),
            (((4, 16, 12), (4, 8, 6), (4, 4, 3)), 3),
            (((9, 10, 7), (5, 5, 4), (3, 3, 2)), 1),
        ],
    )
    def test_convolved_before_doubling(self, sizes, fast: int, monkeypatch) -> None:
        counted, enlarge = [], decoder_block.convolve_enlarged
        monkeypatch.setattr(decoder_block, "_FEW", {2: 0, 3: 0})

        def counting(x: Tensor, *arguments) -> Tensor:
            counted.append(tuple(x.shape[2:]))
            return enlarge(x, *arguments)

        monkeypatch.setattr(decoder_block, "convolve_enlarged", counting)
        found = self.run(lambda head: None, sizes)
        assert len(counted) == 2 * fast

        def doubled_first(block, x: Tensor, skip: Tensor | None, size) -> Tensor:
            x = F.interpolate(x, size=size)
            x = x if skip is None else torch.cat([x, skip], dim=1)
            return block.conv2(block.conv1(x))

        monkeypatch.setattr(decoder_block.DecoderBlock, "forward", doubled_first)
        for one, other in zip(found, self.run(lambda head: None, sizes), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)

    def test_checkpoint(self) -> None:
        passes = []

        def watch(head: RestorationHead) -> None:
            norm = head.blocks[0].conv1[1]
            norm.register_forward_hook(lambda *hooked: passes.append(hooked))

        kept = self.run(watch)
        assert len(passes) == 2
        again = self.run(watch, checkpoint=True)
        assert len(passes) == 2 + 4
        for one, other in zip(kept, again, strict=True):
            assert torch.equal(one, other)
