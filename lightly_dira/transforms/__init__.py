"""Distorted views with clean, aligned targets: transforms, pixels and files."""

import importlib
from typing import Any

# Imported when they are asked for: albumentations takes a second.
_HOMES = {
    "DiRATransform": "dira_transform",
    "DiRAViews": "dira_views",
    "InPainting": "distortions",
    "NonLinearIntensity": "grey_curves",
    "OutPainting": "distortions",
    "PatchShuffling": "distortions",
    "PublishedPipeline": "published_pipeline",
    "published_mixture": "distortions",
    "read_image": "image_files",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    """Imports what is asked for first."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{__name__}.{_HOMES[name]}")
    return getattr(module, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
