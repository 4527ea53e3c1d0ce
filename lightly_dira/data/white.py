"""What is black and what is white: it is decided here, and only here."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lightly_dira.core.user_warnings import warn

Window = tuple[float, float] | Literal["percentiles"]
"""The lowest and the highest value of interest, in the units of the image.

"percentiles" stands for 0.5 and 99.5 of each image.
"""
# The highest values of 12 and of 14 bits, and the parts of the range of 16 they use.
_FEW_BITS = {
    4095: "a sixteenth of their range (0 to 4095) and becomes almost black",
    16383: "a quarter of their range (0 to 16383) and becomes dark",
}
# Values that percentiles are taken of.
_VALUES = 2**19


class Stored(np.ndarray[Any, Any]):
    """Values of a file that says what is white: those of 12 bits, for example.

    Attributes:
        white: The highest value that the file's bits can hold, or 1 of values that were
            windowed as the file says.
    """

    white: float | None = None

    @classmethod
    def of(cls, values: NDArray[Any], white: float) -> Stored:
        """Says what is white."""
        stored = values.view(cls)
        stored.white = white
        return stored

    def __array_finalize__(self, whole: Any) -> None:
        """Parts and copies have the same white."""
        self.white = getattr(whole, "white", None)

    def __reduce__(self) -> Any:
        """Keeps white in copies that are pickled, as between processes."""
        reduced: Any = super().__reduce__()
        make, arguments, state = reduced
        return make, arguments, (state, self.white)

    def __setstate__(self, state: Any) -> None:
        state, self.white = state
        super().__setstate__(state)

    def __array_wrap__(self, values: Any, *args: Any, **kwargs: Any) -> Any:
        """Results of arithmetic are plain arrays, as white may have changed."""
        return np.asarray(values)[()]


def is_displayed(image: Any) -> bool:
    """Whether values were windowed as their file says, so that 1 is what is white."""
    return isinstance(image, Stored) and image.dtype.kind == "f" and image.white == 1


def scale(values: NDArray[Any], window: Window | None) -> NDArray[Any]:
    """Returns values as float32 in [0, 1], or bits as uint8; see `to_pixels`."""
    if values.dtype == np.bool_ and window is None:
        return np.where(values, np.uint8(255), np.uint8(0))
    check_finite(values)
    black, white = limits_of(values, window)
    scaled: NDArray[Any] = np.array(values, np.float32)
    scaled -= np.float32(black)
    scaled /= np.float32(white - black)
    return scaled.clip(0, 1, out=scaled)


def check_finite(values: NDArray[Any]) -> None:
    """Raises a ValueError if floats hold NaN or infinite numbers."""
    # Both limits are NaN if any value is.
    limits = (
        [float(values.min()), float(values.max())] if values.dtype.kind == "f" else 0
    )
    if not np.isfinite(limits).all():
        raise ValueError(
            "DiRATransform: the image holds NaN or infinite pixels. Replace them, for "
            "example with `numpy.nan_to_num`."
        )


def parse_window(words: Sequence[str]) -> Window | None:
    """Returns the window that the words of a command mean; none if there are none.

    Raises:
        ValueError: If they are neither two numbers nor "percentiles".
    """
    if not words:
        return None
    if [*words] == ["percentiles"]:
        return "percentiles"
    try:
        low, high = map(float, words)
    except ValueError:
        raise ValueError(
            "--window: expected two numbers, or the word percentiles, got "
            f"{' '.join(words)}."
        ) from None
    return low, high


def check_window(window: Any) -> None:
    """Raises a ValueError if it is neither None, (low, high) nor "percentiles"."""
    if window is None or (isinstance(window, str) and window == "percentiles"):
        return
    if isinstance(window, str) or not window[0] < window[1]:
        raise ValueError(
            "DiRATransform: window must be (low, high) with low < high, or "
            f"'percentiles', got {window!r}."
        )


def limits_of(values: NDArray[Any], window: Window | None) -> tuple[float, float]:
    """Returns the values that become 0 and 1."""
    if window is None:
        return 0.0, white_of(values)
    if not isinstance(window, str):
        if is_displayed(values) and not 0 <= window[0] < window[1] <= 1:
            raise ValueError(
                "DiRATransform: the image was windowed as its file says (voi=True), "
                f"and has values in [0, 1], not the units of window={window}. Leave "
                "one of the two out."
            )
        return window
    flat = np.asarray(values).reshape(-1)
    # Some hundred thousand values tell the percentiles of large volumes. Their step has
    # no factor in common with a side, so that they come from all rows and columns.
    step = max(1, flat.size // _VALUES)
    while math.gcd(step, flat.size) > 1:
        step += 1
    some = flat[::step]
    some = some.view(np.uint8) if some.dtype == np.bool_ else some
    low, high = np.percentile(some, (0.5, 99.5))
    least = np.nextafter(np.float32(low), np.float32(np.inf))
    return float(low), float(max(high, least))


def white_of(values: NDArray[Any]) -> float:
    """Returns the value of white, which the type alone does not always determine.

    Raises:
        ValueError: If the value of white is unclear.
    """
    if values.dtype == np.bool_:
        return 1.0
    low, high = float(values.min()), float(values.max())
    stored = getattr(values, "white", None)
    if stored is not None and 0 <= low <= high <= stored:
        return float(stored)
    top = 1.0 if values.dtype.kind == "f" else 65535.0
    # PIL and some readers give 16 bits as wider integers; 8 bits come as bytes.
    wide = values.dtype.itemsize > 2 and (high > 255 or high == 0)
    fits = top == 1 or values.dtype == np.uint16 or wide
    if not (fits and low >= 0 and high <= top):
        raise ValueError(
            f"DiRATransform: without a window {values.dtype} pixels must be "
            f"{'floats in [0, 1]' if top == 1 else 'uint8, or unsigned of 16 bits'}, "
            f"got values from {low:g} to {high:g}. Say which values are black and "
            "white, DiRATransform(..., window=(low, high)), or take those of each "
            'image, window="percentiles"; DICOM files may state theirs, '
            "read_image(file, voi=True)."
        )
    few = [most for most in _FEW_BITS if 0 < high <= most]
    if top > 1 and few:
        _warn_of_few_bits(min(few))
    return top


@functools.cache
def _warn_of_few_bits(most: int) -> None:
    """Warns, once in a process of each."""
    warn(
        f"DiRATransform: an image of 16 bits uses at most {_FEW_BITS[most]}. If all "
        f"images do, as those of {most.bit_length()} bits, give their range: "
        f"DiRATransform(..., window=(0, {most}))."
    )
