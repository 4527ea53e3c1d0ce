"""Encoders of a comparison: untrained, or with weights that somebody else trained."""

from __future__ import annotations

import torch
import torchvision
from lightly.models import ResNetGenerator
from lightly.transforms.utils import IMAGENET_NORMALIZE
from settings import Settings
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torchvision.transforms import v2

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def make_encoder(settings: Settings, seed: int) -> nn.Module:
    """Returns an encoder with its global pooling; its weights depend on the seed."""
    torch.manual_seed(seed)
    if settings.encoder == "unet":
        encoder = make_unet_encoder(settings.width)
    elif settings.cube:
        from monai.networks import nets  # images do without MONAI

        encoder = getattr(nets, settings.encoder)(
            n_input_channels=1,
            feed_forward=False,
            conv1_t_stride=1,
            widen_factor=settings.width,
        )
    elif settings.encoder == "vit":
        encoder = VisionTransformer(
            img_size=settings.size,
            patch_size=8,
            embed_dim=192,
            depth=6,
            num_heads=3,
            num_classes=0,
        )
    elif "-" in settings.encoder:
        resnet = ResNetGenerator(settings.encoder, width=settings.width)
        convolve, normalise, *layers, _ = resnet.children()
        pool = nn.AdaptiveAvgPool2d(1)
        encoder = nn.Sequential(convolve, normalise, nn.ReLU(), *layers, pool)
    else:
        resnet = getattr(torchvision.models, settings.encoder)()
        encoder = nn.Sequential(*list(resnet.children())[:-1])
        if settings.start:
            # What the weights of others were trained on.
            encoder.insert(0, v2.Normalize(**IMAGENET_NORMALIZE))
    return encoder.to(DEVICE)


def make_started_encoder(settings: Settings, seed: int) -> nn.Module:
    """Returns the encoder that pre-training starts from: `make_encoder` by default.

    With ``start="imagenet"`` it has the weights of torchvision's ResNet, which are
    downloaded, or with the path of a file those that the file holds: a `state_dict` of
    the same ResNet.
    """
    encoder = make_encoder(settings, seed)
    if settings.start:
        resnet = getattr(torchvision.models, settings.encoder)(weights=None)
        if settings.start == "imagenet":
            weights = torchvision.models.get_model_weights(settings.encoder).DEFAULT
            state = weights.get_state_dict(progress=False)
        else:
            state = torch.load(settings.start, weights_only=True, map_location="cpu")
        resnet.load_state_dict(state)
        for own, other in zip(encoder[1:], resnet.children(), strict=False):
            own.load_state_dict(other.state_dict())
    return encoder


def make_unet_encoder(width: float) -> nn.Sequential:
    """Returns the encoder of the U-Net of Models Genesis and TransVW, of MONAI's parts.

    Four levels of two convolutions, 64 to 512 channels wide where `width` is 1, and
    three poolings.
    """
    from monai.networks.nets.basic_unet import Down, TwoConv

    first, *wider = (int(width * channels) for channels in (64, 128, 256, 512))
    levels = [TwoConv(3, 1, first, "relu", "batch", bias=False)]
    for channels in wider:
        levels.append(Down(3, first, channels, "relu", "batch", bias=False))
        first = channels
    return nn.Sequential(*levels, nn.AdaptiveAvgPool3d(1))
