"""Packages that are installed on request: `pip install lightly-dira[...]`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def extra(name: str) -> Iterator[None]:
    """Says what to install if a package that is imported inside is missing.

    Args:
        name: The extra of this package that brings the other one.

    Raises:
        ModuleNotFoundError: If a package is missing.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or str(error)).partition(".")[0]
        raise ModuleNotFoundError(
            f"This needs {package}: pip install lightly-dira[{name}]", name=error.name
        ) from error
