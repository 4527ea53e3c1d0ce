"""Data to look at: slices and cubes of the MNI152 brain."""

import functools
import itertools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import Dataset

from lightly_dira.core.extras import extra
from lightly_dira.data.volume_files import from_canonical

with extra("evaluation"):
    from nilearn import datasets

# The fraction of the brain, from the back, that is held out, and the gap between the
# slabs in voxels: neighbours a millimetre apart are almost equal.
_HELD_OUT = 0.4
_GAP = 4


class MNI152Slices(Dataset[tuple[Any, int, str]]):
    """Slices of the MNI152 brain MRI template, in three directions [0].

    The template (voxels of 1 mm) and its maps of grey and white matter ship with
    nilearn: nothing is downloaded. The front 60 % of the brain is for training, the
    back for testing. A gap separates the two slabs, so that they neither share voxels
    nor touch. Each slab is sliced in all three directions. Slices that show brain on
    less than a tenth of their area are left out. Items are `(image, direction, name)`
    like those of Lightly's `LightlyDataset`.

    - [0]: Unbiased average age-appropriate brain templates, 2009,
      https://doi.org/10.1016/S1053-8119(09)70884-5

    Attributes:
        images: Grey square images, (N, S, S) uint8.
        tissues: The tissue of each pixel: 1 is grey matter, 2 is white matter and 0
            is anything else, (N, S, S) uint8.
        directions: The direction of each image: 0 is sagittal, 1 coronal, 2 axial.
        names: The direction and number of each image, such as "axial-70".

    Examples:
        >>> from lightly_dira.evaluation.data import MNI152Slices
        >>> train, test = MNI152Slices("train"), MNI152Slices("test")
        >>> train.images.shape, test.images.shape
        ((347, 155, 155), (310, 155, 155))
    """

    def __init__(
        self,
        split: Literal["train", "test"],
        transform: Callable[[Image.Image], Any] | None = None,
    ) -> None:
        """Cuts the slices.

        Args:
            split: "train" or "test".
            transform: Applied to each image, a PIL image of mode RGB with equal
                channels.

        Raises:
            ValueError: If there is no such split.
        """
        self.transform = transform
        slices = slice_brain(*_limits_of(split))
        self.images, self.tissues = slices.images, slices.tissues
        self.directions, self.names = slices.directions, slices.names

    def __len__(self) -> int:
        """Counts the slices."""
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, int, str]:
        """Returns image, direction (0 sagittal, 1 coronal, 2 axial) and name."""
        image: Any = Image.fromarray(self.images[index]).convert("RGB")
        if self.transform is not None:
            image = self.transform(image)
        return image, self.directions[index], self.names[index]


class Slices(NamedTuple):
    """Slices of a part of the brain; see `MNI152Slices`."""

    images: NDArray[np.uint8]
    tissues: NDArray[np.uint8]
    directions: list[int]
    names: list[str]


def slice_brain(start: float, stop: float) -> Slices:
    """Slices a slab of the brain in three directions.

    Args:
        start: Where the slab starts, from 0 at the back to 1 at the front. If it does
            not start at the back, a gap is left before it.
        stop: Where the slab stops.
    """
    brain, tissue = _slab(start, stop)
    side = max(brain.shape)
    images, tissues, directions, names = [], [], [], []
    for direction, name in enumerate(("sagittal", "coronal", "axial")):
        for number in range(brain.shape[direction]):
            image = _square(np.take(brain, number, direction), side)
            if (image > 0).mean() < 0.1:
                continue
            images.append(image)
            tissues.append(_square(np.take(tissue, number, direction), side))
            directions.append(direction)
            names.append(f"{name}-{number}")
    return Slices(np.stack(images), np.stack(tissues), directions, names)


class MNI152Cubes(Dataset[tuple[Any, int, str]]):
    """Cubes of the MNI152 brain MRI template, from the slabs of `MNI152Slices`.

    Cubes overlap by half; those with less than a third of brain are left out. Items are
    `(cube, number, name)`.

    Attributes:
        cubes: The cubes, (N, D, H, W) uint8; D points to the head, H to the back and W
            to the left.
        tissues: The tissue of each voxel: 1 is grey matter, 2 is white matter and 0 is
            anything else, (N, D, H, W) uint8.

    Examples:
        >>> from lightly_dira.evaluation.data import MNI152Cubes
        >>> MNI152Cubes("train").cubes.shape, MNI152Cubes("test").cubes.shape
        ((23, 48, 64, 64), (15, 48, 64, 64))
    """

    def __init__(
        self,
        split: Literal["train", "test"],
        transform: Callable[[NDArray[np.uint8]], Any] | None = None,
        *,
        size: tuple[int, int, int] = (48, 64, 64),
    ) -> None:
        """Cuts the cubes.

        Args:
            split: "train" or "test".
            transform: Applied to each cube.
            size: (D, H, W) of the cubes, in voxels of 1 mm.

        Raises:
            ValueError: If there is no such split, or the slab is smaller than a cube.
        """
        self.transform = transform
        brain, tissue = (from_canonical(part) for part in _slab(*_limits_of(split)))
        if any(own > side for own, side in zip(size, brain.shape, strict=True)):
            raise ValueError(
                f"MNI152Cubes: size must be at most {brain.shape}, got {size}."
            )
        steps = [
            range(0, side - own + 1, max(1, own // 2))
            for own, side in zip(size, brain.shape, strict=True)
        ]
        cubes, tissues = [], []
        for start in itertools.product(*steps):
            place = tuple(slice(a, a + own) for a, own in zip(start, size, strict=True))
            if (brain[place] > 0).mean() >= 1 / 3:
                cubes.append(brain[place])
                tissues.append(tissue[place])
        self.cubes, self.tissues = np.stack(cubes), np.stack(tissues)

    def __len__(self) -> int:
        """Counts the cubes."""
        return len(self.cubes)

    def __getitem__(self, index: int) -> tuple[Any, int, str]:
        """Returns cube, number and name."""
        cube: Any = self.cubes[index]
        if self.transform is not None:
            cube = self.transform(cube)
        return cube, index, f"cube-{index}"


def _limits_of(split: str) -> tuple[float, float]:
    """Returns where the slab of a split starts and stops; see `slice_brain`."""
    if split not in ("train", "test"):
        raise ValueError(f"split must be 'train' or 'test', got {split!r}.")
    return (0, _HELD_OUT) if split == "test" else (_HELD_OUT, 1)


def _slab(start: float, stop: float) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Returns brain and tissue of a slab; see `slice_brain`."""
    brain, tissue = _load_brain()
    box = [slice(int(i.min()), int(i.max()) + 1) for i in np.nonzero(brain)]
    back, length = box[1].start, box[1].stop - box[1].start
    gap = _GAP if start > 0 else 0
    box[1] = slice(back + round(start * length) + gap, back + round(stop * length))
    return brain[tuple(box)], tissue[tuple(box)]


@functools.cache
def _load_brain() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Returns the brain and the tissue of every voxel."""
    brain, grey, white = (
        load(resolution=1).get_fdata(dtype=np.float32)
        for load in (
            datasets.load_mni152_template,
            datasets.load_mni152_gm_template,
            datasets.load_mni152_wm_template,
        )
    )
    tissue = np.where(grey > 0.5, 1, np.where(white > 0.5, 2, 0)).astype(np.uint8)
    return np.round(255 * brain / brain.max()).astype(np.uint8), tissue


def _square(image: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Turns the slice upright and pads it to a square."""
    image = np.rot90(image)
    before = [(side - length) // 2 for length in image.shape]
    after = [
        side - length - pad for length, pad in zip(image.shape, before, strict=True)
    ]
    return np.pad(image, list(zip(before, after, strict=True)))
