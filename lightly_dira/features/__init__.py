"""Finds a backbone's feature maps, captures them and matches them with views.

One dry pass finds the feature maps, by their shapes and never by the name of a class.
The tests decode 47 small backbones of torchvision, timm (with and without
`features_only`) and Lightly: ResNet, ResNeXt, DenseNet, EfficientNet, ConvNeXt,
MobileNetV3, RegNet, VGG, MaxViT, Swin and ViT, with class and register tokens, 1, 3 or
4 channels, CIFAR stems and dilated strides.

A plain vision transformer gives maps from four depths; the head turns them into a
pyramid. `DiRA(backbone, optimizer, features=FeaturePyramid(backbone, layers=["layer1",
"layer4"]))` uses other maps, and `FeaturePyramid(backbone, input_size=...)` is for
backbones that accept images of one size only and do not state it as `image_size`.
Compiled backbones (`torch.compile`) have as many graphs as without DiRA
(one, of a ResNet, also with `fullgraph=True`) from PyTorch 2.7 on; before, each map
ends a graph.
"""

from lightly_dira.features.pyramid import FeaturePyramid

__all__ = ["FeaturePyramid"]
