"""What a loop does to a view before the backbone sees it, learned while it trains."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightly_dira.core.same_image import equal

# By this part of the largest value, numbers of the same change may differ: in single
# precision, and in less.
_ROUNDING, _COARSE_ROUNDING = 1e-4, 1e-2


class ViewChange:
    """The change from a view to what the backbone is called with, by channel.

    Loops normalise their views, or repeat grey ones over channels: the backbone then
    sees ``scale * view + shift``. `learn` finds the numbers from pairs of both. They
    hold until a pair contradicts them, as where a loop normalises each image by itself.
    This is the one place that knows it: pictures of held-out images ask it, validation
    does, and checkpoints keep it.

    Args:
        channels: Channels of what the backbone is called with.

    Attributes:
        scale: A number for each channel; not a number while nothing is known, infinite
            if no such numbers exist.
        shift: The same.
    """

    def __init__(self, channels: int) -> None:
        """Knows nothing yet."""
        self.channels = channels
        self.scale, self.shift = ([math.nan] * channels for _ in range(2))

    @property
    def is_unknown(self) -> bool:
        """Whether nothing has been learned yet."""
        return all(map(math.isnan, self.scale))

    @property
    def is_none(self) -> bool:
        """Whether the backbone sees the views themselves, as far as is known."""
        # Channels that were blank so far tell nothing.
        pairs = {(a, b) for a, b in zip(self.scale, self.shift, strict=True) if a == a}
        return pairs <= {(1.0, 0.0)}

    def state(self) -> Tensor:
        """Returns both numbers of each channel, (2, `channels`)."""
        return torch.tensor([self.scale, self.shift], dtype=torch.float64)

    def load_state(self, state: Tensor) -> None:
        """Restores what `state` returned."""
        self.scale, self.shift = state.tolist()

    def learn(self, images: Tensor, view: Tensor) -> None:
        """Compares what the backbone was called with to the view it was made from.

        Reading the result waits for the device of the images.
        """
        if images is view and self.is_none and not self.is_unknown:
            return
        found = _numbers_of(images.detach(), view.detach(), self.channels)
        known = self.scale, self.shift
        if not _agree(found, known):
            found = known = _none_known(self.channels)
        self.scale, self.shift = (
            [a if math.isnan(b) else b for a, b in zip(*pair, strict=True)]
            for pair in zip(found, known, strict=True)
        )

    def apply(self, view: Tensor) -> Tensor:
        """Returns what the loop would call the backbone with.

        Raises:
            RuntimeError: If the loop changes its views in a way that is not known.
        """
        if not (self.is_none or all(map(math.isfinite, self.scale))):
            raise RuntimeError(WHICH_VIEW)
        if view.shape[1] != self.channels:
            if self.is_unknown:
                raise RuntimeError(
                    f"DiRA: the backbone takes images of {self.channels} channels, and "
                    f"the view has {view.shape[1]}. {_SAY_IT}"
                )
            view = _with_channels(view, self.channels)
        if self.is_none:
            return view
        scale, shift = (
            view.new_tensor(numbers).reshape(-1, *[1] * (view.ndim - 2))
            for numbers in (self.scale, self.shift)
        )
        return scale * view + shift


def _numbers_of(
    images: Tensor, view: Tensor, channels: int
) -> tuple[list[float], list[float]]:
    """Returns scale and shift that make these images of the view."""
    if images is view or equal(images, view):
        return [1.0] * channels, [0.0] * channels
    comparable = images.shape[1] == channels and images.shape[2:] == view.shape[2:]
    if not comparable or (view.shape[1] not in (1, channels) and channels != 1):
        return _none_known(channels)
    exact = min(images.dtype.itemsize, view.dtype.itemsize) >= 4
    rounding = _ROUNDING if exact else _COARSE_ROUNDING
    images, view = (x.cpu().float().flatten(2) for x in (images, view))
    view = _with_channels(view, channels)
    (mean, spread), (old_mean, old_spread) = (
        (x.mean(dim=2), x.std(dim=2, correction=0)) for x in (images, view)
    )
    told = old_spread.amax(dim=0) > 1e-6  # blank channels tell nothing
    if not told.any():
        return [math.nan] * channels, [math.nan] * channels
    # An image's spread over that of its view is the scale: one number for all images.
    scale = (spread * old_spread).sum(0) / old_spread.square().sum(0)
    shift = (mean - scale * old_mean).mean(0)
    limit = rounding * (spread.max() + mean.abs().max())
    first = scale[:, None] * view[0] + shift[:, None] - images[0]
    wrong = (
        (scale * old_spread - spread)[:, told].abs().max(),
        (scale * old_mean + shift - mean)[:, told].abs().max(),
        first[told].abs().mean() / 10,  # of single pixels, rounded by themselves
    )
    if not max(wrong) <= limit:
        return _none_known(channels)
    if (scale - 1)[told].abs().max() <= rounding and shift[told].abs().max() <= limit:
        scale, shift = torch.ones_like(scale), torch.zeros_like(shift)  # only moved
    scale, shift = (x.masked_fill(~told, math.nan) for x in (scale, shift))
    return scale.tolist(), shift.tolist()


def _none_known(channels: int) -> tuple[list[float], list[float]]:
    return [math.inf] * channels, [math.inf] * channels


def _agree(
    found: tuple[list[float], list[float]], known: tuple[list[float], list[float]]
) -> bool:
    pairs = zip([*found[0], *found[1]], [*known[0], *known[1]], strict=True)
    return all(
        math.isclose(a, b, rel_tol=1e-2, abs_tol=1e-2)
        for a, b in pairs
        if not (math.isnan(a) or math.isnan(b))
    )


def _with_channels(view: Tensor, channels: int) -> Tensor:
    if channels == 1:
        return view.mean(dim=1, keepdim=True)
    return view.expand(-1, channels, *view.shape[2:])


_SAY_IT = (
    "Say what the backbone is called with: `dira(loss, batch, view=x)`, or return it "
    'from a training step of Lightning, `{"loss": loss, "view": x}`.'
)

WHICH_VIEW = (
    "DiRA: this loop normalises or repeats its views before the backbone, and without "
    f"gradients DiRA cannot tell what the backbone was called with. {_SAY_IT}"
)
