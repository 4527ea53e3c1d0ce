"""Data sets of files as hospitals and public sets have them.

`ImageFiles` and `VolumeFiles` take a folder, flat or nested, or a list of paths, and
read every file with its own bits: 16-bit PNG and TIFF, DICOM with or without a suffix,
NIfTI, DICOM series and NumPy. Hidden files, and the forks that macOS leaves, are not
read. A file that cannot be read is an error that names it.

    transform = DiRATransform(MoCoV2Transform(), window="percentiles")
    dataset = ImageFiles("scans", transform)
    loader = DataLoader(dataset, batch_size=256, shuffle=True)

Values become pixels in [0, 1] by ``DiRATransform(window=)``: (low, high) in the file's
own units, such as (-1000, 400) for the lung in CT, or "percentiles", 0.5 and 99.5 of
each image, for MRI and other arbitrary units. ``ImageFiles(folder, voi=True)`` applies
the windows that DICOM files state for displays, and ``VolumeFiles(spacing=(1, 1, 1))``
resamples NIfTI and DICOM to these millimetres. `ToPixels` makes tensors of one size,
for views that are made on the accelerator. Lightly's `LightlyDataset` and
torchvision's `ImageFolder` read images by PIL as RGB of 8 bits, which makes most pixels
of a 16-bit image white: they are for 8-bit images.
"""

from lightly_dira.data.files import ImageFiles, VolumeFiles
from lightly_dira.data.to_pixels import ToPixels

__all__ = ["ImageFiles", "ToPixels", "VolumeFiles"]
