"""No example may give cause for a warning of this library."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def warnings_are_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONWARNINGS", "error:DiRA")
