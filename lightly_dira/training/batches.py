"""The views in a batch, which may hold anything beside them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightly_dira.views import DiRAViews, find_views


def different_views(batch: Any, *, named: Tensor | None) -> list[DiRAViews]:
    """Returns the `DiRAViews` in a batch, each once.

    Args:
        batch: The batch.
        named: The tensor that is to be restored, if the loop names it.

    Raises:
        ValueError: If one is named and there are several, or it is a view without a
            target.
    """
    found = list({id(views): views for views in find_views(batch)}.values())
    if named is not None and len(found) > 1:
        raise ValueError(
            "DiRA: view= names one tensor, but this batch holds several `DiRAViews`. "
            "Pass those that it was made from: `dira(loss, batch[name], view=x)`."
        )
    for views in found:
        numbers = {number for number, view in enumerate(views) if view is named}
        if numbers and not numbers & {*views.target_views}:
            raise ValueError(
                f"DiRA: view= names view {min(numbers)} of the batch, which has no "
                f"target; {views.target_views} have one. Name one of those, or give "
                "each view its target: DiRATransform(target_view=None)."
            )
    return found


def join(parts: list[Tensor]) -> Tensor:
    """Returns one batch of images of several."""
    if len({part.shape[1:] for part in parts}) > 1:
        shapes = " and ".join(str(tuple(part.shape)) for part in parts)
        raise ValueError(
            f"DiRA: this batch holds several `DiRAViews`, of shapes {shapes}, which "
            "cannot be restored together. Give them one size, or call `dira` with each "
            "of them in a step of its own, `dira(loss, batch[name])`."
        )
    return parts[0] if len(parts) == 1 else torch.cat(parts)


NO_TARGET = (
    "DiRA: the batch carries no restoration target. Wrap the dataset's transform: "
    "DiRATransform(transform), and pass the loader's batch unchanged: a new list of "
    "its views loses the target. Lightly's MultiViewCollate makes such a list: "
    "leave `collate_fn` out of the DataLoader, whose default works. So do MONAI's "
    "Compose, Dataset and CacheDataset, and MONAI's DataLoader joins the views of all "
    "images: hide them in a dictionary, `Dataset(data, lambda item: {'views': "
    "transform(item)})`. "
    "DistributedDataParallel with `device_ids` makes such lists of what its `forward` "
    "is called with: call `dira` outside of it, or use DiRAMixin."
)

UNSEEN = (
    "DiRA: this batch holds several `DiRAViews`, and the backbone has not seen all of "
    "them: the others are not restored. Pass those that it sees, "
    "`dira(loss, batch[name])`, or run it on all."
)
