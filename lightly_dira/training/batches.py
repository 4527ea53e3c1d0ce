"""The views in a batch, which may hold anything beside them."""

from __future__ import annotations

from typing import Any

from lightly_dira.views import DiRAViews, find_views


def different_views(batch: Any, *, single: bool) -> list[DiRAViews]:
    """Returns the `DiRAViews` in a batch, each once.

    Raises:
        ValueError: If there are several, and must not be.
    """
    found = list({id(views): views for views in find_views(batch)}.values())
    if single and len(found) > 1:
        raise ValueError(
            "DiRA: view= names one tensor, but this batch holds several `DiRAViews`. "
            "Pass those that it was made from: `dira(loss, batch[name], view=x)`."
        )
    return found


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
