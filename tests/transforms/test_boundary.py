"""What enters a transform, and what leaves it."""

from __future__ import annotations

import torch

from lightly_dira import DiRATransform


class Finished:
    """A transform of one's own that returns views with masks, as for DetCon."""

    def __call__(self, image):
        mask = torch.zeros(1, 32, 32, dtype=torch.int64)
        return [(torch.rand(3, 32, 32), mask), (torch.rand(3, 32, 32), mask)]


def test_views_with_masks_of_any_transform() -> None:
    """Found: `the transform makes 0 views`."""
    views = DiRATransform(Finished())(torch.rand(3, 40, 40))
    assert [len(view) for view in views] == [2, 2]
    assert not views[0][1].any()
    assert len(views.targets) == 2
