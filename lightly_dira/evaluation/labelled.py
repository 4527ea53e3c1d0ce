"""Images with their labels, masks and boxes, and their tensors for networks."""

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
from torchvision.transforms.v2 import functional as F

from lightly_dira.transforms.image_files import read_image
from lightly_dira.transforms.images import Window, resize_area, to_pixels, to_tensor


@dataclasses.dataclass(frozen=True, eq=False)
class LabelledImages(Dataset[tuple[Any, Any, str]]):
    """Images, and what is known about each: labels, mask, boxes, patient and split.

    Items are `(image, label, name)` like those of Lightly's `LightlyDataset`. The image
    is a PIL image if it has 8 bits, else an array. If there is a transform, it is
    applied to the image. Selections (`split`, `subset`) are new objects that share the
    images.

    Attributes:
        images: Arrays (H, W) or (H, W, C), stacked or in a list, or paths of files.
        labels: A class for each image, (N,) integers, or 0 or 1 for each of L findings,
            (N, L); None if unknown.
        masks: A class for each pixel, arrays (H, W) of integers or paths of files in
            which everything but black is class 1; None if unknown.
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
    names: Sequence[str] | None = None
    label_names: tuple[str, ...] = ()
    window: Window | None = None
    transform: Callable[[Any], Any] | None = None

    def __post_init__(self) -> None:
        """Checks that labels, masks and so on have an entry for each image."""
        for name in _OF_EACH:
            known = getattr(self, name)
            if known is not None and len(known) != len(self.images):
                raise ValueError(
                    f"LabelledImages: {len(self.images)} images need as many {name}, "
                    f"got {len(known)}."
                )

    def __len__(self) -> int:
        """Counts the images."""
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, Any, str]:
        """Returns the (transformed) image, its label (-1 if unknown) and its name."""
        image: Any = self.pixels(index)
        if image.dtype == np.uint8:
            image = Image.fromarray(image)
        if self.transform is not None:
            image = self.transform(image)
        label = -1 if self.labels is None else self.labels[index]
        return image, label, str(index if self.names is None else self.names[index])

    def pixels(self, index: int) -> NDArray[Any]:
        """Returns an image unchanged, read from its file if need be."""
        return _read(self.images[index])

    def mask(self, index: int) -> NDArray[Any]:
        """Returns the class of each pixel of an image."""
        if self.masks is None:
            raise ValueError("LabelledImages: these images have no masks.")
        mask = self.masks[index]
        if isinstance(mask, (str, Path)):
            mask = _read(mask) > 0
            mask = mask if mask.ndim == 2 else mask.any(axis=2)
        return np.asarray(mask)

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
        if chosen.get("names") is None:
            chosen["names"] = [str(number) for number in numbers]
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


class Samples(Dataset[tuple[Tensor, Tensor]]):
    """Pairs of image and label, or image and mask, as tensors for networks.

    Images are resized to squares of floats in [0, 1]; where they shrink, pixels are
    averaged over areas. Masks are resized by nearest neighbour and keep their classes.

    Attributes:
        data: The images.
        size: Side of the squares, in pixels.
        target: "label" or "mask".
        channels: Channels of the tensors. A grey image is repeated to fill them; colour
            is averaged if the number of channels differs.
        augment: Called with image and target, like torchvision's v2 transforms. Images
            and masks are `tv_tensors`, so that a mask moves with its image.

    Shape:
        - image: (channels, size, size).
        - label: () or (L,) integers; mask: (size, size) integers.

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
        size: int,
        target: Literal["label", "mask"] = "label",
        *,
        channels: int = 3,
        augment: Callable[[Any, Any], tuple[Any, Any]] | None = None,
    ) -> None:
        """Pairs images with labels or masks.

        Args:
            data: The images.
            size: Side of the squares, in pixels.
            target: "label" or "mask".
            channels: Channels of the image tensors.
            augment: Changes image and target together.

        Raises:
            ValueError: If the data have no such target.
        """
        known = {"label": data.labels, "mask": data.masks}
        if known.get(target) is None:
            has = [name for name, values in known.items() if values is not None]
            raise ValueError(
                f"Samples: target {target!r} is not among what is known of the "
                f"images: {has}."
            )
        self.data = data
        self.size = size
        self.target = target
        self.channels = channels
        self.augment = augment

    def __len__(self) -> int:
        """Counts the images."""
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Returns an image and its target."""
        pixels = to_pixels(self.data.pixels(index), self.data.window)
        image = to_tensor(resize_area(pixels, self.size, self.size))
        if len(image) != self.channels:
            image = image.mean(dim=0, keepdim=True).expand(self.channels, -1, -1)
        if self.target == "label":
            assert self.data.labels is not None
            target = torch.as_tensor(self.data.labels[index]).long()
        else:
            mask = torch.from_numpy(self.data.mask(index).astype(np.int64))[None]
            size = [self.size, self.size]
            target = F.resize(mask, size, F.InterpolationMode.NEAREST)[0]
        if self.augment is None:
            return image, target
        whole = tv_tensors.Image(image)
        if self.target == "label":
            image, target = self.augment(whole, target)
        else:
            image, mask = self.augment(whole, tv_tensors.Mask(target[None]))
            target = mask[0]
        return image.as_subclass(Tensor), target.as_subclass(Tensor)


_OF_EACH = (
    "labels",
    "masks",
    "boxes",
    "box_labels",
    "patients",
    "splits",
    "names",
)


def _read(image: Any) -> NDArray[Any]:
    return read_image(image) if isinstance(image, (str, Path)) else np.asarray(image)
