"""Colours of dense features: what they show, what they leave black."""

from __future__ import annotations

import pytest
import torch
import torchvision

from lightly_dira.evaluation.feature_picture import draw_features, principal_colours


def halves(dims: int = 2) -> torch.Tensor:
    """Two images whose left and right halves differ, with noise."""
    torch.manual_seed(0)
    images = 0.1 * torch.rand(2, 3, *(dims * [16]))
    images[..., :8] += torch.tensor([1.0, 0, 0]).reshape(3, *(dims * [1]))
    images[..., 8:] += torch.tensor([0, 0, 1.0]).reshape(3, *(dims * [1]))
    return images


@pytest.mark.parametrize("dims", [2, 3])
def test_what_features_tell_apart_has_other_colours(dims: int) -> None:
    images = halves(dims)
    colours = principal_colours(lambda x: [x], images)
    assert colours.shape == images.shape
    assert ((colours >= 0) & (colours <= 1)).all()
    first = colours[:, 0]
    assert first[..., :8].max() < first[..., 8:].min() or (
        first[..., :8].min() > first[..., 8:].max()
    )


def test_long_features_do_not_hide_others() -> None:
    """A map of many large channels of noise counts as much as one of three."""
    images = halves()
    noise = 100 * torch.randn(1, 64, 1, 1).expand(1, 64, 16, 16)
    colours = principal_colours(lambda x: [x, noise], images)
    first = colours[:, 0]
    assert (first[..., :8].mean() - first[..., 8:].mean()).abs() > 0.4


def test_background_is_black_and_left_out() -> None:
    images = halves()
    where = torch.ones(2, 16, 16, dtype=torch.bool)
    where[:, :4] = False
    images[:, :, :4] = 50 * torch.rand(2, 3, 4, 16)
    colours = principal_colours(lambda x: [x], images, where)
    assert (colours[:, :, :4] == 0).all()
    expected = principal_colours(lambda x: [x], images[:, :, 4:])
    assert colours[:, :, 4:].sub(expected).abs().mean() < 0.05


def test_black_images_stay_black() -> None:
    """Found: one of them was an error of scikit-learn's."""
    images = halves()
    where = torch.ones(2, 16, 16, dtype=torch.bool)
    where[1] = False
    colours = principal_colours(lambda x: [x], images, where)
    assert (colours[1] == 0).all()
    assert (colours[0] > 0).any()
    assert (principal_colours(lambda x: [x], images, where & False) == 0).all()


def test_an_encoder_is_left_as_it_is() -> None:
    backbone = torchvision.models.resnet18().train()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    images = torch.rand(2, 3, 32, 32)
    first, again = (principal_colours(backbone, images) for _ in range(2))
    assert first.equal(again)
    assert backbone.training
    assert all(value.equal(before[n]) for n, value in backbone.state_dict().items())


@pytest.mark.parametrize("dims", [2, 3])
def test_draw_features(dims: int) -> None:
    images = halves(dims)
    encoders = {"untrained": lambda x: [x], "DiRA": lambda x: [x.flip(-1)]}
    figure = draw_features(encoders, images, images)
    titles = [axis.get_title() for axis in figure.axes]
    assert titles[:3] == ["image", "untrained", "DiRA"]
    assert len(figure.axes) == 6
