"""The dense probe: what a frozen encoder's feature maps know of every pixel."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from torch.nn import functional as F

Features = Callable[[Tensor], list[Tensor]]


def dense_probe(
    features: Features,
    train_images: Tensor,
    train_labels: Tensor,
    test_images: Tensor,
    test_labels: Tensor,
    *,
    pixels: int = 64,
    seed: int = 0,
) -> dict[int, float]:
    """Scores a per-pixel logistic regression on frozen feature maps.

    Pixels are drawn from every image, without replacement; the maps of all
    resolutions, interpolated at a pixel (bilinear), are its features. They are
    standardised and classified by scikit-learn's `LogisticRegression` (C = 0.1).

    Args:
        features: From images to maps (B, C_i, H_i, W_i): the `FeaturePyramid` of an
            encoder in evaluation mode. It is called without gradients.
        train_images: (N, C, H, W), as the encoder takes them.
        train_labels: Class of each pixel, (N, H, W) integers.
        test_images: (M, C, H, W).
        test_labels: (M, H, W).
        pixels: Pixels to draw from each image.
        seed: Seed of the draw.

    Returns:
        For every class but 0, the background, its Dice coefficient over the test
        pixels, ``2 |P & T| / (|P| + |T|)``, in [0, 1].

    Raises:
        ValueError: If images and labels do not fit together.

    Examples:
        >>> import torch, torchvision
        >>> from lightly_dira.evaluation.dense import dense_probe
        >>> from lightly_dira.features import FeaturePyramid
        >>> features = FeaturePyramid(torchvision.models.resnet18().eval())
        >>> images = torch.rand(4, 3, 32, 32)
        >>> labels = (images[:, 0] > 0.5).long()
        >>> list(dense_probe(features, images, labels, images, labels))
        [1]
    """
    random = np.random.default_rng(seed)
    x_train, y_train = _draw_pixels(
        features, train_images, train_labels, pixels, random
    )
    x_test, y_test = _draw_pixels(features, test_images, test_labels, pixels, random)
    model = make_pipeline(
        StandardScaler(), LogisticRegression(C=0.1, tol=1e-3, max_iter=1000)
    )
    predicted = model.fit(x_train, y_train).predict(x_test)
    classes = [int(label) for label in model.classes_ if label != 0]
    # The Dice coefficient is the F1 score.
    scores = f1_score(y_test, predicted, labels=classes, average=None)
    return dict(zip(classes, map(float, scores), strict=True))


@torch.no_grad()
def _draw_pixels(
    features: Features,
    images: Tensor,
    labels: Tensor,
    pixels: int,
    random: np.random.Generator,
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Returns features (P, C) and labels (P,) of pixels drawn from every image."""
    height, width = images.shape[2:]
    if labels.shape != (len(images), height, width):
        raise ValueError(
            f"dense_probe: images {tuple(images.shape)} need labels "
            f"{(len(images), height, width)}, got {tuple(labels.shape)}."
        )
    pixels = min(pixels, height * width)
    drawn = torch.from_numpy(
        np.stack([random.permutation(height * width)[:pixels] for _ in images])
    )
    # Centres of the pixels, (x, y), from 0 to 1 between the image's edges.
    centres = torch.stack(
        [(drawn % width + 0.5) / width, (drawn // width + 0.5) / height], dim=-1
    )
    grids = (2 * centres - 1).float()[:, None]
    samples = []
    for start in range(0, len(images), 16):
        batch = images[start : start + 16]
        grid = grids[start : start + 16].to(batch.device)
        maps = [
            F.grid_sample(m.float(), grid, padding_mode="border", align_corners=False)
            for m in features(batch)
        ]
        samples.append(torch.cat(maps, dim=1)[:, :, 0].movedim(1, 2).flatten(0, 1))
    chosen = labels.flatten(1).cpu().long().gather(1, drawn).flatten()
    return torch.cat(samples).cpu().numpy(), chosen.numpy()
