"""Weights out and in: torchvision, timm, smp, safetensors, the authors' files."""

from lightly_dira.weights.encoders import export_encoder
from lightly_dira.weights.official import DiRACheckpoint, load_dira_checkpoint
from lightly_dira.weights.pretrained import from_pretrained, save_pretrained
from lightly_dira.weights.smp_unet import to_smp_unet

__all__ = [
    "DiRACheckpoint",
    "export_encoder",
    "from_pretrained",
    "load_dira_checkpoint",
    "save_pretrained",
    "to_smp_unet",
]
