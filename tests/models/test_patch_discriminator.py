from __future__ import annotations

import pytest
import torch
from torch import nn

from lightly_dira import PatchDiscriminator


def test_published_architecture() -> None:
    torch.manual_seed(0)
    critic = PatchDiscriminator()
    convolutions = [m for m in critic.modules() if isinstance(m, nn.Conv2d)]
    assert [c.out_channels for c in convolutions] == [64, 128, 256, 512, 1]
    assert [c.stride[0] for c in convolutions] == [2, 2, 2, 1, 1]
    assert all(c.kernel_size == (3, 3) and c.padding == (1, 1) for c in convolutions)
    weights = torch.cat([c.weight.flatten() for c in convolutions])
    assert abs(weights.mean()) < 1e-4
    assert abs(weights.std() - 0.02) < 1e-4
    norms = [m for m in critic.modules() if isinstance(m, nn.GroupNorm)]
    assert [n.num_channels for n in norms] == [128, 256, 512]
    assert not any(n.affine or n.num_groups != n.num_channels for n in norms)
    assert critic(torch.rand(1, 1, 224, 224)).shape == (1, 1, 28, 28)


def test_equals_the_layers_by_hand() -> None:
    critic = PatchDiscriminator(3)
    x = images = torch.rand(2, 3, 40, 40)
    convolutions = [m for m in critic.modules() if isinstance(m, nn.Conv2d)]
    for depth, convolution in enumerate(convolutions):
        x = torch.conv2d(
            x, convolution.weight, convolution.bias, convolution.stride, padding=1
        )
        if 0 < depth < 4:
            mean = x.mean(dim=(2, 3), keepdim=True)
            variance = x.var(dim=(2, 3), unbiased=False, keepdim=True)
            x = (x - mean) / (variance + 1e-5).sqrt()
        if depth < 4:
            x = torch.where(x > 0, x, 0.2 * x)
    torch.testing.assert_close(critic(images), x)


def test_logits_do_not_depend_on_the_batch() -> None:
    critic = PatchDiscriminator()
    images = torch.rand(3, 1, 32, 32)
    one_by_one = torch.cat([critic(image[None]) for image in images])
    torch.testing.assert_close(critic(images), one_by_one)


@pytest.mark.parametrize("size", [16, 17, 33])
def test_any_size(size: int) -> None:
    rows = -(-size // 8)
    assert PatchDiscriminator()(torch.rand(1, 1, size, size)).shape[2:] == (rows, rows)


@pytest.mark.parametrize(
    "options",
    [
        {"channels": (), "strides": ()},
        {"channels": (8, 8)},
        {"channels": (8,), "strides": (0,)},
        {"in_channels": 0},
    ],
)
def test_bad_arguments(options) -> None:
    with pytest.raises(ValueError, match="PatchDiscriminator"):
        PatchDiscriminator(**options)


@pytest.mark.parametrize("shape", [(1, 3, 32, 32), (1, 32, 32), (1, 1, 8, 32)])
def test_bad_images(shape) -> None:
    with pytest.raises(ValueError, match=r"PatchDiscriminator.*(got|larger)"):
        PatchDiscriminator()(torch.rand(shape))
