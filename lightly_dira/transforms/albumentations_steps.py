"""Everything about albumentations: its steps, its draws, and it as a distortion.

No other module imports it.
"""

from __future__ import annotations

import copy
import functools
import random
from collections.abc import Callable
from typing import Any

import albumentations as A
import cv2
import numpy as np
import torch
from numpy.typing import NDArray

jitter_colour = A.ColorJitter().apply
"""Called as (image, brightness, contrast, saturation, hue, order)."""


def is_albumentation(transform: Any) -> bool:
    """Whether a step is one of albumentations."""
    return isinstance(transform, (A.BasicTransform, A.BaseCompose))


class Draws:
    """The random draws for one image, of distortions and of albumentations.

    Each transform of albumentations has generators of its own, whose draws repeat in
    the workers of a data loader. Here all share one pair, seeded from PyTorch's
    generator.
    """

    @functools.cached_property
    def _generators(self) -> tuple[np.random.Generator, random.Random]:
        """Draws their seed when they are first needed."""
        seed = int(torch.randint(2**62, ()))
        return np.random.default_rng(seed), random.Random(seed)

    @property
    def random(self) -> np.random.Generator:
        """What distortions draw from."""
        return self._generators[0]

    def apply(
        self, transform: Any, *images: NDArray[Any], twin: Any = None
    ) -> list[NDArray[Any]]:
        """Applies a transform to every image, with the same draws.

        Args:
            transform: A transform of albumentations.
            images: The images.
            twin: Applied to all but the first image, in place of the transform.
        """
        numpy, python = self._generators
        twin = transform if twin is None else twin
        for each in (transform, twin):
            if each.random_generator is not numpy:
                each.set_random_state(numpy, python)
        if len(images) == 1:
            return [_applied(transform, images[0])]
        states = numpy.bit_generator.state, python.getstate()
        results: list[NDArray[Any]] = []
        for image in images:
            numpy.bit_generator.state = states[0]
            python.setstate(states[1])
            step = twin if results else transform
            results.append(_applied(step, image))
        return results

    def seed(self) -> int:
        """Draws a seed of 32 bits for a step with a random state of its own."""
        return int(self.random.integers(2**32))


class Albumentation:
    """A transform of albumentations as a `Distortion`."""

    def __init__(self, transform: Any) -> None:
        """Takes the transform."""
        self.transform = transform

    def __call__(
        self, image: NDArray[Any], generator: np.random.Generator
    ) -> NDArray[Any]:
        """Returns a distorted copy, with all draws from the generator."""
        python = random.Random(int(generator.integers(2**62)))
        self.transform.set_random_state(generator, python)
        distorted: NDArray[Any] = _applied(self.transform, image)
        return distorted

    def __repr__(self) -> str:
        """Shows the transform."""
        return repr(self.transform)


class ElasticInPlane(Albumentation):
    """Moves the pixels of all slices alike, by uniform noise that is smoothed.

    Args:
        alpha: What the smoothed noise, of [-1, 1], is multiplied by, in pixels.
        sigma: Deviation of the Gaussian that smooths it, in pixels.
    """

    def __init__(self, alpha: float, sigma: float) -> None:
        """Makes the transform."""
        self.alpha, self.sigma = alpha, sigma
        super().__init__(
            A.ElasticTransform(
                alpha=alpha,
                sigma=sigma,
                noise_distribution="uniform",
                border_mode=cv2.BORDER_REFLECT_101,
                p=1,
            )
        )


def choices_in(transform: Any) -> list[Any] | None:
    """Returns the parts of a composition, or None for all else."""
    return transform.transforms if isinstance(transform, A.BaseCompose) else None


def steps_of(transform: Any) -> list[Any] | None:
    """Returns the parts of a composition that always runs them all, in order."""
    if isinstance(transform, A.ReplayCompose):
        # Its replay record would be lost, and causes errors.
        parts = copy.deepcopy(transform.transforms)
        for part in parts:
            part.set_deterministic(False)
        transform = A.Compose(parts, p=transform.p)
    whole = type(transform).__name__ in ("Compose", "Sequential")
    if isinstance(transform, A.BaseCompose) and whole and transform.p == 1:
        return list(transform.transforms)
    return None


def kind_of_lambda(transform: Any) -> str | None:
    """Says what a `Lambda` does: one that leaves masks alone does not move pixels."""
    if not isinstance(transform, A.Lambda):
        return None
    default = A.Lambda().custom_apply_fns
    functions = {**transform.custom_apply_fns, "image": default["image"]}
    return "photometric" if functions == default else "unknown"


def geometry_of_albumentation(transform: Any, moves: Callable[[Any], bool]) -> Any:
    """Returns a copy with the same draws that only moves pixels.

    Args:
        transform: The step.
        moves: Whether a step without parts does nothing else.
    """
    twin = copy.copy(transform)
    if isinstance(transform, A.BaseCompose):
        parts = transform.transforms
        twin.transforms = [geometry_of_albumentation(part, moves) for part in parts]
    elif not moves(transform):
        cls = type(transform)
        methods = {"apply_with_params": lambda self, params, *args, **data: data}
        twin.__class__ = type(cls.__name__, (cls,), methods)
    return twin


def _applied(transform: Any, image: NDArray[Any]) -> Any:
    key = "volume" if image.ndim == 4 else "image"
    if isinstance(transform, A.Normalize) and image.dtype.kind == "f":
        # Ours are in [0, 1], and it divides by what white is in 8 bits.
        image = image * np.float32(transform.max_pixel_value or 1)
    try:
        return transform(**{key: image})[key]
    except KeyError as error:
        if key == "image":
            raise
        raise ValueError(
            f"DiRATransform: {type(transform).__name__} of albumentations does not "
            "take volumes. Leave it out, or use MONAI's steps."
        ) from error
