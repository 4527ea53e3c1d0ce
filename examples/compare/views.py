"""Transforms of a comparison, by what the views are for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from settings import Settings

from lightly_dira import DiRATransform, DiRAViews
from lightly_dira.data.white import parse_window
from lightly_dira.transforms import (
    Distortion,
    NonLinearIntensity,
    PublishedPipeline,
    Sequential,
    VolumePipeline,
    models_genesis_mixture,
    published_mixture,
    transvw_mixture,
)


class Both:
    """Makes views by two transforms that draw the same crops."""

    def __init__(self, first: DiRATransform, second: DiRATransform) -> None:
        self.first, self.second = first, second

    def __call__(self, image: Any) -> tuple[DiRAViews, DiRAViews]:
        state = torch.get_rng_state()
        first = self.first(image)
        torch.set_rng_state(state)
        return first, self.second(image)


def make_transforms(settings: Settings) -> dict[str, Callable[[Any], Any]]:
    """Returns transforms by name; all draw the same crops from the same seed.

    "plain" views are not distorted (of volumes they get the curve of grey levels).
    "distorted" ones are, as DiRA does; of images "curved" and "uncurved" ones have a
    part of it, the curves or what comes after them, and "both" are plain and distorted
    ones. "genesis" are distorted as Models Genesis does, and "words" are whole cubes,
    as TransVW distorts them.
    """
    return _of_volumes(settings) if settings.cube else _of_images(settings)


def _of_images(settings: Settings) -> dict[str, Callable[[Any], Any]]:
    views = PublishedPipeline(
        settings.size,
        scale=(settings.smallest_crop, 1.0),
        jitter=tuple(settings.jitter * most for most in PublishedPipeline.jitter),
    )
    mixture: Distortion = published_mixture()
    if settings.distortions != 1:
        mixture = Sequential([mixture] * settings.distortions)
    # Even no distortion draws a seed.
    curves: Distortion = Sequential([])
    if settings.intensity:
        curves = NonLinearIntensity(inverted=0.0, p=settings.intensity)
    both = Sequential([curves, mixture]) if settings.intensity else mixture
    plain, curved, uncurved, distorted = (
        DiRATransform(
            views, distortion=distortion, window=parse_window(settings.window)
        )
        for distortion in (Sequential([]), curves, mixture, both)
    )
    return {
        "plain": plain,
        "curved": curved,
        "uncurved": uncurved,
        "distorted": distorted,
        "both": Both(plain, distorted),
    }


def _of_volumes(settings: Settings) -> dict[str, Callable[[Any], Any]]:
    depth, height, width = settings.cube
    low, high = settings.zoom
    views, curve = (
        VolumePipeline(
            (depth, height, width), scale=(low, high), curve=curve, inverted=0.0
        )
        for curve in (0.0, settings.intensity)
    )
    whole = VolumePipeline((depth, height, width), scale=(1.0, 1.0), flip=0.0, curve=0)
    distort = transvw_mixture(settings.displacement)
    return {
        name: DiRATransform(
            pipeline,
            distortion=distortion,
            window=parse_window(settings.window),
            spatial_dims=3,
        )
        for name, pipeline, distortion in (
            ("plain", curve, Sequential([])),
            ("distorted", curve, distort),
            ("genesis", views, models_genesis_mixture()),
            ("words", whole, distort),
        )
    }
