"""When a module's `dira` is made: after every `__init__`, or after its model."""

from __future__ import annotations

import functools
import inspect
from abc import ABCMeta
from typing import Any


class MadeAfterInit(ABCMeta):
    """Makes `dira` once every `__init__` has run."""

    @property
    def __signature__(cls) -> inspect.Signature:
        """The arguments of the class, which `__call__` would hide."""
        signature = inspect.signature(cls.__init__)  # type: ignore[misc]
        return signature.replace(parameters=[*signature.parameters.values()][1:])

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        """Constructs the module."""
        # Not by `super()`: Lightning looks for `__class__` in the frames of callers.
        module = ABCMeta.__call__(cls, *args, **kwargs)
        module._make_dira(required=False)
        return module


def is_module(base: type) -> bool:
    """Whether a class is a LightningModule, of `pytorch_lightning` or `lightning`."""
    return any(
        each.__name__ == "LightningModule" and is_lightnings(each.__module__)
        for each in base.__mro__
    )


def is_lightnings(module: str) -> bool:
    """Whether a module of Python is one of Lightning's."""
    return module.startswith(("pytorch_lightning.", "lightning.pytorch."))


def then_dira(configure_model: Any) -> Any:
    """Returns a `configure_model` that also makes `dira`, after the model."""

    @functools.wraps(configure_model)
    def configured(self: Any) -> None:
        configure_model(self)
        self._make_dira(required=False)

    configured.makes_dira = True  # type: ignore[attr-defined]
    return configured
