"""What stands in for a `FeaturePyramid` if the host restores images by itself."""

from __future__ import annotations

from typing import NoReturn

from torch import Tensor, nn

from lightly_dira.core.private_torch import uncompiled
from lightly_dira.features.dry_pass import first_convolution


class RestoringHost:
    """A network whose maps nobody captures, since its own decoder has restored.

    Attributes:
        backbone: The network, or the part of it that the optimiser certainly trains.
        spatial_dims: 2 for images, 3 for volumes, as its first convolution tells.
        image_channels: Channels of the images, as the same tells.
        was_run: Always True; it is not watched.
    """

    was_run = True

    def __init__(self, backbone: nn.Module) -> None:
        """Looks at the first convolution; nothing is hooked."""
        self.backbone = uncompiled(backbone)
        self.spatial_dims, self.image_channels = first_convolution(backbone)

    def forget(self) -> None:
        """There is nothing to drop."""

    def __call__(self, images: Tensor) -> NoReturn:
        """Raises a RuntimeError, as there are no maps to return."""
        raise RuntimeError(
            "Adversary: the host restores images by itself, and no feature maps of it "
            "are known. Run the host."
        )
