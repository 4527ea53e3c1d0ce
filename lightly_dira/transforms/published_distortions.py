"""The published mixtures of distortions, with their probabilities and numbers."""

from __future__ import annotations

import math
from typing import Any

from lightly_dira.transforms.albumentations_steps import ElasticInPlane
from lightly_dira.transforms.distortion import OneOf, Sequential
from lightly_dira.transforms.grey_curves import NonLinearIntensity
from lightly_dira.transforms.paintings import InPainting, OutPainting
from lightly_dira.transforms.shuffling import PatchShuffling, PixelShuffling


def published_for(spatial_dims: int) -> OneOf | Sequential:
    """Returns the published distortion of images (2) or of volumes (3)."""
    return published_mixture() if spatial_dims == 2 else transvw_mixture()


def published_mixture(
    inpainting: float = 0.30, outpainting: float = 0.05, shuffling: float = 0.30
) -> OneOf:
    """At most one of the three distortions, with the published probabilities [0].

    Args:
        inpainting: Probability of `InPainting`.
        outpainting: Probability of `OutPainting`.
        shuffling: Probability of `PatchShuffling`. What is left of 1 is the
            probability of no distortion.

    Raises:
        ValueError: If a probability is negative, or their sum is not in (0, 1].

    Examples:
        >>> from lightly_dira import DiRATransform
        >>> from lightly_dira.transforms import published_mixture
        >>> transform = DiRATransform(distortion=published_mixture(shuffling=0.0))

    - [0]: DiRA, 2022, https://arxiv.org/abs/2204.10437
    """
    return OneOf(
        [InPainting(), OutPainting(), PatchShuffling()],
        [inpainting, outpainting, shuffling],
    )


def transvw_mixture(displacement: float = 3.8) -> Sequential:
    """The distortions of volumes by TransVW [0], with its numbers.

    An elastic deformation in plane, then one of four, each with probability 0.25: 5
    blocks with sides up to 1/10 of the volume's, whose voxels are shuffled, a curve of
    grey levels (half of them inverted), one block of noise with sides of 1/6 to 1/3, or
    noise around one window with sides of 3/7 to 4/7.

    TransVW deforms by uniform noise in [-991, 991] that a Gaussian (8 voxels) smooths
    in three dimensions, which leaves displacements with a deviation of 3.8 voxels. Here
    the noise is smooth in two dimensions and the same for all slices, with that
    deviation.

    Args:
        displacement: Deviation of the elastic displacements, in voxels; 0 for none.
            3.8 suits sides of 64 voxels: scale it with yours.

    Raises:
        ValueError: If the displacement is negative.

    Examples:
        >>> import numpy as np
        >>> from lightly_dira.transforms import transvw_mixture
        >>> cube = np.random.rand(32, 64, 64, 1).astype(np.float32)
        >>> transvw_mixture()(cube).shape
        (32, 64, 64, 1)

    - [0]: TransVW, 2021, https://arxiv.org/abs/2102.10680
    """
    if displacement < 0:
        raise ValueError(
            f"transvw_mixture: displacement must be at least 0, got {displacement}."
        )
    # Uniform noise has the deviation 1 / sqrt(3); a Gaussian divides that of white
    # noise by 2 sqrt(pi) sigma.
    alpha = displacement * math.sqrt(3) * 2 * math.sqrt(math.pi) * _SIGMA
    one: dict[str, Any] = {"count": 1, "margin": 3 / 64, "fill": "noise"}
    elastic = [ElasticInPlane(alpha, _SIGMA)] if displacement else []
    one_of_four = OneOf(
        [
            PixelShuffling(count=5, side=(1 / 64, 6 / 64)),
            NonLinearIntensity(inverted=0.5),
            InPainting(side=(1 / 6, 1 / 3), **one),
            OutPainting(side=(3 / 7, 4 / 7), **one),
        ]
    )
    return Sequential([*elastic, one_of_four])


def models_genesis_mixture() -> Sequential:
    """The distortions of volumes by Models Genesis [0], with its numbers.

    10,000 blocks with sides up to 1/10 of the volume's, whose voxels are shuffled (p
    0.5), a curve of grey levels (p 0.9, half of them inverted), and noise (p 0.9): in
    blocks with sides of 1/6 to 1/3 (20 %) or around windows with sides of 3/7 to 4/7
    (80 %), up to 5 of them, each followed by another with probability 0.95. Its flips
    move the target, too: they are those of `VolumePipeline`.

    Examples:
        >>> import numpy as np
        >>> from lightly_dira.transforms import models_genesis_mixture
        >>> cube = np.random.rand(32, 64, 64, 1).astype(np.float32)
        >>> models_genesis_mixture()(cube).shape
        (32, 64, 64, 1)

    - [0]: Models Genesis, 2019, https://arxiv.org/abs/1908.06912
    """
    several: dict[str, Any] = {"count": 5, "stop": 0.05, "margin": 3 / 64}
    several["fill"] = "noise"
    noise = OneOf(
        [
            InPainting(side=(1 / 6, 1 / 3), **several),
            OutPainting(side=(3 / 7, 4 / 7), **several),
        ],
        [0.9 * 0.2, 0.9 * 0.8],
    )
    shuffling = PixelShuffling(count=10_000, side=(1 / 64, 6 / 64), p=0.5)
    return Sequential([shuffling, NonLinearIntensity(inverted=0.5, p=0.9), noise])


# Voxels over which the noise of the elastic deformation is smoothed.
_SIGMA = 8.0
