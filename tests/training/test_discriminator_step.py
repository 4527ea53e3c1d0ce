"""Accumulation, skipped steps and other losses: no gradient gets lost."""

from __future__ import annotations

import pytest
import torch
from loops import frozen_statistics, make_views, make_vit, part_of
from methods import tiny_backbone
from torch import Tensor, nn

from lightly_dira import DiRA
from lightly_dira.features.pyramid import FeaturePyramid


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


@pytest.mark.parametrize(
    "look",
    [
        lambda loss, w: torch.autograd.grad(loss, w, retain_graph=True),
        lambda loss, w: torch.autograd.grad(
            loss, w, torch.tensor(1024.0), retain_graph=True
        ),
        lambda loss, w: loss.backward(inputs=w, retain_graph=True),
    ],
)
def test_gradients_that_are_only_looked_at(look) -> None:
    """Found: logging a gradient's norm halved the critic's step, or nearly undid it."""

    def moments(look) -> Tensor:
        torch.manual_seed(0)
        backbone = tiny_backbone()
        optimizer = torch.optim.SGD(backbone.parameters(), lr=0.1)
        dira, views = DiRA(backbone, optimizer), make_views()
        loss = dira(backbone(views[0]).square().mean(), views)
        look(loss, list(backbone.parameters())[:1])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        state = dira._discriminator_step.adam.state
        return torch.cat([each["exp_avg"].flatten() for each in state.values()])

    torch.testing.assert_close(moments(look), moments(lambda loss, w: None))


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


def test_clipped_by_the_norm_of_the_discriminator() -> None:
    """Found: `clip_grad_norm_` of a module that holds DiRA took the critic's norm."""
    from lightly_dira.training import discriminator_step

    discriminator_step._warn_of_changes.cache_clear()
    model = nn.ModuleDict({"backbone": tiny_backbone()})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    dira = model["dira"] = DiRA(model["backbone"], optimizer)

    def step(clip) -> None:
        views = make_views(2)
        dira(model["backbone"](views[0]).mean(), views).backward()
        clip()
        optimizer.step()
        optimizer.zero_grad()

    for _ in range(2):
        step(lambda: dira.clip_grad_norm_(0.1))
    with pytest.warns(UserWarning, match=r"dira\.clip_grad_norm_"):
        step(lambda: nn.utils.clip_grad_norm_(model.parameters(), 0.1))
