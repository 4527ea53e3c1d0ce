"""The restoration head and the discriminator."""

from lightly_dira.models.patch_discriminator import PatchDiscriminator
from lightly_dira.models.restoration_head import RestorationHead

__all__ = ["PatchDiscriminator", "RestorationHead"]
