"""The dense probe: what a frozen encoder's feature maps know about each pixel."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset

from lightly_dira.core.extras import extra
from lightly_dira.core.modes import evaluating
from lightly_dira.features.pyramid import FeaturePyramid

with extra("evaluation"):
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import f1_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

Features = Callable[[Tensor], list[Tensor]]


@torch.no_grad()
def encode_pixels(
    backbone: nn.Module | Features,
    data: Dataset[Any],
    *,
    pixels: int = 64,
    seed: int = 0,
    batch_size: int = 16,
    num_workers: int = 0,
) -> TensorDataset:
    """Runs a frozen encoder over images or volumes and draws pixels from each.

    The features of a pixel are the maps of all resolutions, interpolated bilinearly at
    its centre.

    Args:
        backbone: Any network of images that has feature maps inside, run in evaluation
            mode, or a function from images to a list of maps (B, C_i, H_i, W_i).
        data: Items `(image, mask, ...)`, such as `Samples(..., target="mask")`.
        pixels: Pixels to draw from each image, without replacement.
        seed: Seed of the draw.
        batch_size: Images in a pass.
        num_workers: Processes that load images.

    Returns:
        Features (N, P, D) and classes (N, P) of P pixels of N images, as a data set.

    Raises:
        ValueError: If image and mask differ in size.

    Examples:
        >>> import torch, torchvision
        >>> from torch.utils.data import TensorDataset
        >>> from lightly_dira.evaluation.dense import encode_pixels
        >>> images = torch.rand(4, 3, 32, 32)
        >>> data = TensorDataset(images, (images[:, 0] > 0.5).long())
        >>> encoded = encode_pixels(torchvision.models.resnet18(), data)
        >>> encoded.tensors[0].shape
        torch.Size([4, 64, 1024])
    """
    modules = [backbone] if isinstance(backbone, nn.Module) else []
    device = next(
        (p.device for module in modules for p in module.parameters()),
        torch.device("cpu"),
    )
    features = FeaturePyramid(backbone) if isinstance(backbone, nn.Module) else backbone
    random = np.random.default_rng(seed)
    loader = DataLoader(data, batch_size=batch_size, num_workers=num_workers)
    values, classes = [], []
    with evaluating(*modules):
        for images, masks, *_ in loader:
            sides = images.shape[2:]
            if masks.shape != (len(images), *sides):
                raise ValueError(
                    f"encode_pixels: images {tuple(images.shape)} need masks "
                    f"{(len(images), *sides)}, got {tuple(masks.shape)}."
                )
            count = math.prod(sides)
            drawn = torch.from_numpy(
                np.stack([random.permutation(count)[:pixels] for _ in images])
            )
            # Centres of the pixels, (x, y) or (x, y, z), from 0 to 1 between the edges.
            places = zip(torch.unravel_index(drawn, sides), sides, strict=True)
            centres = [(place + 0.5) / side for place, side in places]
            grid = (2 * torch.stack(centres[::-1], dim=-1) - 1).float()
            ones = [1] * (len(sides) - 1)
            grid = grid.reshape(len(drawn), *ones, -1, len(sides)).to(device)
            at_pixels = [
                F.grid_sample(
                    m.float(), grid, padding_mode="border", align_corners=False
                )
                for m in features(images.to(device))
            ]
            values.append(torch.cat(at_pixels, dim=1).flatten(2).movedim(1, 2).cpu())
            classes.append(masks.flatten(1).long().gather(1, drawn))
    return TensorDataset(torch.cat(values), torch.cat(classes))


def dense_probe(
    train: TensorDataset,
    test: TensorDataset,
    *,
    C: float = 0.1,  # noqa: N803
) -> dict[int, float]:
    """Scores a per-pixel logistic regression on frozen feature maps.

    Features are standardised with the training set's mean and deviation. The result
    does not depend on a seed.

    Args:
        train: Features (N, P, D) and classes (N, P), from `encode_pixels`.
        test: The same for other images.
        C: scikit-learn's inverse strength of the penalty on weights, above 0.

    Returns:
        The Dice coefficient, ``2 |P & T| / (|P| + |T|)`` in [0, 1], over all test
        pixels together, for each class that they show or that is predicted for them,
        except 0, the background. A class that was not learnt from has 0.

    Raises:
        ValueError: If all training pixels are of one class.

    Examples:
        >>> import torch
        >>> from torch.utils.data import TensorDataset
        >>> from lightly_dira.evaluation.dense import dense_probe
        >>> features = torch.linspace(-1, 1, 60).reshape(3, 20, 1)
        >>> data = TensorDataset(features, (features[..., 0] > 0).long())
        >>> dense_probe(data, data)
        {1: 1.0}
    """
    (x_train, y_train), (x_test, y_test) = (
        (data.tensors[0].flatten(0, 1).numpy(), data.tensors[1].flatten().numpy())
        for data in (train, test)
    )
    if len(np.unique(y_train)) < 2:
        raise ValueError(
            "dense_probe: all training pixels are of one class. Draw more pixels or "
            "take images that show another."
        )
    model = make_pipeline(
        StandardScaler(), LogisticRegression(C=C, tol=1e-3, max_iter=1000)
    )
    predicted = model.fit(x_train, y_train).predict(x_test)
    classes = [int(label) for label in np.union1d(y_test, predicted) if label != 0]
    if not classes:
        return {}
    # The Dice coefficient is the F1 score.
    scores = f1_score(y_test, predicted, labels=classes, average=None)
    return dict(zip(classes, map(float, scores), strict=True))
