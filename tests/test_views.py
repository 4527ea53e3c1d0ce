"""Views and targets stay together, whatever carries them."""

from __future__ import annotations

import copy
import dataclasses
import heapq
import pickle
import random
import warnings
from collections import OrderedDict, UserDict, namedtuple
from typing import Any

import pytest
import torch
from lightly.transforms import SimCLRTransform
from loops import make_views, part_of
from methods import tiny_backbone
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, default_collate
from torch.utils.data._utils.pin_memory import pin_memory
from torchvision.transforms import v2

from lightly_dira import DiRA, DiRATransform, DiRAViews
from lightly_dira.core import same_image
from lightly_dira.views import find_views


def make(count: int = 2, batch: tuple[int, ...] = (4,)) -> DiRAViews:
    views = [torch.rand(*batch, 3, 8, 8) for _ in range(count)]
    targets = {i: torch.rand(*batch, 1, 8, 8) for i in range(count)}
    return DiRAViews(views, targets, target_view=None)


def assert_same(first: DiRAViews, second: DiRAViews) -> None:
    assert type(second) is DiRAViews
    assert second.target_view == first.target_view
    pairs = [*zip(first, second, strict=True)]
    pairs += zip(first.targets, second.targets, strict=True)
    for one, other in pairs:
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def assign(views: DiRAViews, place: Any, value: Any) -> None:
    views[place] = value


def swap(views: DiRAViews) -> None:
    views[0], views[1] = views[1], views[0]


def add(views: DiRAViews) -> None:
    views += [views[0]]


def multiply(views: DiRAViews) -> None:
    views *= 2


class TestNobodyReordersThem:
    """Found: views swapped or assigned got the targets of others."""

    @pytest.mark.parametrize(
        "change",
        [
            swap,
            add,
            multiply,
            lambda views: [random.shuffle(views) for _ in range(50)],
            lambda views: assign(views, slice(None), views[::-1]),
            lambda views: assign(views, 0, views[1]),
            lambda views: assign(views, slice(1, 1), [views[0]]),
            lambda views: views.append(views[0]),
            lambda views: views.extend([views[0]]),
            lambda views: views.insert(0, views[1]),
            lambda views: views.pop(),
            lambda views: views.remove(views[0]),
            lambda views: views.reverse(),
            lambda views: views.sort(key=id),
            lambda views: views.clear(),
            lambda views: views.__delitem__(0),
        ],
    )
    def test_by_a_list_operation(self, change) -> None:
        views = make()
        before = list(views)
        with pytest.raises(TypeError, match=r"targets of others.*list\(views\)"):
            change(views)
        assert all(map(lambda a, b: a is b, views, before))

    def test_behind_python(self) -> None:
        views = make(3)
        list.__setitem__(views, slice(None), views[::-1])
        with pytest.raises(TypeError, match="targets of others"):
            _ = views.view
        with pytest.raises(TypeError, match="targets of others"):
            views.to("cpu")
        views = DiRAViews(
            map(Comparable, torch.tensor([3.0, 1.0, 2.0])), torch.zeros(1)
        )
        heapq.heapify(views)
        with pytest.raises(TypeError, match="targets of others"):
            _ = views.view

    def test_plain_lists_of_them_are_free(self) -> None:
        views = make()
        for plain in (views[::-1], views + views, 2 * views, list(views), views.copy()):
            assert type(plain) is list


class Comparable(Tensor):
    def __lt__(self, other):
        return float(self) < float(other)


class TestTheySurvive:
    @pytest.mark.parametrize(
        "how",
        [
            copy.copy,
            copy.deepcopy,
            lambda views: pickle.loads(pickle.dumps(views)),
            lambda views: views.to(torch.float32),
            lambda views: views.to("cpu", non_blocking=True),
            lambda views: copy.copy(views.to("cpu")),
        ],
    )
    def test_copies(self, how) -> None:
        views = make()
        assert_same(views, how(views))

    def test_moves_that_are_still_to_be_made(self) -> None:
        views = make().to(torch.float64)
        for twin in (copy.deepcopy(views), pickle.loads(pickle.dumps(views))):
            assert twin.target.dtype == torch.float64

    @pytest.mark.parametrize("workers", [0, 2])
    def test_loaders(self, workers: int) -> None:
        samples = [(make(batch=()), i) for i in range(4)]
        loader = DataLoader(samples, batch_size=4, num_workers=workers)
        ((views, _),) = loader
        assert_same(default_collate([sample for sample, _ in samples]), views)

    def test_batches_made_before(self) -> None:
        """Found: `default_convert` made a plain list of them."""
        views = make()
        (batch,) = DataLoader([(views, 0)], batch_size=None)
        assert batch[0][0] is views[0]
        assert_same(views, batch[0])

    def test_what_a_subclass_keeps(self) -> None:
        class Named(DiRAViews):
            pass

        views = Named(torch.rand(2, 3, 8, 8), torch.rand(1, 8, 8))
        views.name = "a"
        for twin in (copy.copy(views), copy.deepcopy(views)):
            assert twin.name == "a"
            assert type(twin) is Named

    def test_pinning(self, monkeypatch) -> None:
        monkeypatch.setattr(Tensor, "pin_memory", lambda tensor: tensor.clone())
        views = make()
        assert_same(views, pin_memory({"a": (views, 1)})["a"][0])


@dataclasses.dataclass
class Batch:
    views: DiRAViews
    index: int


@dataclasses.dataclass(slots=True)
class Slotted:
    views: DiRAViews


Named = namedtuple("Named", "views index")


@pytest.mark.parametrize(
    "wrap",
    [
        lambda a, b: [a, [b]],
        lambda a, b: (a, 0, ("x", b)),
        lambda a, b: {"ct": a, "mr": {"views": b}},
        lambda a, b: OrderedDict(ct=a, mr=b),
        lambda a, b: UserDict(ct=a, mr=b),
        lambda a, b: Named(a, [b]),
        lambda a, b: [Batch(a, 0), Batch(b, 1)],
        lambda a, b: (Slotted(a), Slotted(b)),
        lambda a, b: (({"ct": (a, None)}, 0, 0), b),
    ],
)
def test_they_are_found_in_any_batch(wrap) -> None:
    first, second = make(), make()
    found = list(find_views(wrap(first, second)))
    assert len(found) == 2
    assert found[0] is first
    assert found[1] is second


@pytest.mark.parametrize(
    "nested",
    [
        lambda t: t,
        lambda t: [t, t],
        lambda t: v2.Compose([t]),
        lambda t: lambda image: t(image),
    ],
)
def test_a_wrapped_transform_is_not_wrapped_again(nested) -> None:
    """Found: the "clean" target was a distorted view, as after a cell run twice."""
    transform = DiRATransform(SimCLRTransform(input_size=32))
    with pytest.raises(TypeError, match=r"wrapped (already|twice)|DiRATransform"):
        DiRATransform(nested(transform))(
            v2.functional.to_pil_image(torch.rand(3, 32, 32))
        )


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.bool])
def test_targets_are_floating_point(dtype) -> None:
    """Found: a restoration loss of 22,353."""
    with pytest.raises(TypeError, match=r"float\(\) / 255"):
        DiRAViews([torch.rand(3, 8, 8)], torch.ones(1, 8, 8).to(dtype))


def test_targets_are_tensors() -> None:
    with pytest.raises(TypeError, match="floating-point tensors"):
        DiRAViews([torch.rand(3, 8, 8)], torch.ones(1, 8, 8).numpy())


def test_targets_of_views_that_are_not_there() -> None:
    with pytest.raises(ValueError, match="target of view 2, but 2 views"):
        DiRAViews(torch.rand(2, 3, 8, 8), {2: torch.rand(1, 8, 8)}, target_view=None)


def test_import_changes_nothing_of_lightly() -> None:
    """Found: `MultiViewCollate.__call__` was replaced for everybody."""
    from lightly.data.multi_view_collate import MultiViewCollate

    assert MultiViewCollate.__call__.__module__ == "lightly.data.multi_view_collate"
    assert not hasattr(MultiViewCollate.__call__, "__wrapped__")
    samples = [(part_of(make_views(1), 0), i, f"{i}") for i in range(2)]
    batch = next(iter(DataLoader(samples, 2, collate_fn=MultiViewCollate())))
    backbone = tiny_backbone()
    dira = DiRA(backbone, torch.optim.SGD(backbone.parameters(), lr=0.1))
    with pytest.raises(ValueError, match="leave `collate_fn` out"):
        dira(backbone(batch[0][0]).mean(), batch)


class TestViewsAsALists:
    @pytest.mark.parametrize(
        "change",
        [
            lambda views: views.pop(0),
            lambda views: views.reverse(),
            lambda views: views.insert(0, views[0]),
            lambda views: views.__delitem__(0),
        ],
    )
    def test_views_keep_their_targets(self, change) -> None:
        with pytest.raises(TypeError, match=r"targets of others.*list\(views\)"):
            change(make_views())

    def test_a_view_that_is_said_in_validation(self) -> None:
        backbone = tiny_backbone().eval()
        dira, views = DiRA(backbone), make_views()
        with torch.no_grad():
            dira(torch.tensor(0.0), views, view=views[1])
        expected = (dira.restore(views[1]) - views.targets[1]).square().mean()
        torch.testing.assert_close(dira.components.restorative, expected)

    def test_validation_of_views_that_the_loop_changes(self) -> None:
        backbone = tiny_backbone()
        dira = DiRA(backbone, torch.optim.SGD(backbone.parameters(), lr=0.1))
        views = make_views()
        x = (views[0] - 0.5) / 0.2
        dira(backbone(x).mean(), views)
        with torch.no_grad():
            with pytest.raises(RuntimeError, match="view=x"):
                dira(torch.tensor(0.0), views)
            dira(torch.tensor(0.0), views, view=x)
        expected = (dira.restore(x) - views.targets[0]).square().mean()
        torch.testing.assert_close(dira.components.restorative, expected)


class TestChangedInPlace:
    def setting(self) -> tuple[DiRA, DiRAViews]:
        torch.manual_seed(0)
        images = F.interpolate(torch.rand(8, 3, 4, 4), size=(32, 32))
        backbone = tiny_backbone()
        optimizer = torch.optim.SGD(backbone.parameters(), lr=0.01)
        target = images[:4].mean(dim=1, keepdim=True)
        return DiRA(backbone, optimizer), DiRAViews(images.split(4), target)

    def step(self, dira: DiRA, views: DiRAViews) -> None:
        dira(dira.features.backbone(views[0]).mean(), views).backward()

    def test_pixels_that_moved(self) -> None:
        """Found: turned views were restored to targets that were not, silently."""
        same_image._warn_of_unlike.cache_clear()
        dira, views = self.setting()
        views[0].copy_(views[0].flip(-1))
        with pytest.warns(UserWarning, match="changed in place, and now hardly resem"):
            self.step(dira, views)

    def test_values_that_changed(self, recwarn) -> None:
        same_image._warn_of_unlike.cache_clear()
        dira, views = self.setting()
        views[0].sub_(0.5).div_(0.2)
        self.step(dira, copy.copy(views))
        self.step(dira, views)
        assert not recwarn.list


def test_a_target_of_another_view() -> None:
    """Found: a KeyError at the first step."""
    views, target = torch.rand(2, 4, 3, 32, 32), torch.rand(4, 1, 32, 32)
    with pytest.raises(ValueError, match=r"target_view=0 has no target; \[1\] have"):
        DiRAViews(views, {1: target})
    both = DiRAViews(views, {1: target, 0: target / 2}, target_view=None)
    assert both.target_views == [0, 1]
    assert both.target.equal(target / 2)


@pytest.mark.parametrize(
    "copied",
    [
        lambda views: views.to("cpu"),
        copy.deepcopy,
        lambda views: pickle.loads(pickle.dumps(views)),
        lambda views: default_collate([views, views]),
    ],
)
@pytest.mark.parametrize("single", [False, True])
def test_changes_before_a_copy(copied, single: bool) -> None:
    """Found: copies of views that were turned in place did not know it."""
    image = torch.linspace(0, 1, 32).expand(3, 32, 32)
    image = image if single else image.expand(2, 3, 32, 32)
    target = image.select(-3, 0).unsqueeze(-3)
    same_image._warn_of_unlike.cache_clear()
    views = DiRAViews([image.clone()], target)
    views[0].mul_(0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        copied(views)
    views[0].copy_(image.flip(-1))
    with pytest.warns(UserWarning, match="changed in place"):
        copied(views)


def test_samples_of_several_kinds() -> None:
    """Found: `KeyError: 0`; and targets that the first sample lacked were dropped."""
    views, target = list(torch.rand(2, 3, 8, 8)), torch.rand(1, 8, 8)
    first = DiRAViews(views, {0: target})
    for other in (
        DiRAViews(views, {1: target}, target_view=1),
        DiRAViews(views, {0: target, 1: target}),
        DiRAViews([*views, views[0]], target),
        views,
    ):
        with pytest.raises(ValueError, match="as many views, and targets"):
            default_collate([first, other])
