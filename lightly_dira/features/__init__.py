"""A backbone's feature maps: found, captured, and matched with the view they are of.

One dry pass finds the feature maps, by their shapes and never by the name of a class.
The tests decode 47 small backbones of torchvision, timm (with and without
`features_only`) and Lightly: ResNet, ResNeXt, DenseNet, EfficientNet, ConvNeXt,
MobileNetV3, RegNet, VGG, MaxViT, Swin and ViT, with class and register tokens, 1, 3 or
4 channels, CIFAR stems and dilated strides.

A plain vision transformer gives maps of four depths; the head makes a pyramid of them.
`DiRA(backbone, optimizer, layers=["layer1", "layer4"])` takes other maps, and
`input_size` helps where a backbone runs on images of one size only and has no
`image_size` to say so. Compiled backbones (`torch.compile`) work; each map ends a
graph.
"""

from lightly_dira.features.pyramid import FeaturePyramid

__all__ = ["FeaturePyramid"]
