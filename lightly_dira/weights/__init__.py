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

U-Nets of nnU-Net and MONAI hold their encoder as `unet.encoder`. Pre-train it there: it
returns the maps of all stages, of which the method pools the last one:

    unet = PlainConvUNet(...)  # or ResidualEncoderUNet, as in your nnU-Net plan
    dira = DiRA(unet.encoder, optimizer)
    z0 = projection_head(unet.encoder(x0)[-1].mean(dim=(2, 3, 4)))
    ...
    torch.save({"network_weights": unet.state_dict()}, "pretrained.pth")
    # nnUNetv2_train DATASET CONFIGURATION FOLD -pretrained_weights pretrained.pth

    unet = monai.networks.nets.FlexibleUNet(1, 3, "resnet10", spatial_dims=3)
    # or, pre-trained as resnet10(feed_forward=False, bias_downsample=False):
    unet.encoder.load_state_dict(backbone.state_dict())

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
