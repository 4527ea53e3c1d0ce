"""Weights out and in: torchvision, timm, smp, safetensors, the authors' files.

- `export_encoder(backbone, like)`: the encoder's weights under the names of a model of
  torchvision or timm
- `to_smp_unet(backbone, head)`: encoder and decoder as an `smp.Unet` with the same
  output (`lightly-dira[smp]`)
- `save_pretrained(folder, backbone, head)`, `from_pretrained(folder, backbone)`: both
  as safetensors and a small JSON (`lightly-dira[safetensors]`)
- `load_dira_checkpoint(path)`: files of the authors' code into an encoder and a head,
  with lists of what was used and left over; no code in a file is run

A backbone that comes with ImageNet or other weights keeps them to the last bit when it
is wrapped; the normalisation they expect is your transform's business and never reaches
the targets.
"""

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
