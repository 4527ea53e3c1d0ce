"""Loops of all kinds: the right view is decoded, and no gradient gets lost."""

from __future__ import annotations

import copy
import pickle
import warnings

import pytest
import timm
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lightly.models.modules import MaskedVisionTransformerTIMM
from methods import SimSiam, tiny_backbone
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from lightly_dira import DiRA, DiRATransform, DiRAViews
from lightly_dira.features import same_image, which_pass
from lightly_dira.features.pyramid import FeaturePyramid
from lightly_dira.training import Schedule


def frozen_statistics(*modules: nn.Module) -> None:
    """The batches of one window must not depend on one another."""
    for module in modules:
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.eval()


def make_views(batch: int = 4, size: int = 32, dtype=torch.float32) -> DiRAViews:
    views = torch.rand(2, batch, 3, size, size, dtype=dtype)
    targets = torch.rand(2, batch, 1, size, size, dtype=dtype)
    return DiRAViews(views, dict(enumerate(targets)), target_view=None)


def part_of(views: DiRAViews, rows: slice) -> DiRAViews:
    targets = {i: target[rows] for i, target in enumerate(views.targets)}
    return DiRAViews([view[rows] for view in views], targets, target_view=None)


def make_vit(**options) -> nn.Module:
    vit = timm.create_model(
        "vit_tiny_patch16_224",
        **dict(embed_dim=8, depth=2, num_heads=1, img_size=32, patch_size=8) | options,
    )
    return MaskedVisionTransformerTIMM(vit)


def make_frozen_resnet() -> nn.Module:
    backbone = tiny_backbone()
    backbone[0].requires_grad_(False)
    return backbone


def make_frozen_vit() -> nn.Module:
    backbone = make_vit()
    backbone.vit.patch_embed.requires_grad_(False)
    return backbone


BACKBONES = {
    "resnet": tiny_backbone,
    "vit with an unused parameter": make_vit,
    "frozen stem": make_frozen_resnet,
    "frozen patches": make_frozen_vit,
}


class TestAccumulation:
    """Head and critic keep what the backbone keeps, and lose what it loses."""

    def gradients(
        self, make, parts: int, dtype, autocast: bool = False, zero=None
    ) -> list[Tensor]:
        torch.manual_seed(0)
        backbone = make().to(dtype)
        optimizer = torch.optim.SGD(backbone.parameters(), lr=0.1)
        features = FeaturePyramid(backbone, input_size=32)
        dira = DiRA(backbone, optimizer, features=features)
        dira.loss.adversarial_weight = 0.5
        frozen_statistics(backbone, dira)
        views = make_views(dtype=dtype)
        if zero is not None:
            self.backward(backbone, dira, views, autocast, 1)
            zero(backbone, optimizer)
        size = len(views[0]) // parts
        for part in range(parts):
            rows = slice(part * size, (part + 1) * size)
            self.backward(backbone, dira, part_of(views, rows), autocast, parts)
        modules = (backbone, dira.head, dira.discriminator)
        return [
            torch.zeros_like(p) if p.grad is None else p.grad
            for module in modules
            for p in module.parameters()
        ]

    def backward(self, backbone, dira, views, autocast: bool, parts: int) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = backbone(views[0]).float().square().mean()
            loss = dira(loss, views)
        (loss / parts).backward()

    @pytest.mark.parametrize("backbone", BACKBONES)
    @pytest.mark.parametrize("parts", [2, 4])
    def test_micro_batches_equal_one(self, backbone: str, parts: int) -> None:
        """Found: ViTs with an unused first parameter lost all but the last."""
        make = BACKBONES[backbone]
        whole, several = (self.gradients(make, n, torch.float64) for n in (1, parts))
        for one, other in zip(whole, several, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)
        whole, several = (self.gradients(make, n, torch.float32) for n in (1, parts))
        norms = [
            torch.stack([g.norm() for g in run]).norm() for run in (whole, several)
        ]
        torch.testing.assert_close(*norms, rtol=2e-6, atol=0)

    def test_autocast(self) -> None:
        """Half precision itself costs more than the order of sums."""
        runs = [
            self.gradients(make_vit, parts, torch.float32, autocast=autocast)
            for parts, autocast in ((1, False), (1, True), (4, True))
        ]
        exact, whole, several = (torch.cat([g.flatten() for g in run]) for run in runs)
        assert (whole - several).norm() <= (whole - exact).norm()

    @pytest.mark.parametrize("backbone", BACKBONES)
    @pytest.mark.parametrize("set_to_none", [True, False])
    @pytest.mark.parametrize("which", ["model", "optimizer"])
    def test_what_zero_grad_drops(self, backbone, set_to_none, which) -> None:
        def zero(model, optimizer) -> None:
            part = model if which == "model" else optimizer
            part.zero_grad(set_to_none=set_to_none)

        make = BACKBONES[backbone]
        clean = self.gradients(make, 2, torch.float64)
        after = self.gradients(make, 2, torch.float64, zero=zero)
        for one, other in zip(clean, after, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)

    def test_black_images_first(self) -> None:
        """Found: gradients of zero were taken for a `zero_grad()`."""
        layers = [nn.Conv2d(3, 4, 3, 2, 1, bias=False), nn.ReLU()]
        layers += [nn.Conv2d(4, 8, 3, 2, 1, bias=False), nn.ReLU()]
        backbone = nn.Sequential(*layers)
        dira = DiRA(backbone, torch.optim.SGD(backbone.parameters(), lr=0.1))
        views = make_views()
        views[0].zero_()
        dira(backbone(views[0]).mean(), views).backward()
        assert not any(p.grad.any() for p in backbone.parameters())
        first = [p.grad.clone() for p in dira.head.parameters()]
        assert any(gradient.any() for gradient in first)
        dira.loss.restorative_weight = dira.loss.adversarial_weight = 0
        views = make_views()
        dira(backbone(views[0]).mean(), views).backward()
        for gradient, parameter in zip(first, dira.head.parameters(), strict=True):
            torch.testing.assert_close(gradient, parameter.grad)

    def test_frozen_backbone(self) -> None:
        """The head gathers, and its own gradients tell of a `zero_grad()`."""
        backbone = tiny_backbone().requires_grad_(False)
        project = nn.Linear(16, 4)
        parts = nn.ModuleList([backbone, project])
        optimizer = torch.optim.SGD(parts.parameters(), lr=0.1)
        dira = DiRA(backbone, optimizer)
        norms = []
        views = make_views()
        for _ in range(2):
            dira(project(backbone(views[0])).mean(), views).backward()
            norms.append(next(dira.discriminator.parameters()).grad.norm())
        optimizer.zero_grad()
        dira(project(backbone(views[0])).mean(), views).backward()
        norms.append(next(dira.discriminator.parameters()).grad.norm())
        torch.testing.assert_close(norms[1], 2 * norms[0])
        torch.testing.assert_close(norms[2], norms[0])


class Watched:
    """A backbone whose own hooks tell which maps belong to which input."""

    def __init__(self, backbone: nn.Module, **options) -> None:
        self.backbone = backbone
        frozen_statistics(backbone)
        self.pyramid = FeaturePyramid(backbone, **options)

    def expected(self, images: Tensor) -> list[Tensor]:
        """The maps of these images, from a pass of their own."""
        with torch.no_grad():
            return [value.clone() for value in self.pyramid(images)]

    def check(self, views, seen: int, rows=None) -> None:
        number, maps = self.pyramid.take_first(*views)
        assert number == seen
        for found, expected in zip(maps, self.expected(views[seen]), strict=True):
            assert torch.allclose(found, expected, atol=1e-5)


class TestTheRightView:
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

    def test_views_seen_in_part_give_way(self) -> None:
        """As MSN's: the first view loses tokens, the second is seen whole."""
        watched = Watched(make_vit(), input_size=32)
        views = list(torch.rand(2, 3, 3, 32, 32))
        keep = torch.arange(9).expand(3, 9)
        watched.backbone(views[0], idx_keep=keep)
        watched.backbone(views[1])
        watched.check(views, 1)
        watched.backbone(views[0], idx_keep=keep)
        with pytest.raises(RuntimeError, match="pass one view whole"):
            watched.pyramid.take_first(*views)

    def test_changed_in_place_after_the_pass(self) -> None:
        watched = Watched(tiny_backbone())
        buffer = torch.rand(3, 3, 32, 32)
        watched.backbone(buffer)
        buffer.copy_(torch.rand(3, 3, 32, 32))
        with pytest.raises(RuntimeError, match="changed in place"):
            watched.pyramid.take(buffer)

    def test_normalised_in_place_inside(self) -> None:
        class Inside(nn.Sequential):
            def forward(self, x: Tensor) -> Tensor:
                return super().forward(x.sub_(0.5))

        watched = Watched(Inside(*tiny_backbone()))
        view = torch.rand(3, 3, 32, 32)
        watched.backbone(view)
        assert len(watched.pyramid.take(view)) == 3

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

    def test_samples_stand_for_images_on_another_device(self, monkeypatch) -> None:
        images = torch.rand(2, 3, 224, 224)
        sampled = same_image._sampled(images)
        assert sampled.shape == (2, 3, 32, 32)
        difference = same_image.difference_of(sampled, same_image._sampled(images / 2))
        assert difference < 1e-6


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


class TestCheckpointing:
    """Activations that are computed again in the backward pass."""

    def gradient(self, run) -> Tensor:
        torch.manual_seed(0)
        backbone = tiny_backbone()
        dira = DiRA(backbone, torch.optim.SGD(backbone.parameters(), lr=0.1))
        views = make_views()
        dira(run(backbone, views[0]).mean(), views).backward()
        return backbone[0][0].weight.grad.norm()

    def test_without_reentry(self) -> None:
        plain = self.gradient(lambda f, x: f(x))
        again = self.gradient(
            lambda f, x: f[1:](checkpoint(f[0], x, use_reentrant=False))
        )
        torch.testing.assert_close(plain, again)

    def test_several_layers_at_once_with_reentry(self) -> None:
        """Found: inner maps had no gradient, and restoration did not reach the stem."""

        def run(f, x):
            x = f[0][0](x)
            x = checkpoint(
                lambda x: f[2](f[1](f[0][2](f[0][1](x)))), x, use_reentrant=True
            )
            return f[3:](x)

        with pytest.raises(RuntimeError, match="use_reentrant=False"):
            self.gradient(run)

    def test_set_after_wrapping(self) -> None:
        """Found: the message spoke of compilation. Parts now stand for their whole."""
        plain, again = (
            timm.create_model("resnet18", num_classes=0).train() for _ in range(2)
        )
        again.load_state_dict(plain.state_dict())
        views = make_views(size=64)
        terms = []
        for backbone in (plain, again):
            dira = DiRA(backbone, torch.optim.SGD(backbone.parameters(), lr=0.1))
            torch.manual_seed(0)
            for parameter in dira.parameters():
                nn.init.normal_(parameter, 0, 0.02)
            if backbone is again:
                backbone.set_grad_checkpointing()
            dira(backbone(views[0]).mean(), views).backward()
            terms.append(dira.components.restorative)
        torch.testing.assert_close(*terms)


class TestOptimisersThatAreNotFollowed:
    def loop(self, model, dira, step, count: int = 6) -> list[str]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(count):
                views = make_views(2)
                dira(model.loss(*views), views).backward()
                step()
                model.zero_grad()
        return [str(w.message) for w in caught if "takes no step" in str(w.message)]

    @pytest.mark.parametrize("start", [0, 100])
    def test_made_again(self, start: int) -> None:
        """Found: head, critic and stages stood still, in silence."""
        model = SimSiam(tiny_backbone(), 16)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        dira = DiRA(model.backbone, optimizer, restorative_start=start)
        other = torch.optim.SGD(model.parameters(), lr=0.1)
        assert len(self.loop(model, dira, other.step)) == 1
        dira.attach(other)
        steps = dira.steps
        assert not self.loop(model, dira, other.step)
        assert dira.steps == steps + 6

    def test_accumulation_is_no_reason(self) -> None:
        model = SimSiam(tiny_backbone(), 16)
        dira = DiRA(model.backbone, torch.optim.SGD(model.parameters(), lr=0.1))
        assert not self.loop(model, dira, lambda: None)

    @pytest.mark.parametrize(
        "how", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))]
    )
    def test_copies_train_by_themselves(self, how) -> None:
        model = SimSiam(tiny_backbone(), 16)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        dira = DiRA(model.backbone, optimizer)
        twin, twin_dira, twin_optimizer = how((model, dira, optimizer))
        before = [p.clone() for p in (*dira.parameters(), *twin_dira.parameters())]
        assert not self.loop(twin, twin_dira, twin_optimizer.step)
        assert (dira.steps, twin_dira.steps) == (0, 6)
        after = [*dira.parameters(), *twin_dira.parameters()]
        moved = [not torch.equal(a, b) for a, b in zip(before, after, strict=True)]
        half = len(moved) // 2
        assert not any(moved[:half])
        assert sum(moved[half:]) >= half - 3

    def test_copied_between_forward_and_step(self) -> None:
        model = SimSiam(tiny_backbone(), 16)
        dira = DiRA(model.backbone, torch.optim.SGD(model.parameters(), lr=0.1))
        views = make_views()
        loss = model.loss(*views)
        copy.deepcopy(dira)
        total = dira(loss, views)
        copy.deepcopy(dira)
        total.backward()

    def test_copied_apart(self) -> None:
        model = SimSiam(tiny_backbone(), 16)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        dira = DiRA(model.backbone, optimizer, restorative_start=100)
        twin, twin_dira = copy.deepcopy(model), copy.deepcopy(dira)
        optimizer = torch.optim.SGD(twin.parameters(), lr=0.1)
        assert len(self.loop(twin, twin_dira, optimizer.step)) == 1


class TestOptimisers:
    def test_clipping_with_the_head(self) -> None:
        """Found: `clip_grad_norm_(model.parameters())` leaves the head out."""
        model = SimSiam(tiny_backbone(), 16)
        dira = DiRA(model.backbone, torch.optim.SGD(model.parameters(), lr=0.1))
        views = make_views()
        (1e4 * dira(model.loss(*views), views)).backward()
        trained = [*model.parameters(), *dira.head.parameters()]
        before = torch.stack([p.grad.norm() for p in trained]).norm()
        torch.testing.assert_close(dira.clip_grad_norm_(0.5), before)
        after = torch.stack([p.grad.norm() for p in trained]).norm()
        torch.testing.assert_close(after, torch.tensor(0.5))
        with pytest.raises(RuntimeError, match="no optimiser is attached"):
            DiRA(model.backbone).clip_grad_norm_(1.0)

    @pytest.mark.parametrize("part", ["head", "discriminator"])
    def test_parts_replaced_after_wrapping(self, part: str) -> None:
        """Found: nobody would have trained them."""
        model = SimSiam(tiny_backbone(), 16)
        dira = DiRA(model.backbone, torch.optim.SGD(model.parameters(), lr=0.1))
        with pytest.raises(
            AttributeError, match=rf"DiRA\(backbone, optimizer, {part}="
        ):
            setattr(dira, part, copy.deepcopy(getattr(dira, part)))
        setattr(dira, part, nn.Sequential(getattr(dira, part)))

    def test_lbfgs_that_held_the_critic(self) -> None:
        """Found: it keeps the list of its parameters, and went on training them."""
        model = SimSiam(tiny_backbone(), 16)
        dira = DiRA(model.backbone)
        parts = nn.ModuleList([model, dira])
        optimizer = torch.optim.LBFGS(parts.parameters(), lr=1e-3, max_iter=2)
        dira.attach(optimizer)
        held = {id(p) for p in optimizer._params}
        assert not held & {id(p) for p in dira.discriminator.parameters()}
        assert held >= {id(p) for p in dira.head.parameters()}

    def test_stages_set_in_mid_run(self) -> None:
        """Found: forgotten on resuming."""
        model = SimSiam(tiny_backbone(), 16)
        dira = DiRA(model.backbone)
        dira.schedule = Schedule.starting(3, 9)
        twin = DiRA(model.backbone)
        twin.load_state_dict(dira.state_dict())
        assert twin.schedule == dira.schedule
        assert twin.schedule.adversarial.start == 9
        published = DiRA(model.backbone, adversarial_start=5)
        published.load_state_dict(DiRA(model.backbone).state_dict())
        assert published.schedule.adversarial.start == 5

    @pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
    def test_state_of_the_bare_method_loaded_first(self, kind) -> None:
        model = SimSiam(tiny_backbone(), 16)
        optimizer = kind(model.parameters(), lr=0.1)
        views = make_views()
        model.loss(*views).backward()
        optimizer.step()
        again = kind(model.parameters(), lr=0.1)
        again.load_state_dict(optimizer.state_dict())
        dira = DiRA(model.backbone, again)
        dira(model.loss(*views), views).backward()
        again.step()
        assert dira.steps == 1

    @pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
    def test_state_of_another_size(self, kind) -> None:
        """Found: PyTorch's error says nothing of the head."""
        model = SimSiam(tiny_backbone(), 16)
        bare = kind(model.parameters(), lr=0.1).state_dict()
        optimizer = kind(model.parameters(), lr=0.1)
        dira = DiRA(model.backbone, optimizer)
        with pytest.raises(ValueError, match=r"written without DiRA.*load it before"):
            optimizer.load_state_dict(bare)
        assert dira.steps == 0


@pytest.mark.parametrize("start", [0, 1])
def test_losses_of_one_element(start: int) -> None:
    """Found: SwAV's and VICRegL's, of shape (1,), were refused."""
    model = SimSiam(tiny_backbone(), 16)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    dira = DiRA(model.backbone, optimizer, restorative_start=start)
    views = make_views()
    loss = model.loss(*views).reshape(1)
    total = dira(loss, views)
    assert all(term.ndim == 0 for term in dira.components)
    assert total is loss if start else total.ndim == 0
    total.backward()


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


class TestPassesThatRunIntoEachOther:
    def test_stage_by_stage(self) -> None:
        backbone = tiny_backbone()
        pyramid, views = FeaturePyramid(backbone), list(torch.rand(2, 3, 3, 32, 32))
        first, second = backbone[0](views[1]), backbone[0](views[0])
        backbone[1:](first)
        backbone[1:](second)
        with pytest.raises(RuntimeError, match=r"run into each other|output nothing"):
            pyramid.take_first(*views)

    def test_the_latest_whole_pass_counts(self) -> None:
        watched = Watched(tiny_backbone())
        view = torch.rand(3, 3, 32, 32)
        watched.backbone[0](view)  # a part of a pass
        watched.backbone(view)
        watched.check([view], 0)


@pytest.mark.parametrize("set_to_none", [True, False])
def test_other_losses_between(set_to_none: bool) -> None:
    """The head's gradients end with a `zero_grad()`, also where DiRA is not called."""
    torch.manual_seed(0)
    backbone = tiny_backbone()
    frozen_statistics(backbone)
    optimizer = torch.optim.SGD(backbone.parameters(), lr=0.0)
    dira = DiRA(backbone, optimizer, adversarial_start=10)
    frozen_statistics(dira)
    views, norms = make_views(), []
    for _ in range(3):
        backbone.zero_grad(set_to_none=set_to_none)
        backbone(views[1]).square().mean().backward()
        dira(backbone(views[0]).mean(), views).backward()
        norms.append(torch.stack([p.grad.norm() for p in dira.head.parameters()]))
        optimizer.step()
    torch.testing.assert_close(norms[1], norms[0])
    torch.testing.assert_close(norms[2], norms[0])
    before = [p.clone() for p in dira.head.parameters()]
    optimizer.param_groups[0]["lr"] = 1.0
    backbone.zero_grad(set_to_none=set_to_none)
    backbone(views[1]).square().mean().backward()
    optimizer.step()
    assert all(map(torch.equal, before, dira.head.parameters()))


def test_optimisers_with_groups_of_their_own() -> None:
    """As ZeroRedundancyOptimizer, which steps what it parted before."""

    class Parted(torch.optim.SGD):
        def __init__(self, parameters, **options) -> None:
            super().__init__(parameters, **options)
            held = [p for group in self.param_groups for p in group["params"]]
            self.inner = torch.optim.SGD(held, **options)

        def step(self, closure=None):
            return self.inner.step(closure)

    backbone = tiny_backbone()
    optimizer = Parted(backbone.parameters(), lr=0.1)
    dira = DiRA(backbone, optimizer)
    views = make_views()
    dira(backbone(views[0]).mean(), views).backward()
    with pytest.raises(RuntimeError, match=r"does not step it.*dira\.attach"):
        optimizer.step()


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
