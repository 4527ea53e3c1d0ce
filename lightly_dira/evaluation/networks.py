"""Networks to fine-tune: an encoder with a classifier, or with a decoder as a U-Net."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn

from lightly_dira.evaluation.probes import coarsest_level, pooled
from lightly_dira.features.pyramid import FeaturePyramid
from lightly_dira.models.decoded_layers import layers_for
from lightly_dira.models.light_head import head_for
from lightly_dira.models.restoration_head import RestorationHead


def trainable_copy(backbone: nn.Module) -> nn.Module:
    """Returns a copy of an encoder that trains, also of one that is frozen as a whole.

    Teachers, and encoders that were kept for evaluation, are; parts of an encoder that
    are frozen, such as its first layers, stay so.
    """
    copied = copy.deepcopy(backbone)
    if not any(parameter.requires_grad for parameter in copied.parameters()):
        copied.requires_grad_(True)
    return copied


class Classifier(nn.Module):
    """An encoder, whose maps are averaged over positions, and a linear layer.

    Attributes:
        backbone: A copy of the encoder.
        classify: The linear layer.

    Shape:
        - images: (B, C, H, W).
        - output: (B, outputs), logits.
    """

    def __init__(self, backbone: nn.Module, features: int, outputs: int) -> None:
        """Puts a linear layer onto a copy of the encoder.

        Args:
            backbone: Any network of images; it is not changed. Of one that is frozen as
                a whole, the copy trains.
            features: Number of values that it outputs for an image, maps averaged.
            outputs: Number of classes, or of findings if images have several labels.
        """
        super().__init__()
        self.backbone = trainable_copy(backbone)
        self.classify = nn.Linear(features, outputs)
        self._level = coarsest_level(self.backbone)

    def forward(self, images: Tensor) -> Tensor:
        """Returns logits."""
        output = self.backbone(images)
        features = pooled(output, images.shape[2:], self._level)
        logits: Tensor = self.classify(features)
        return logits


class UNet(nn.Module):
    """An encoder with a decoder that takes its feature maps.

    Attributes:
        features: Captures the feature maps of a copy of the encoder.
        head: The decoder, which outputs logits.

    Shape:
        - images: (B, C, H, W).
        - output: (B, classes, H, W), logits.
    """

    def __init__(
        self,
        backbone: nn.Module,
        classes: int,
        head: RestorationHead | None = None,
        *,
        frozen: bool = False,
    ) -> None:
        """Makes a U-Net from copies of the encoder and the head.

        Args:
            backbone: Any network of images that has feature maps inside.
            classes: Number of classes of a pixel.
            head: The restoration head that was trained with the encoder. The decoder
                then starts from its weights, except for the last convolution, and takes
                the maps of its layers.
            frozen: Whether to freeze the encoder, BatchNorm statistics included.
        """
        super().__init__()
        self.encoder = trainable_copy(backbone)
        layers = layers_for(head, self.encoder)
        self.features = FeaturePyramid(self.encoder, layers=layers)
        if head is None:
            self.head = head_for(self.features, classes, activation=None)
        else:
            changed: dict[str, Any] = dict(out_channels=classes, activation=None)
            self.head = RestorationHead(**head.settings | changed)
            weights = head.state_dict()
            own = self.head.to_image.state_dict(prefix="to_image.")
            self.head.load_state_dict(weights | own)
        self.frozen = frozen
        if frozen:
            self.encoder.requires_grad_(False)

    def train(self, mode: bool = True) -> UNet:
        """Sets the mode, but keeps a frozen encoder in evaluation mode."""
        super().train(mode)
        if self.frozen:
            self.encoder.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Returns logits."""
        logits: Tensor = self.head(self.features(images), images.shape[2:])
        return logits
