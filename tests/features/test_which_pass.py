"""Loops of all kinds: the right view is decoded."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from loops import Watched, frozen_statistics, make_views, make_vit
from methods import SimSiam, tiny_backbone
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint
from torchvision.transforms import v2

from lightly_dira import DiRA, DiRAViews
from lightly_dira.features import which_pass
from lightly_dira.features.pyramid import FeaturePyramid


class TestTheRightView:
    @pytest.mark.parametrize("place", [0, 4, 12])
    def test_between_batches_of_other_sizes(self, place: int) -> None:
        """Found: of 4 + 8 + 8 joined rows only the first and the last 8 were tried."""
        watched = Watched(tiny_backbone())
        views, others = torch.rand(2, 8, 3, 32, 32), torch.rand(12, 3, 32, 32)
        watched.backbone(torch.cat([others[:place], views[0], others[place:]]))
        watched.check(list(views), 0)

    def test_order_that_changes(self) -> None:
        """Found: after the first step, copies were taken to come in its order."""
        watched = Watched(tiny_backbone())
        for step in range(4):
            views = torch.rand(2, 3, 3, 32, 32)
            for view in (views, views.flip(0))[step % 2]:
                watched.backbone(view.clone())
            watched.check(list(views), 0)

    @pytest.mark.parametrize("copied", [False, True])
    def test_another_view_each_time(self, copied: bool) -> None:
        """Found: SMoG's encoder sees the second view in every second step."""
        watched = Watched(tiny_backbone())
        twin = copy.deepcopy(watched.backbone).requires_grad_(False)
        for step in range(4):
            views = list(torch.rand(2, 3, 3, 32, 32))
            mine, other = views[step % 2], views[1 - step % 2]
            watched.backbone(mine.clone() if copied else mine)
            twin(other)
            watched.check(views, step % 2)

    def test_targets_go_with_their_views(self) -> None:
        model = SimSiam(tiny_backbone(), 16)
        dira = DiRA(model.backbone, torch.optim.SGD(model.parameters(), lr=0.1))
        for seen in (1, 0):
            views = make_views()
            loss = model.backbone(views[seen]).mean()
            dira(loss, views)
            head = dira.components.restorative
            dira.features.forget()
            loss = model.backbone(views[seen].clone()).mean()
            fixed = DiRAViews(views, views.targets[seen], target_view=seen)
            dira(loss, fixed)
            torch.testing.assert_close(dira.components.restorative, head)

    @pytest.mark.parametrize(
        "call",
        [
            lambda f, x: f.encode(x),
            lambda f, x: f.vit.forward_features(x),
            lambda f, x: f.vit.forward_intermediates(x),
            lambda f, x: f.vit.get_intermediate_layers(x, n=2),
            lambda f, x: functional_call(f, dict(f.named_parameters()), (x,)),
        ],
        ids=["encode", "features", "intermediates", "layers", "functional"],
    )
    def test_called_by_a_method(self, call) -> None:
        """Found: only `forward` of the very module was seen."""
        watched = Watched(make_vit(), input_size=32)
        for _ in range(2):
            views = list(torch.rand(2, 3, 3, 32, 32))
            call(watched.backbone, views[0])
            call(watched.backbone, views[1].clone())
            watched.check(views, 0)
            call(watched.backbone, views[1].clone())
            watched.check(views, 1)

    def test_views_that_hardly_differ_are_not_guessed(self) -> None:
        """The second is the first, brighter: normalised, either may be the other."""
        watched = Watched(tiny_backbone())
        first = torch.rand(3, 3, 32, 32)
        views = [first, 0.5 * first]
        watched.backbone((views[1] - 0.3) / 0.2)
        with pytest.raises(RuntimeError, match="view=x"):
            watched.pyramid.take_first(*views)
        watched.backbone(views[1].clone())
        watched.check(views, 1)


class TestSaid:
    """`dira(loss, batch, view=x)`: nothing is inferred."""

    def setting(self):
        model = SimSiam(tiny_backbone(), 16)
        return model, DiRA(model.backbone, torch.optim.SGD(model.parameters(), lr=0.1))

    def test_by_identity(self) -> None:
        model, dira = self.setting()
        views = make_views()
        changed = views[1] + 0.3 * torch.rand_like(views[1])
        fixed = DiRAViews(views, views.targets[1], target_view=1)
        for _ in range(2):
            model.backbone(views[0])
            loss = model.backbone(changed).mean()
            dira(loss, fixed, view=changed).backward()
        frozen_statistics(model, dira)
        model.backbone(changed)
        with torch.no_grad():
            expected = dira.head(dira.features(changed), views[1].shape[2:])
        loss = model.backbone(changed).mean()
        dira(loss, fixed, view=changed)
        expected = (expected - views.targets[1]).square().mean()
        torch.testing.assert_close(dira.components.restorative, expected)

    def test_a_copy_of_one_of_several(self) -> None:
        model, dira = self.setting()
        frozen_statistics(model, dira)
        views = make_views()
        x = views[1].clone()
        dira(model.backbone(x).mean(), views, view=x)
        restored = dira.restore(views[1])
        expected = (restored - views.targets[1]).square().mean()
        torch.testing.assert_close(dira.components.restorative, expected)

    def test_several_in_one(self) -> None:
        """Found: an error about the sizes of tensors."""
        model, dira = self.setting()
        views = make_views()
        x = torch.cat(list(views))
        loss = model.backbone(x).mean()
        with pytest.raises(ValueError, match=r"rows, views .*Leave `view` out"):
            dira(loss, views, view=x)

    def test_none_of_several(self) -> None:
        model, dira = self.setting()
        views = make_views()
        x = torch.rand_like(views[0])
        loss = model.backbone(x).mean()
        with pytest.raises(RuntimeError, match="target_view=0"):
            dira(loss, views, view=x)

    def test_not_what_the_backbone_was_called_with(self) -> None:
        model, dira = self.setting()
        views = make_views()
        loss = model.backbone(views[0].clone()).mean()
        with pytest.raises(RuntimeError, match="not called with the tensor"):
            dira(loss, views, view=views[0])


class TestAccelerator:
    """Where a value would be waited for: here by saying so of the CPU."""

    @pytest.fixture(autouse=True)
    def accelerator(self, monkeypatch) -> None:
        monkeypatch.setattr(which_pass, "is_waited_for", lambda images: True)
        self.looked = []
        original = which_pass._by_value

        def by_value(*arguments):
            self.looked.append(arguments)
            return original(*arguments)

        monkeypatch.setattr(which_pass, "_by_value", by_value)

    def step(self, watched: Watched, swapped: bool) -> bool:
        views = list(torch.rand(2, 3, 3, 32, 32))
        for view in views[::-1] if swapped else views:
            watched.backbone(view.clone())
        _, maps = watched.pyramid.take_first(*views)
        return torch.allclose(maps[0], watched.expected(views[0])[0], atol=1e-5)

    def test_the_first_step_alone_waits(self) -> None:
        watched = Watched(tiny_backbone())
        assert all(self.step(watched, swapped=False) for _ in range(4))
        assert len(self.looked) == 1

    @pytest.mark.parametrize("order", [(0, 1), (1, 0), (2, 0, 1)])
    def test_batches_of_another_size(self, order) -> None:
        """A last, smaller batch of concatenated views."""
        watched = Watched(tiny_backbone())
        for batch in (4, 4, 3, 1, 4):
            views = list(torch.rand(len(order), batch, 3, 32, 32))
            watched.backbone(torch.cat([views[i] for i in order]))
            watched.check(views, 0)

    def test_identity_never_waits(self) -> None:
        watched = Watched(tiny_backbone())
        for step in range(4):
            views = list(torch.rand(2, 3, 3, 32, 32))
            watched.backbone(views[step % 2])
            watched.check(views, step % 2)
        assert not self.looked

    def test_one_step_wrong_at_most(self) -> None:
        watched = Watched(tiny_backbone())
        right = [self.step(watched, swapped=False), self.step(watched, swapped=True)]
        with pytest.warns(UserWarning, match="the last step restored the wrong view"):
            right.append(self.step(watched, swapped=False))
        right += [self.step(watched, swapped=step % 2 == 0) for step in range(4)]
        assert right == [True, False, True, True, True, True, True]


class Stages(nn.Sequential):
    """Also called by a method, and checkpointed."""

    how = "plain"

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "checkpoint":
            x = checkpoint(self[0], x, use_reentrant=False)
            return checkpoint(self[1:], x, use_reentrant=False)
        return super().forward(x)

    def encode(self, x: Tensor) -> Tensor:
        return super().forward(x)


def input_of(views: list[Tensor], kind: str, change: str) -> list[Tensor]:
    """What goes into the backbone, one tensor a pass."""
    changes = {
        "same": lambda x: x,
        "copy": torch.clone,
        "normalised": lambda x: (x - 0.4) / 0.2,
        "three channels": lambda x: x.repeat(1, 3, 1, 1),
    }
    images = [changes[change](view) for view in views]
    if kind == "blocks":
        return [torch.cat(images)]
    if kind == "turns":
        return [torch.stack(images, dim=1).flatten(0, 1)]
    return images


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(data=st.data())
def test_any_loop(data) -> None:
    """The maps decoded are those of the view, or an error says why there are none."""
    torch.manual_seed(data.draw(st.integers(0, 2**31), label="seed"))
    change = data.draw(
        st.sampled_from(["same", "copy", "normalised", "three channels"]),
        label="change",
    )
    channels = 1 if change == "three channels" else 3
    backbone = Stages(*tiny_backbone()).double()
    frozen_statistics(backbone)
    backbone.how = data.draw(st.sampled_from(["plain", "checkpoint"]), label="how")
    optimizer = torch.optim.SGD(backbone.parameters(), lr=0.05)
    dira = DiRA(backbone, optimizer)
    decoded = []
    dira.head.register_forward_pre_hook(lambda m, args: decoded.append(args[0]))
    for _ in range(data.draw(st.integers(1, 4), label="steps")):
        batch, count = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3))
        views = torch.rand(count, batch, channels, 16, 16, dtype=torch.float64)
        targets = torch.rand(count, batch, 1, 16, 16, dtype=torch.float64)
        batch = DiRAViews(views, dict(enumerate(targets)), target_view=None)
        order = data.draw(st.permutations(range(count)), label="order")
        seen = sorted(order[: data.draw(st.integers(1, count), label="seen")])
        kind = data.draw(st.sampled_from(["passes", "blocks", "turns"]), label="kind")
        ordered = [batch[i] for i in order if i in seen]
        inputs = input_of(ordered, kind, change)
        first = seen[0]
        if change == "same" and kind == "passes":
            wanted = batch[first]
        else:
            wanted = input_of([batch[first]], "passes", change)[0]
        with torch.no_grad():
            expected = [m.clone() for m in dira.features(wanted)]
            if data.draw(st.booleans(), label="twin"):
                copy.deepcopy(backbone)(wanted)
                backbone(wanted.clone())
        method = data.draw(st.booleans(), label="method")
        outputs = []
        for images in inputs:
            if data.draw(st.booleans(), label="extra"):
                backbone(torch.rand_like(images))
            outputs.append((backbone.encode if method else backbone)(images))
        loss = torch.cat([output.flatten() for output in outputs]).square().mean()
        decoded.clear()
        total = dira(loss, batch)
        for found, right in zip(decoded[0], expected, strict=True):
            assert torch.equal(found, right)
        total.backward()
        if not data.draw(st.booleans(), label="skipped"):
            optimizer.step()
        optimizer.zero_grad()


class Mirrored(nn.Module):
    """Changes its images inside, in one way or another."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.flip = v2.RandomHorizontalFlip(1.0)
        self.net = tiny_backbone()
        self.how = how

    def forward(self, x):
        if self.how == "module":
            return self.net(self.flip(x))
        if self.how == "training" and self.training:
            return self.net(x.flip(-1))
        if self.how == "shuffled":
            return self.net(x[torch.arange(len(x)).flip(0)])
        if self.how == "both":
            return self.net(x.flip(-1)) + self.net(x)
        if self.how == "list" and isinstance(x, list):
            return sum(self.net((each - 0.5) / 0.2) for each in reversed(x))
        return self.net(x)


class TestBackbonesThatChangeTheirImages:
    """What arrives at the first layer counts, not what the backbone was called with."""

    @pytest.mark.parametrize("how", ["module", "training", "shuffled"])
    def test_another_image_is_no_match(self, how: str) -> None:
        backbone = Mirrored(how)
        pyramid, views = FeaturePyramid(backbone), list(torch.rand(2, 3, 3, 32, 32))
        for view in (views[0], views[0].clone()):
            backbone(view)
            with pytest.raises(RuntimeError, match=r"never saw the view.*view=x"):
                pyramid.take_first(*views)
        backbone(views[0])
        (taken,) = pyramid.see([views], views[0])
        assert len(taken.maps) == 3

    def test_both_ways(self) -> None:
        watched = Watched(Mirrored("both"))
        views = list(torch.rand(2, 3, 3, 32, 32))
        watched.backbone(views[0])
        maps = watched.pyramid.take(views[0])
        expected = watched.backbone.net[0](views[0])
        torch.testing.assert_close(maps[0], expected)

    def test_a_list_in_another_order(self) -> None:
        watched = Watched(Mirrored("list"))
        views = list(torch.rand(2, 3, 3, 32, 32))
        watched.backbone(views)
        number, maps = watched.pyramid.take_first(*views)
        assert number == 0
        expected = watched.backbone.net[0]((views[0] - 0.5) / 0.2)
        torch.testing.assert_close(maps[0], expected)

    def test_after_an_exception(self) -> None:
        watched = Watched(tiny_backbone())
        views = list(torch.rand(2, 3, 3, 32, 32))
        handle = watched.backbone[0].register_forward_pre_hook(lambda *a: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            watched.backbone(views[0])
        handle.remove()
        watched.backbone[0:](views[1].clone())
        watched.backbone(views[0].clone())
        watched.check(views, 0)


def test_a_backbone_that_pads_its_images() -> None:
    """Behind and below, as timm's `dynamic_img_pad`: the view is what lies in front."""

    class Padding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = tiny_backbone()

        def forward(self, x):
            return self.net(nn.functional.pad(x, (0, -x.shape[3] % 8, 0, 0)))

    backbone = Padding()
    pyramid = FeaturePyramid(backbone, layers=["net.0", "net.1", "net.2"])
    frozen_statistics(backbone)
    for swapped in (False, True):
        views = list(torch.rand(2, 3, 3, 32, 30))
        for view in views[::-1] if swapped else views:
            backbone(view)
        number, maps = pyramid.take_first(*views)
        assert number == 0
        expected = backbone.net[0](nn.functional.pad(views[0], (0, 2)))
        torch.testing.assert_close(maps[0], expected)


class TestNamed:
    """`view=x` is compared with its view, and does not wait for an accelerator."""

    def test_only_the_first_step_waits(self, monkeypatch) -> None:
        """Later ones compare without reading, and read when it has arrived."""
        monkeypatch.setattr(which_pass, "is_waited_for", lambda images: True)
        searched = []
        search = which_pass.which_view
        monkeypatch.setattr(
            which_pass,
            "which_view",
            lambda *args: searched.append(args) or search(*args),
        )
        recognition = which_pass.Recognition()
        for _ in range(4):
            views = list(torch.rand(2, 4, 3, 32, 32))
            assert recognition.which_view((views[1] - 0.5) / 0.2, views) == 1
        assert len(searched) == 1
        views = list(torch.rand(2, 4, 3, 32, 32))
        recognition.which_view(views[0] * 2, views)
        with pytest.warns(UserWarning, match="restored the wrong view"):
            assert recognition.which_view(views[0] * 2, views) == 0
