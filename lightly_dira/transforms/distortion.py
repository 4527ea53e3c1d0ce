"""What a distortion is, and how several become one."""

from __future__ import annotations

import abc
import bisect
import itertools
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray


class Distortion(Protocol):
    """What distorts a view: called with an image and the generator that it draws from.

    The image is an array (H, W) or (H, W, C), of volumes (D, H, W, C), in uint8 or in
    float32 in [0, 1]. The distorted one is a new array of the same shape and type.
    """

    def __call__(
        self, image: NDArray[Any], random: np.random.Generator, /
    ) -> NDArray[Any]:
        """Returns a distorted copy."""
        ...


class RandomDistortion(abc.ABC):
    """Distorts an image with probability `p`: draws first, and applies what it drew."""

    p: float

    def __call__(
        self, image: NDArray[Any], random: np.random.Generator | None = None
    ) -> NDArray[Any]:
        """Returns a distorted copy or, with probability 1 - p, the image itself.

        Args:
            image: (H, W), (H, W, C) or (D, H, W, C).
            random: What it draws from; by default a new generator, which PyTorch's
                seeds.
        """
        random = _made() if random is None else random
        if random.random() >= self.p:
            return image
        sizes = image.shape[:3] if image.ndim == 4 else image.shape[:2]
        return self.apply(image, **self.draw(sizes, random))

    @abc.abstractmethod
    def draw(self, sizes: Sequence[int], random: np.random.Generator) -> dict[str, Any]:
        """Draws what `apply` takes, for an image with these sides."""

    @abc.abstractmethod
    def apply(self, image: NDArray[Any], **drawn: Any) -> NDArray[Any]:
        """Returns a distorted copy."""


class Sequential:
    """Applies distortions one after the other.

    Args:
        distortions: The distortions.

    Examples:
        >>> from lightly_dira import DiRATransform
        >>> from lightly_dira.transforms import NonLinearIntensity, Sequential
        >>> from lightly_dira.transforms import published_mixture
        >>> curves = NonLinearIntensity(inverted=0.0, p=0.5)
        >>> both = Sequential([curves, published_mixture()])
        >>> transform = DiRATransform(distortion=both)
    """

    def __init__(self, distortions: Sequence[Distortion]) -> None:
        """Takes the distortions."""
        self.distortions = list(distortions)

    def __call__(
        self, image: NDArray[Any], random: np.random.Generator | None = None
    ) -> NDArray[Any]:
        """Returns an image that all have distorted; see `RandomDistortion`."""
        random = _made() if random is None else random
        for distortion in self.distortions:
            image = distortion(image, random)
        return image

    def __repr__(self) -> str:
        """Shows the parts."""
        return f"Sequential({self.distortions!r})"


class OneOf:
    """Applies at most one of several distortions.

    Args:
        distortions: The distortions.
        probabilities: Of each; what is left of 1 is that of no distortion. By default
            all are equal, and their sum is 1.

    Raises:
        ValueError: If a probability is negative, or their sum is not in (0, 1].

    Examples:
        >>> from lightly_dira.transforms import InPainting, OneOf, PixelShuffling
        >>> half = OneOf([InPainting(), PixelShuffling()], [0.25, 0.25])
    """

    def __init__(
        self,
        distortions: Sequence[Distortion],
        probabilities: Sequence[float] | None = None,
    ) -> None:
        """Takes distortions and probabilities."""
        self.distortions = list(distortions)
        equal = [1 / max(1, len(self.distortions))] * len(self.distortions)
        self.probabilities = equal if probabilities is None else [*probabilities]
        self.bounds = list(itertools.accumulate(self.probabilities))
        if len(self.probabilities) != len(self.distortions) or not (
            min(self.probabilities) >= 0 < self.bounds[-1] <= 1 + 1e-9
        ):
            raise ValueError(
                "OneOf: expected a probability of at least 0 for each of "
                f"{len(self.distortions)} distortions, with a sum above 0 and at most "
                f"1, got {self.probabilities}."
            )

    def __call__(
        self, image: NDArray[Any], random: np.random.Generator | None = None
    ) -> NDArray[Any]:
        """Returns the image as one of them distorts it; see `RandomDistortion`."""
        random = _made() if random is None else random
        number = bisect.bisect_right(self.bounds, random.random())
        if number >= len(self.distortions):
            return image
        return self.distortions[number](image, random)

    def __repr__(self) -> str:
        """Shows the parts and their probabilities."""
        return f"OneOf({self.distortions!r}, {self.probabilities})"


def _made() -> np.random.Generator:
    """Returns a generator that PyTorch's seeds."""
    return np.random.default_rng(int(torch.randint(2**62, ())))
