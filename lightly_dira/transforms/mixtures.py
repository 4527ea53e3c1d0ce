"""The published mixtures of distortions, with their probabilities and numbers."""

from __future__ import annotations

import math
from typing import Any

import albumentations as A
import cv2

from lightly_dira.transforms.distortions import (
    InPainting,
    OutPainting,
    PatchShuffling,
)
from lightly_dira.transforms.grey_curves import NonLinearIntensity


def published_mixture(
    inpainting: float = 0.30, outpainting: float = 0.05, shuffling: float = 0.30
) -> A.OneOf:
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
    probabilities = inpainting, outpainting, shuffling
    if min(probabilities) < 0 or not 0 < sum(probabilities) <= 1:
        raise ValueError(
            "published_mixture: probabilities must be at least 0, and their sum above "
            f"0 and at most 1, got {probabilities}."
        )
    return A.OneOf(
        [
            InPainting(p=inpainting),
            OutPainting(p=outpainting),
            PatchShuffling(p=shuffling),
        ],
        p=sum(probabilities),
    )


def published_volume_mixture(displacement: float = 3.8) -> A.Sequential:
    """The distortions of volumes by TransVW [0], with its numbers.

    An elastic deformation in plane, then one of four, each with probability 0.25: 5
    exchanges of blocks with sides up to 1/10 of the volume's, a curve of grey levels
    (half of them inverted), one block of noise with sides of 1/6 to 1/3, or noise
    around one window with sides of 3/7 to 4/7.

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
        >>> from lightly_dira.transforms import published_volume_mixture
        >>> cube = np.random.rand(32, 64, 64).astype(np.float32)
        >>> published_volume_mixture()(volume=cube)["volume"].shape
        (32, 64, 64)

    - [0]: TransVW, 2021, https://arxiv.org/abs/2102.10680
    """
    if displacement < 0:
        raise ValueError(
            "published_volume_mixture: displacement must be at least 0, got "
            f"{displacement}."
        )
    # Uniform noise has the deviation 1 / sqrt(3); a Gaussian divides that of white
    # noise by 2 sqrt(pi) sigma.
    alpha = displacement * math.sqrt(3) * 2 * math.sqrt(math.pi) * _SIGMA
    one: dict[str, Any] = {"count": 1, "margin": 3 / 64, "fill": "noise"}
    return A.Sequential(
        [
            A.ElasticTransform(
                alpha=alpha,
                sigma=_SIGMA,
                noise_distribution="uniform",
                border_mode=cv2.BORDER_REFLECT_101,
                p=float(displacement > 0),
            ),
            A.OneOf(
                [
                    PatchShuffling(count=5, side=(1 / 64, 6 / 64)),
                    NonLinearIntensity(inverted=0.5),
                    InPainting(side=(1 / 6, 1 / 3), **one),
                    OutPainting(side=(3 / 7, 4 / 7), **one),
                ],
                p=1,
            ),
        ],
        p=1,
    )


# Voxels over which the noise of the elastic deformation is smoothed.
_SIGMA = 8.0
