"""Export and import of weights: torchvision, timm, smp, safetensors, authors' files.

- `export_encoder(backbone, like)`: the encoder's weights under the names of a model of
  torchvision or timm
- `to_smp_unet(backbone, head)`: encoder and decoder as an `smp.Unet` with the same
  output (`lightly-dira[smp]`)
- `save_pretrained(folder, backbone, dira)`, `from_pretrained(folder, backbone)`: both
  as safetensors, a small JSON and a model card (`lightly-dira[safetensors]`); `Inputs`
  says how to feed the encoder
- `load_dira_checkpoint(path)`: loads files of the authors' code into an encoder and a
  head, and lists what was used and left over; it never runs code from a file

Wrapping a backbone leaves its ImageNet or other weights unchanged to the last bit. Your
transform must apply the normalisation they expect, which never reaches the targets.
"""

from lightly_dira.weights.encoders import export_encoder
from lightly_dira.weights.inputs import Inputs
from lightly_dira.weights.official import DiRACheckpoint, load_dira_checkpoint
from lightly_dira.weights.pretrained import from_pretrained, save_pretrained
from lightly_dira.weights.smp_unet import to_smp_unet

__all__ = [
    "DiRACheckpoint",
    "Inputs",
    "export_encoder",
    "from_pretrained",
    "load_dira_checkpoint",
    "save_pretrained",
    "to_smp_unet",
]
