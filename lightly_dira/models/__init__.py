"""The restoration head, the discriminator, and images of masked image models."""

from lightly_dira.models.light_head import light_head
from lightly_dira.models.masked_images import fill_masked_patches
from lightly_dira.models.patch_discriminator import PatchDiscriminator
from lightly_dira.models.restoration_head import RestorationHead

__all__ = ["PatchDiscriminator", "RestorationHead", "fill_masked_patches", "light_head"]
