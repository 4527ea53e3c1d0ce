"""Images and volumes with labels, masks and boxes, and their tensors for networks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors

from lightly_dira.data.files import is_plain
from lightly_dira.data.folders import naming
from lightly_dira.data.image_files import read_image
from lightly_dira.data.pixels import (
    to_array,
    to_pixels,
    to_tensor,
    with_channels,
    without_alpha,
)
from lightly_dira.data.resizing import resize_area, resize_mask, resize_volume
from lightly_dira.data.volume_files import lie_on_one_grid, read_volume
from lightly_dira.data.white import Window, check_window
from lightly_dira.evaluation.classes import check_labels, checked, foreground_of


@dataclasses.dataclass(frozen=True, eq=False)
class LabelledImages(Dataset[tuple[Any, Any, str]]):
    """Images, and what is known about each: labels, mask, boxes, patient and split.

    Items are `(image, label, name)` like those of Lightly's `LightlyDataset`. The image
    is a PIL image if it has 8 bits, else an array, as a volume always is. If there is a
    transform, it is applied to the image. Selections (`split`, `subset`) are new
    objects that share the images.

    Attributes:
        images: Arrays (H, W) or (H, W, C), stacked or in a list, or paths of files. Of
            volumes arrays (D, H, W) or (C, D, H, W), or paths for `read_volume`.
        labels: A class for each image, (N,) integers, or 0 or 1 for each of L findings,
            (N, L); None if unknown.
        masks: A class for each pixel, arrays (H, W) of integers or paths of files that
            are black but for one value, which is class 1; of volumes arrays (D, H, W)
            or paths of files of classes. None if unknown.
        boxes: The boxes of each image, (K, 4): left, top, width and height in its
            own pixels; None if unknown.
        box_labels: The names, (K,), of what the boxes of each image frame, as in
            `label_names`.
        patients: A name for each image's patient; None if unknown.
        splits: A word for each image, such as "train", "val" and "test".
        names: A name for each image; by default its number.
        label_names: Names of the classes or of the findings.
        window: The values that `Samples` turns black and white, as `window` of
            `DiRATransform`; needed for CT, MRI and other pixels with units.
        transform: Applied to every image.
        spatial_dims: 2 for images, 3 for volumes.

    Examples:
        >>> import numpy as np
        >>> from lightly_dira.evaluation.labelled import LabelledImages
        >>> images = np.zeros((4, 32, 32), np.uint8)
        >>> splits = np.array(["train", "train", "val", "test"])
        >>> data = LabelledImages(images, labels=np.arange(4) % 2, splits=splits)
        >>> len(data.split("train"))
        2
    """

    images: Sequence[Any] | NDArray[Any]
    labels: NDArray[Any] | None = None
    masks: Sequence[Any] | NDArray[Any] | None = None
    boxes: Sequence[NDArray[Any]] | None = None
    box_labels: Sequence[NDArray[Any]] | None = None
    patients: NDArray[Any] | None = None
    splits: NDArray[Any] | None = None
    names: Sequence[str] = ()
    label_names: tuple[str, ...] = ()
    window: Window | None = None
    transform: Callable[[Any], Any] | None = None
    spatial_dims: int = 2

    def __post_init__(self) -> None:
        """Checks labels and window, and that there is as much of all as of images."""
        check_window(self.window)
        unnamed = self.names is None or len(self.names) == 0
        names = range(len(self.images)) if unnamed else self.names
        object.__setattr__(self, "names", [*map(str, names)])
        for name in ("images", *_OF_EACH):
            if (known := getattr(self, name)) is None:
                continue
            if name in ("labels", "patients", "splits"):
                object.__setattr__(self, name, np.asarray(known))
            elif hasattr(known, "iloc"):
                # Columns of pandas look items up by their index, not by their place.
                object.__setattr__(self, name, list(known))
            if len(known) != len(self.images):
                raise ValueError(
                    f"LabelledImages: {len(self.images)} images need as many {name}, "
                    f"got {len(known)}."
                )
        if self.labels is not None:
            check_labels("LabelledImages", self.labels)

    def __len__(self) -> int:
        """Counts the images."""
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, Any, str]:
        """Returns the (transformed) image, its label (-1 if unknown) and its name."""
        image: Any = self.pixels(index)
        if self.spatial_dims == 2 and is_plain(image):
            image = Image.fromarray(image)
        name = self.names[index]
        if self.transform is not None:
            with naming(name):
                image = self.transform(image)
        return image, -1 if self.labels is None else self.labels[index], name

    def pixels(self, index: int) -> NDArray[Any]:
        """Returns an image unchanged, read from its file if need be."""
        image = self.images[index]
        # In the palette of a mask the numbers are its classes; here they are colours.
        pil = isinstance(image, Image.Image)
        return self._read(without_alpha(image) if pil else image)

    def mask(self, index: int) -> NDArray[Any]:
        """Returns the class of each pixel of an image.

        Raises:
            ValueError: If there is no mask, or it holds fractions, negative numbers or
                255, which would be a class of its own, or a file of an image several
                values beside black, or is a NIfTI file on another grid than its volume.
        """
        if self.masks is None:
            raise ValueError("LabelledImages: these images have no masks.")
        mask = self.masks[index]
        if isinstance(mask, (str, Path)) and self.spatial_dims == 2:
            return foreground_of(self._read(mask), mask)
        image = self.images[index]
        files = all(isinstance(each, (str, Path)) for each in (image, mask))
        if files and not lie_on_one_grid(image, mask):
            raise ValueError(
                f"LabelledImages: {image} and {mask} lie on different grids, by their "
                "affines. Resample the mask, or save it with its volume's affine."
            )
        return checked(self._read(mask), index)

    def subset(self, indices: Any) -> LabelledImages:
        """Returns the images chosen by their indices or by a Boolean mask."""
        numbers = np.arange(len(self))[np.asarray(indices)]
        chosen: dict[str, Any] = {}
        for name in ("images", *_OF_EACH):
            known = getattr(self, name)
            if isinstance(known, np.ndarray):
                chosen[name] = known[numbers]
            elif known is not None:
                chosen[name] = [known[number] for number in numbers]
        return dataclasses.replace(self, **chosen)

    def split(self, name: str) -> LabelledImages:
        """Returns the images of a split.

        Raises:
            ValueError: If there is no split of that name.
        """
        known = [] if self.splits is None else sorted(set(self.splits.tolist()))
        if self.splits is None or name not in known:
            raise ValueError(f"LabelledImages: no split {name!r}; there are {known}.")
        return self.subset(self.splits == name)

    def with_transform(self, transform: Callable[[Any], Any] | None) -> LabelledImages:
        """Returns the same images with another transform."""
        return dataclasses.replace(self, transform=transform)

    def _read(self, image: Any) -> NDArray[Any]:
        if not isinstance(image, (str, Path)):
            array = image if isinstance(image, np.ndarray) else np.asarray(image)
            one = self.spatial_dims == 2 and array.shape[2:] == (1,)
            return array[..., 0] if one else array
        return read_image(image) if self.spatial_dims == 2 else read_volume(image)


class Samples(Dataset[tuple[Tensor, Tensor]]):
    """Pairs of image and label, or image and mask, as tensors for networks.

    Images are resized to squares of floats in [0, 1], volumes to the sides of a cube;
    where they shrink, values are averaged over areas. Masks are resized by nearest
    neighbour and keep their classes.

    Attributes:
        data: The images.
        size: (H, W) or (D, H, W) of the tensors.
        target: "label" or "mask".
        channels: Channels of the tensors. A grey image is repeated to fill them; colour
            is averaged if the number of channels differs.
        augment: Called with image and target, like torchvision's v2 transforms. Images
            and masks are `tv_tensors`, so that a mask moves with its image. Transforms
            of torchvision take the slices of a volume all alike, in plane.

    Shape:
        - image: (channels, size, size), or (channels, D, H, W).
        - label: () or (L,) integers; mask: (size, size) or (D, H, W) integers.

    Examples:
        >>> import numpy as np
        >>> from lightly_dira.evaluation.labelled import LabelledImages, Samples
        >>> images = np.zeros((4, 32, 48), np.uint16)
        >>> masks = np.zeros((4, 32, 48), np.uint8)
        >>> image, mask = Samples(LabelledImages(images, masks=masks), 16, "mask")[0]
        >>> image.shape, mask.shape
        (torch.Size([3, 16, 16]), torch.Size([16, 16]))
    """

    def __init__(
        self,
        data: LabelledImages,
        size: int | Sequence[int],
        target: Literal["label", "mask"] = "label",
        *,
        channels: int | None = None,
        augment: Callable[[Any, Any], tuple[Any, Any]] | None = None,
    ) -> None:
        """Pairs images with labels or masks.

        Args:
            data: The images.
            size: Side of the squares, in pixels, or (D, H, W) of volumes.
            target: "label" or "mask".
            channels: Channels of the image tensors; by default 3, of volumes 1.
            augment: Changes image and target together.

        Raises:
            ValueError: If the data have no such target, or the size has another number
                of sides.
        """
        known = {"label": data.labels, "mask": data.masks}
        if known.get(target) is None:
            has = [name for name, values in known.items() if values is not None]
            raise ValueError(
                f"Samples: target {target!r} is not among what is known of the "
                f"images: {has}."
            )
        dims = data.spatial_dims
        self.size = (size,) * dims if isinstance(size, int) else tuple(size)
        if len(self.size) != dims:
            raise ValueError(
                f"Samples: expected a size of one or {dims} sides, got {size}."
            )
        self.data = data
        self.target = target
        self.channels = channels or (3 if dims == 2 else 1)
        self.augment = augment

    def __len__(self) -> int:
        """Counts the images."""
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Returns an image and its target."""
        with naming(self.data.names[index]):
            image, target = self._pair(index)
        if self.augment is None:
            return image, target
        own = tv_tensors.Mask(target[None]) if self.target == "mask" else target
        image, own = self.augment(tv_tensors.Image(image), own)
        target = own[0] if self.target == "mask" else own
        return image.as_subclass(Tensor), target.as_subclass(Tensor)

    def _pair(self, index: int) -> tuple[Tensor, Tensor]:
        pixels = self.data.pixels(index)
        if self.data.spatial_dims == 2:
            array = to_array(to_pixels(pixels, self.data.window))
            image = to_tensor(resize_area(array, *self.size))
        else:
            voxels = np.ascontiguousarray(to_pixels(pixels, self.data.window, 3))
            image = resize_volume(to_tensor(torch.from_numpy(voxels)), self.size)
        # Of bytes; bands of other types are sequences, or modalities.
        alpha = self.data.spatial_dims == 2 and pixels.dtype == np.uint8
        image = with_channels(image, self.channels, alpha=alpha)
        if self.target == "label":
            assert self.data.labels is not None
            target = torch.as_tensor(self.data.labels[index]).long()
        else:
            mask = torch.from_numpy(self.data.mask(index).astype(np.int64))
            sides = pixels.shape[:2] if len(self.size) == 2 else pixels.shape[-3:]
            if mask.shape != sides:
                raise ValueError(
                    f"Samples: image {index} has {sides} pixels, and its mask "
                    f"{tuple(mask.shape)}. Resample the mask to its image."
                )
            target = resize_mask(mask, self.size)
        return image, target


_OF_EACH = ("labels", "masks", "boxes", "box_labels", "patients", "splits", "names")
