"""Encoders of a comparison: untrained, or with weights that somebody else trained."""

from __future__ import annotations

import timm
import torch
import torchvision
from lightly.models import ResNetGenerator
from settings import TORCHVISION, Settings
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
        encoder = make_network(settings.encoder)
        if settings.start:
            # What others trained their weights on; torchvision's has timm's default.
            config = timm.data.resolve_model_data_config(encoder)
            normalise = v2.Normalize(config["mean"], config["std"])
            encoder = nn.Sequential(normalise, encoder)
    return encoder.to(DEVICE)


def make_started_encoder(settings: Settings, seed: int) -> nn.Module:
    """Returns the encoder that pre-training starts from: `make_encoder` by default.

    With ``start="imagenet"`` it has the default weights of torchvision or timm, which
    are downloaded (of a few networks of timm they come from other images), or with the
    path of a file those that the file holds: a `state_dict` of the same network. It
    begins with the normalisation of these weights.
    """
    encoder = make_encoder(settings, seed)
    if settings.start:
        started = make_network(settings.encoder, settings.start)
        encoder[1].load_state_dict(started.state_dict())
    return encoder


def make_network(name: str, start: str = "") -> nn.Module:
    """Returns a network of torchvision or timm without its classifier."""
    imagenet = start == "imagenet"
    if name in TORCHVISION:
        network = torchvision.models.get_model(
            name, weights="DEFAULT" if imagenet else None
        )
    else:
        network = timm.create_model(name, pretrained=imagenet)
    if start and not imagenet:
        state = torch.load(start, weights_only=True, map_location="cpu")
        network.load_state_dict(state)
    if name in TORCHVISION:
        return nn.Sequential(*list(network.children())[:-1])
    network.reset_classifier(0)
    return network


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
