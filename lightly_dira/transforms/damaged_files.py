"""The exceptions that libraries raise on files they cannot read."""

from __future__ import annotations

import zipfile
import zlib

# What NumPy and nibabel raise on files that are damaged or of another kind.
DAMAGED = (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile, zlib.error)
