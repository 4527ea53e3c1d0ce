"""Distorted views with clean, aligned targets: transforms, pixels and files.

`DiRATransform` splits the base transform into its steps. Crops, flips and rotations are
drawn once and shared by a view and its target. Colour changes and the distortion touch
the view only, and blackened pixels are black, since normalisation comes later. It
splits every transform of Lightly (also with multi-crop, and with grids or masks, which
pass through), the `Compose` of torchvision (v1 and v2) and of albumentations, nested in
any way, and lists of callables. A table says what each of their classes does, and a
test checks it by measurement. The target goes through the moves of an automatic
augmentation (`RandAugment`) only. Say what your own steps do:
`DiRATransform(transform, kinds={MyStep: "photometric"})`. Otherwise the target goes
through them as well, and a warning says so. Any other callable is left whole: its
finished view is the target, and a distorted copy of it is the view.

Images are PIL images, arrays or tensors of 1 to 32 channels, 8 or 16 bits or float; 16
bits keep their precision. CT numbers need a window, and so do types that do not tell
which value is white (8 bits in wider integers, signed integers):

    transform = DiRATransform(MoCoV2Transform(), window=(-1000, 400))
    dataset = lightly_dira.data.ImageFiles(folder, transform)
    DiRATransform().preview(image).savefig("preview.png")  # look before you train

Images from other machines or hospitals differ in their grey levels. Random curves of
grey levels before the published distortions teach the encoder to ignore this:

    curves = NonLinearIntensity(inverted=0.0, p=0.5)
    DiRATransform(distortion=Sequential([curves, published_mixture()]))

In our pilots DiRA-MoCo segmented lungs in films of a hospital from which it had no
masks. The Dice was 0.786 with the curves and 0.742 without (one seed, validation
images).

Volumes are (D, H, W) or (C, D, H, W), as `read_volume` reads them from NIfTI files,
DICOM series and NumPy files; `spatial_dims=3` says so:

    transform = DiRATransform(spatial_dims=3, window=(-1000, 400))  # or of MONAI:
    transform = DiRATransform([compose, compose], spatial_dims=3)

What a step of MONAI or torchio does follows from its module: `spatial` and `croppad`
move the target as well, `intensity` does not, unless it follows a fixed rule. A volume
that no window and no such rule scales to [0, 1] is an error.

Pipelines that crop and flip on the accelerator, with kornia, torchvision v2 or any
callable, make views and targets of a whole batch there:

    dataset = lightly_dira.data.ImageFiles(folder, lightly_dira.data.ToPixels(256))
    make_views = DiRABatchTransform(kornia_augmentations).to(device)
    x0, x1 = views = make_views(images.to(device))  # then: dira(loss, views)

In Lightning make them in `on_after_batch_transfer`, or in the step, which then returns
``{"loss": loss, "views": views}``. `BatchDistortion` is the distortion alone.

Random draws follow PyTorch's seeds. They differ in every worker, epoch and image, and
`seed_everything(seed, workers=True)` makes them repeatable.
"""

from lightly_dira.data.image_files import read_image
from lightly_dira.data.volume_files import read_volume
from lightly_dira.transforms.batch_distortion import BatchDistortion
from lightly_dira.transforms.batch_transform import DiRABatchTransform
from lightly_dira.transforms.dira_transform import DiRATransform
from lightly_dira.transforms.distortion import Distortion, OneOf, Sequential
from lightly_dira.transforms.grey_curves import NonLinearIntensity
from lightly_dira.transforms.paintings import InPainting, OutPainting
from lightly_dira.transforms.preview import orthogonal_slices
from lightly_dira.transforms.published_distortions import (
    models_genesis_mixture,
    published_mixture,
    transvw_mixture,
)
from lightly_dira.transforms.published_pipeline import PublishedPipeline
from lightly_dira.transforms.shuffling import PatchShuffling, PixelShuffling
from lightly_dira.transforms.volume_pipeline import VolumePipeline
from lightly_dira.views import DiRAViews

__all__ = [
    "BatchDistortion",
    "DiRABatchTransform",
    "DiRATransform",
    "DiRAViews",
    "Distortion",
    "InPainting",
    "NonLinearIntensity",
    "OneOf",
    "OutPainting",
    "PatchShuffling",
    "PixelShuffling",
    "PublishedPipeline",
    "Sequential",
    "VolumePipeline",
    "models_genesis_mixture",
    "orthogonal_slices",
    "published_mixture",
    "read_image",
    "read_volume",
    "transvw_mixture",
]
