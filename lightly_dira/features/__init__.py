"""A backbone's feature maps: found, captured, and matched with the view they are of."""

from lightly_dira.features.pyramid import FeaturePyramid

__all__ = ["FeaturePyramid"]
