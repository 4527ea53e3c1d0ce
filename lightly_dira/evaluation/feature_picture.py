"""What an encoder tells apart, as colours: principal components of dense features."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from lightly_dira.core.extras import extra
from lightly_dira.core.modes import evaluating
from lightly_dira.evaluation.dense import Features, encode_pixels
from lightly_dira.features.pyramid import FeaturePyramid
from lightly_dira.transforms.preview import orthogonal_slices

with extra("evaluation"):
    from sklearn.decomposition import PCA
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import QuantileTransformer

# Pixels, of all images together, that the components are found from.
_FITTED = 20_000
# Grey levels up to this are background.
_BLACK = 0.02


def principal_colours(
    backbone: nn.Module | Features,
    images: Tensor,
    where: Tensor | None = None,
    *,
    seed: int = 0,
) -> Tensor:
    """Returns the first three principal components of each pixel's features as colours.

    Features are the maps of all resolutions, as the dense probe sees them, each of
    length 1 at a pixel, so that maps of many channels do not hide the others. What the
    encoder tells apart has other colours; which colours, means nothing. Components are
    ranked, so that their values spread evenly.

    Args:
        backbone: As in `encode_pixels`.
        images: (N, C, H, W), or volumes (N, C, D, H, W), as the encoder takes them.
        where: Pixels to colour, Boolean, (N, H, W) or (N, D, H, W); others are black.
            An empty background would have most of the colours.
        seed: Seed of the choice of pixels that the components are found from.

    Returns:
        Red, green and blue in [0, 1], (N, 3, H, W) or (N, 3, D, H, W).

    Examples:
        >>> import torch, torchvision
        >>> from lightly_dira.evaluation.feature_picture import principal_colours
        >>> images = torch.rand(2, 3, 64, 64)
        >>> principal_colours(torchvision.models.resnet18(), images).shape
        torch.Size([2, 3, 64, 64])
    """
    sides = images.shape[2:]
    count = math.prod(sides)
    if where is None:
        where = torch.ones(len(images), *sides, dtype=torch.bool)
    features, device = backbone, images.device
    if isinstance(backbone, nn.Module):
        features = FeaturePyramid(backbone)
        device = next((p.device for p in backbone.parameters()), device)

    def of_length_1(batch: Tensor) -> list[Tensor]:
        maps = features(batch.to(device))
        return [F.normalize(each.float(), dim=1).cpu() for each in maps]

    # A pixel's "class" is its number, which says where it lies.
    numbers = torch.arange(count).reshape(1, *sides).expand(len(images), *sides)
    random, pixels = np.random.default_rng(seed), []
    inside = where.flatten(1)
    modules = [backbone] if isinstance(backbone, nn.Module) else []
    for image, number, own in zip(images, numbers, inside, strict=True):
        one = TensorDataset(image[None], number[None])
        with evaluating(*modules):
            values, places = encode_pixels(of_length_1, one, pixels=count).tensors
        pixels.append(values[0, places[0].argsort()][own].numpy())
    drawn = [random.permutation(each)[: _FITTED // len(images)] for each in pixels]
    colours = torch.zeros(len(images), count, 3)
    if sum(map(len, drawn)) < 3:  # nothing to tell apart
        return colours.movedim(2, 1).reshape(len(images), 3, *sides)
    model = make_pipeline(
        PCA(3, random_state=seed),
        QuantileTransformer(n_quantiles=100, random_state=seed),
    ).fit(np.concatenate(drawn))
    for own, each, found in zip(inside, pixels, colours, strict=True):
        if len(each):
            found[own] = torch.from_numpy(model.transform(each)).float()
    return colours.movedim(2, 1).reshape(len(images), 3, *sides)


def draw_features(
    encoders: Mapping[str, nn.Module | Features], images: Tensor, shown: Tensor
) -> Any:
    """Draws images, and beside them what each encoder tells apart.

    Args:
        encoders: Encoders by the headings of their columns.
        images: Images or volumes as the encoders take them, a row for each.
        shown: The same as they are shown, (N, C, ...), in [0, 1]. What is black there
            is not coloured.

    Returns:
        A `matplotlib.figure.Figure`; of volumes three slices through the middle.
    """
    with extra("examples"):
        from matplotlib.figure import Figure

    columns = {"image": shown.mean(dim=1, keepdim=True)}
    where = columns["image"][:, 0] > _BLACK
    for name, encoder in encoders.items():
        columns[name] = principal_colours(encoder, images, where)
    if images.ndim == 5:
        columns = {name: orthogonal_slices(each) for name, each in columns.items()}
    height, width = columns["image"].shape[2:]
    figure = Figure(
        figsize=(2 * len(columns), 2 * len(images) * height / width + 0.3),
        layout="constrained",
    )
    axes = figure.subplots(len(images), len(columns), squeeze=False)
    for column, (name, pictures) in zip(axes.T, columns.items(), strict=True):
        column[0].set_title(name)
        for axis, picture in zip(column, pictures, strict=True):
            axis.imshow(picture.movedim(0, -1).numpy(), cmap="gray", vmin=0, vmax=1)
            axis.set(xticks=[], yticks=[])
    return figure
