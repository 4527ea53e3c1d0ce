from __future__ import annotations

import pytest
import segmentation_models_pytorch as smp
import torch

from lightly_dira import RestorationHead


def maps(channels, sizes, batch: int = 2):
    return [
        torch.rand(batch, c, *([s] if isinstance(s, tuple) else [(s, s)])[0])
        for c, s in zip(channels, sizes, strict=True)
    ]


@pytest.mark.parametrize("size", [64, 65, 97])
@pytest.mark.parametrize("encoder", ["resnet18", "resnet50"])
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


def test_every_parameter_is_trained() -> None:
    head = RestorationHead([4, 8, 16])
    head(maps([4, 8, 16], [16, 8, 4])).mean().backward()
    assert all(p.grad is not None for p in head.parameters())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(encoder_channels=[8]), "at least two feature maps"),
        (dict(encoder_channels=[8] * 4, decoder_channels=(8, 8)), "at least 3"),
        (dict(encoder_channels=[8, 0]), "at least 1"),
        (dict(encoder_channels=[8, 8], activation="tanh"), "'sigmoid' or None"),
    ],
)
def test_bad_arguments(arguments, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RestorationHead(**arguments)


def test_bad_features() -> None:
    head = RestorationHead([4, 8])
    with pytest.raises(ValueError, match=r"\[4, 8\] channels.*\(2, 8, 4, 4\)"):
        head(maps([8, 4], [4, 2]))
