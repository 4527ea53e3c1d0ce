"""Fine-tuning an encoder to classify, or a U-Net to segment, images or volumes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, RandomSampler

from lightly_dira.core.extras import extra
from lightly_dira.core.modes import evaluating
from lightly_dira.core.user_warnings import warn
from lightly_dira.evaluation.networks import Classifier, UNet
from lightly_dira.evaluation.probes import coarsest_level, pooled
from lightly_dira.evaluation.scores import (
    classification_scores,
    segmentation_scores,
    surface_scores,
)
from lightly_dira.models.restoration_head import RestorationHead

with extra("evaluation"):
    from segmentation_models_pytorch.losses import DiceLoss


def finetune_classifier(
    backbone: nn.Module,
    train: Dataset[Any],
    val: Dataset[Any],
    *,
    classes: int = 2,
    steps: int = 300,
    batch_size: int = 32,
    lr: float = 1e-4,
    seed: int = 0,
    num_workers: int = 0,
) -> Classifier:
    """Trains a copy of an encoder, and a linear layer on it, to classify images.

    The loss is cross entropy, for each finding if there are several labels. The
    optimiser is AdamW with a one-cycle schedule [0]. Ten times in a run, the area under
    the ROC curve is measured on the validation images. The best weights are kept.

    - [0]: Super-convergence, 2018, https://arxiv.org/abs/1708.07120

    Args:
        backbone: Any network of images; it is not changed. Of one that is frozen as a
            whole, the copy trains; parts that are frozen stay so.
        train: Items `(image, label)`, such as `Samples`, with any number of images.
        val: The same, used to choose the weights.
        classes: Number of classes. With several labels it is ignored: each label of an
            image is a finding.
        steps: Steps of the optimiser, at least 10.
        batch_size: Images in a pass; all if there are fewer, and a single one twice.
        lr: Highest learning rate.
        seed: Seed of weights, order and augmentation.
        num_workers: Processes that load images.

    Returns:
        The classifier, in evaluation mode; `score_classifier` scores it.

    Examples:
        >>> import torch, torchvision
        >>> from torch.utils.data import TensorDataset
        >>> from lightly_dira.evaluation.finetuning import finetune_classifier
        >>> images = torch.rand(4, 3, 32, 32)
        >>> data = TensorDataset(images, torch.tensor([0, 1, 0, 1]))
        >>> backbone = torchvision.models.resnet18()
        >>> classifier = finetune_classifier(backbone, data, data, steps=10)
        >>> classifier(images).shape
        torch.Size([4, 2])
    """
    images, labels = next(iter(DataLoader(train, batch_size=2)))
    with torch.no_grad(), evaluating(backbone):
        output = backbone(images.to(_device(backbone)))
        width = pooled(output, images.shape[2:], coarsest_level(backbone)).shape[1]
    several = labels.ndim == 2
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        outputs = labels.shape[1] if several else classes
        model = Classifier(backbone, width, outputs).to(_device(backbone))

        def loss(logits: Tensor, target: Tensor) -> Tensor:
            if several:
                return F.binary_cross_entropy_with_logits(logits, target.float())
            return F.cross_entropy(logits, target)

        def validate() -> float:
            return score_classifier(model, val, batch_size=batch_size)["auc"]

        _fit(model, loss, train, validate, steps, batch_size, lr, num_workers)
    return model


def finetune_unet(
    backbone: nn.Module,
    train: Dataset[Any],
    val: Dataset[Any],
    *,
    classes: int = 2,
    head: RestorationHead | None = None,
    frozen: bool = False,
    steps: int = 300,
    batch_size: int = 16,
    lr: float = 1e-3,
    seed: int = 0,
    num_workers: int = 0,
) -> UNet:
    """Trains a U-Net of an encoder, with or without its restoration head, to segment.

    The loss is cross entropy plus soft Dice loss. The optimiser is AdamW with a
    one-cycle schedule. Ten times in a run, Dice is measured on the validation images.
    The best weights are kept.

    Args:
        backbone: Any network of images that has feature maps inside; left as it is. As
            for a classifier, a copy trains.
        train: Items `(image, mask)`, such as `Samples(..., target="mask")`.
        val: The same, used to choose the weights.
        classes: Number of classes of a pixel, the background included.
        head: The restoration head from which the decoder starts (`dira.head`). Without
            one the decoder is new, which was better on another hospital in the
            study of chest X-rays (MoCo, three seeds; `examples/results`).
        frozen: Whether to train the decoder only.
        steps: Steps of the optimiser, at least 10.
        batch_size: Images in a pass; all if there are fewer, and a single one twice.
        lr: Highest learning rate.
        seed: Seed of weights, order and augmentation.
        num_workers: Processes that load images.

    Returns:
        The U-Net, in evaluation mode; `score_unet` scores it.

    Examples:
        >>> import torch, torchvision
        >>> from torch.utils.data import TensorDataset
        >>> from lightly_dira.evaluation.finetuning import finetune_unet
        >>> images = torch.rand(4, 3, 32, 32)
        >>> data = TensorDataset(images, (images[:, 0] > 0.5).long())
        >>> unet = finetune_unet(torchvision.models.resnet18(), data, data, steps=10)
        >>> unet(images).shape
        torch.Size([4, 2, 32, 32])
    """
    dice = DiceLoss("multiclass")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = UNet(backbone, classes, head, frozen=frozen)
        model.to(_device(backbone))

        def loss(logits: Tensor, masks: Tensor) -> Tensor:
            soft: Tensor = dice(logits, masks)
            return F.cross_entropy(logits, masks) + soft

        def validate() -> float:
            predicted, masks = _run(model, val, batch_size, _classes_of)
            return segmentation_scores(masks, predicted)["dice"]

        _fit(model, loss, train, validate, steps, batch_size, lr, num_workers)
    return model


def score_classifier(
    model: nn.Module, data: Dataset[Any], *, batch_size: int = 64
) -> dict[str, float]:
    """Scores a classifier on items `(image, label)`: see `classification_scores`."""
    logits, labels = _run(model, data, batch_size)
    several = labels.ndim == 2
    probabilities = logits.sigmoid() if several else logits.softmax(dim=1)
    return classification_scores(labels.numpy(), probabilities.numpy())


def score_unet(
    model: nn.Module,
    data: Dataset[Any],
    *,
    window: Sequence[int] | None = None,
    batch_size: int = 64,
) -> dict[str, float]:
    """Scores a network on items `(image, mask)`.

    Args:
        model: Maps images to logits.
        data: Images, or volumes.
        window: (H, W) or (D, H, W) of a window that slides over each image, as MONAI's
            inferer does it: half of it overlaps with the next, and logits are averaged
            with weights that fall towards its edges. Images may then be of any size.
            By default the network gets whole images, all of one size.
        batch_size: Whole images in a pass.

    Returns:
        The scores of `segmentation_scores` and, of volumes, those of `surface_scores`
        in voxels.

    Raises:
        ImportError: If MONAI is not installed (`lightly-dira[volumes]`), for
            volumes and windows.
    """
    if window is None:
        predicted, masks = _run(model, data, batch_size, _classes_of)
        return _segmentation_scores(masks, predicted)
    with extra("volumes"):
        from monai.inferers.utils import sliding_window_inference
    scores = []
    with torch.no_grad(), evaluating(model):
        for image, mask, *_ in DataLoader(data, batch_size=1):
            image = image.to(_device(model))
            windowed: Any = sliding_window_inference(
                image, window, 4, model, overlap=0.5, mode="gaussian"
            )
            scores.append(_segmentation_scores(mask, windowed.argmax(dim=1).cpu()))
    return {
        name: float(np.nanmean([own[name] for own in scores])) for name in scores[0]
    }


def _classes_of(logits: Tensor) -> Tensor:
    # Of each batch: the logits of all images would be many times the masks.
    return logits.argmax(dim=1)


def _segmentation_scores(masks: Tensor, predicted: Tensor) -> dict[str, float]:
    scores = segmentation_scores(masks, predicted)
    return scores | (surface_scores(masks, predicted) if masks.ndim == 4 else {})


@torch.no_grad()
def _run(
    model: nn.Module,
    data: Dataset[Any],
    batch_size: int,
    of_logits: Callable[[Tensor], Tensor] = Tensor.float,
) -> tuple[Tensor, Tensor]:
    """Returns what is kept of the logits of all items, and their targets."""
    outputs, targets = [], []
    with evaluating(model):
        for images, target, *_ in DataLoader(data, batch_size):
            outputs.append(of_logits(model(images.to(_device(model)))).cpu())
            targets.append(target)
    return torch.cat(outputs), torch.cat(targets)


def _fit(
    model: nn.Module,
    loss: Callable[[Tensor, Tensor], Tensor],
    data: Dataset[Any],
    validate: Callable[[], float],
    steps: int,
    batch_size: int,
    lr: float,
    num_workers: int,
) -> None:
    """Trains the model and loads the weights of the best validation into it."""
    if steps < 10:
        raise ValueError(f"steps must be at least 10, got {steps}.")
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
    # BatchNorm cannot train on one value, such as a coarsest map of one position.
    batch_size = min(batch_size, max(2, len(data)))  # type: ignore[arg-type]
    # Small sets are repeated until there are enough images for all steps.
    sampler = RandomSampler(data, num_samples=steps * batch_size)  # type: ignore[arg-type]
    loader = DataLoader(data, batch_size, sampler=sampler, num_workers=num_workers)
    device = _device(model)
    best, kept = -1.0, None
    model.train()
    for step, (images, target, *_) in enumerate(loader, start=1):
        optimizer.zero_grad()
        value = loss(model(images.to(device)), target.to(device))
        value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        if step * 10 // steps > (step - 1) * 10 // steps:
            score = validate()
            if score > best:
                best, kept = score, copy.deepcopy(model.state_dict())
    if kept is None:
        warn(
            "the score of the validation images is not a number, as where they show "
            "one class or nothing: the last weights are kept, not the best. Choose "
            "validation images of all classes."
        )
    else:
        model.load_state_dict(kept)
    model.eval()


def _device(model: nn.Module) -> torch.device:
    return next((p.device for p in model.parameters()), torch.device("cpu"))
