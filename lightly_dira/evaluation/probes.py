"""What a frozen encoder knows of whole images: a linear probe and nearest neighbours.

`encode` runs the encoder once. The probes work on its output, or on any part of it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from lightly_dira.core.extras import extra
from lightly_dira.core.modes import evaluating
from lightly_dira.core.tensors import tensors_in
from lightly_dira.evaluation.classes import check_labels
from lightly_dira.evaluation.scores import classification_scores
from lightly_dira.features.dry_pass import find_levels
from lightly_dira.features.maps_and_tokens import Level

with extra("evaluation"):
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler


@torch.no_grad()
def encode(
    backbone: nn.Module,
    data: Dataset[Any],
    *,
    batch_size: int = 64,
    num_workers: int = 0,
) -> TensorDataset:
    """Runs a frozen encoder over images.

    Args:
        backbone: Any network of images, run in evaluation mode. Maps, with their
            channels first or last, and tokens are averaged over positions. If there
            are several outputs, the last one is used. If its views were normalised:
            ``nn.Sequential(v2.Normalize(mean, std), backbone)``.
        data: Items `(image, target, ...)`, such as `Samples`, in [0, 1].
        batch_size: Images in a pass.
        num_workers: Processes that load images.

    Returns:
        Features (N, D) and targets (N,) or (N, L), as a data set.

    Examples:
        >>> import torch, torchvision
        >>> from torch.utils.data import TensorDataset
        >>> from lightly_dira.evaluation.probes import encode
        >>> images = TensorDataset(torch.rand(4, 3, 32, 32), torch.arange(4))
        >>> backbone = torchvision.models.resnet18()
        >>> backbone.fc = torch.nn.Identity()
        >>> encode(backbone, images).tensors[0].shape
        torch.Size([4, 512])
    """
    device = next((p.device for p in backbone.parameters()), torch.device("cpu"))
    loader = DataLoader(data, batch_size=batch_size, num_workers=num_workers)
    features, targets = [], []
    level = coarsest_level(backbone)
    with evaluating(backbone):
        for images, target, *_ in loader:
            output = backbone(images.to(device))
            features.append(pooled(output, images.shape[2:], level).cpu())
            targets.append(target)
    return TensorDataset(torch.cat(features), torch.cat(targets))


def coarsest_level(backbone: nn.Module) -> Level | None:
    """Returns how the coarsest map of a backbone is laid out, if it has maps."""
    try:
        return find_levels(backbone)[0][-1]
    except ValueError:
        return None


def pooled(output: Any, size: Sequence[int], level: Level | None) -> Tensor:
    """Turns whatever a backbone outputs into one vector for each image.

    Args:
        output: What it has output; of several tensors the last one counts.
        size: (H, W) or (D, H, W) of the images.
        level: See `coarsest_level`. Maps with their channels last and tokens are
            averaged over positions if they are laid out like it.
    """
    last: Tensor = list(tensors_in(output))[-1]
    if last.ndim > 2 and level is not None:
        with contextlib.suppress(RuntimeError):
            last = level.as_map(last, size)
    return last.float().flatten(2).mean(dim=2) if last.ndim > 3 else last.flatten(1)


def linear_probe(
    train: TensorDataset,
    test: TensorDataset,
    *,
    C: float = 0.1,  # noqa: N803
) -> dict[str, float]:
    """Scores a logistic regression on frozen features.

    Features are standardised with the training set's mean and deviation. Each of
    several findings gets its own regression. Nothing is random, hence no seed.

    Args:
        train: Features (N, D) and targets (N,) or (N, L), from `encode`.
        test: The same of other images.
        C: scikit-learn's inverse strength of the penalty on weights, above 0.

    Returns:
        The scores of `classification_scores`.

    Raises:
        ValueError: If targets are not whole numbers from 0 on, or 0 and 1 for findings.

    Examples:
        >>> import torch
        >>> from torch.utils.data import TensorDataset
        >>> from lightly_dira.evaluation.probes import linear_probe
        >>> features = torch.linspace(-1, 1, 20)[:, None]
        >>> data = TensorDataset(features, (features[:, 0] > 0).long())
        >>> linear_probe(data, data)["auc"]
        1.0
    """
    regression = LogisticRegression(C=C, tol=1e-3, max_iter=1000)
    return _score(make_pipeline(StandardScaler(), regression), train, test)


def knn_probe(
    train: TensorDataset,
    test: TensorDataset,
    *,
    neighbours: int = 20,
    temperature: float = 0.1,
) -> dict[str, float]:
    """Scores a vote of the nearest neighbours, as Lightly's benchmarks do [0].

    A neighbour at the cosine similarity s has exp(s / temperature) votes.

    - [0]: Instance discrimination, 2018, https://arxiv.org/abs/1805.01978

    Args:
        train: Features (N, D) and targets (N,) or (N, L), from `encode`.
        test: The same of other images.
        neighbours: Number of neighbours; all training images if there are fewer.
        temperature: Scale of the votes, above 0; the lower it is, the more the
            nearest neighbours count.

    Returns:
        The scores of `classification_scores`.

    Raises:
        ValueError: If targets are not whole numbers from 0 on, or 0 and 1 for findings.

    Examples:
        >>> import torch
        >>> from torch.utils.data import TensorDataset
        >>> from lightly_dira.evaluation.probes import knn_probe
        >>> features = torch.eye(2).repeat(10, 1)
        >>> data = TensorDataset(features, features.argmax(dim=1))
        >>> knn_probe(data, data)["accuracy"]
        1.0
    """
    # scikit-learn gives distances, 1 - s.
    votes = KNeighborsClassifier(
        min(neighbours, len(train)),
        metric="cosine",
        weights=lambda distances: np.exp((1 - distances) / temperature),
    )
    return _score(votes, train, test)


def _score(model: Any, train: TensorDataset, test: TensorDataset) -> dict[str, float]:
    (x_train, y_train), (x_test, y_test) = (
        [tensor.numpy() for tensor in data.tensors] for data in (train, test)
    )
    for labels in (y_train, y_test):
        check_labels("probe", labels)
    if y_train.ndim == 1:
        classes = max(2, int(max(y_train.max(), y_test.max())) + 1)
        probabilities = _predict(model, x_train, y_train, x_test, classes)
    else:
        findings = [_predict(model, x_train, y, x_test, 2)[:, 1] for y in y_train.T]
        probabilities = np.stack(findings, axis=1)
    return classification_scores(y_test, probabilities)


def _predict(
    model: Any, x: NDArray[Any], y: NDArray[Any], x_test: NDArray[Any], classes: int
) -> NDArray[Any]:
    """Returns probabilities of all classes, including those not seen in training."""
    probabilities = np.zeros((len(x_test), classes))
    seen = np.unique(y)
    if len(seen) == 1:
        probabilities[:, seen] = 1
    else:
        probabilities[:, seen] = model.fit(x, y).predict_proba(x_test)
    return probabilities
