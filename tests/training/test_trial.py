"""What a later stage needs is tried in the first step, also in stage "di"."""

from __future__ import annotations

import pytest
import timm
import torch
from lightly.models.modules import MaskedVisionTransformerTIMM
from methods import tiny_backbone
from monai.networks.nets import PatchDiscriminator as MonaiCritic
from torch import nn
from torch.nn import functional as F

from lightly_dira import (
    Adversary,
    DiRA,
    DiRALoss,
    DiRAViews,
    PatchDiscriminator,
    RestorationHead,
)
from lightly_dira.features import FeaturePyramid

LATER = [
    dict(adversarial_start=5),
    dict(restorative_start=3, adversarial_start=5),
    dict(restorative_start=5),
]


def make_views(size: int = 32, channels: int = 1) -> DiRAViews:
    views = torch.rand(2, 4, 3, size, size)
    return DiRAViews(views, torch.rand(4, channels, size, size))


def first_step(views=None, backbone=None, **options) -> DiRA:
    backbone = tiny_backbone() if backbone is None else backbone
    optimizer = torch.optim.SGD(backbone.parameters(), lr=0.1)
    dira = DiRA(backbone, optimizer, **options)
    views = make_views() if views is None else views
    dira(backbone(views[0]).mean(), views).backward()
    return dira


class Other(nn.Module):
    """A critic that returns something else."""

    def __init__(self, returned) -> None:
        super().__init__()
        self.layer, self.returned = nn.Conv2d(1, 1, 3), returned

    def forward(self, x):
        return self.returned(self.layer(x))


class Head(nn.Module):
    def __init__(self, channels: int = 1) -> None:
        super().__init__()
        self.layer = nn.Conv2d(16, channels, 1)

    def forward(self, features, size):
        return F.interpolate(self.layer(features[-1]), size)


@pytest.mark.parametrize("start", LATER)
class TestTheCritic:
    """Found: these were errors after days, when the stage began."""

    def test_images_too_small(self, start) -> None:
        with pytest.raises(ValueError, match=r"cannot judge .*\(8, 8\).*start=None"):
            first_step(make_views(8), **start)
        first_step(make_views(8), **start | dict(adversarial_start=None))

    def test_a_list_of_outputs(self, start) -> None:
        critic = MonaiCritic(2, channels=8, in_channels=1, num_layers_d=2)
        with pytest.raises(TypeError, match=r"got list.*MONAI's PatchDiscriminator"):
            first_step(discriminator=critic, **start)

    @pytest.mark.parametrize(
        "returned", [lambda x: (x, x), lambda x: {"logits": x}, lambda x: None]
    )
    def test_other_outputs(self, start, returned) -> None:
        with pytest.raises(TypeError, match="one tensor of logits"):
            first_step(discriminator=Other(returned), **start)

    def test_other_channels(self, start) -> None:
        critic = PatchDiscriminator(1)
        with pytest.raises(ValueError, match=r"images of 1 \+ 3 channels"):
            first_step(discriminator=critic, conditional=True, **start)
        with pytest.raises(ValueError, match="images of 1 channels"):
            first_step(discriminator=PatchDiscriminator(3), **start)
        critic = nn.Sequential(nn.Conv2d(3, 1, 3))
        with pytest.raises(ValueError, match="cannot judge images of 1 channels"):
            first_step(discriminator=critic, **start)

    def test_tried_without_a_trace(self, start) -> None:
        torch.manual_seed(0)
        critic = nn.Sequential(
            nn.Conv2d(1, 4, 3, 2),
            nn.BatchNorm2d(4),
            nn.Dropout(0.5),
            nn.Conv2d(4, 1, 3),
        )
        before = critic[1].running_mean.clone()
        dira = DiRA(tiny_backbone(), discriminator=critic, **start)
        views, state = make_views(), torch.get_rng_state()
        dira(dira.features.backbone(views[0]).mean(), views)
        assert torch.equal(critic[1].running_mean, before)
        assert torch.equal(torch.get_rng_state(), state)
        assert critic.training

    def test_balanced_without_a_last_layer(self, start) -> None:
        options = dict(loss=DiRALoss(balanced=True), head=Head(), **start)
        with pytest.raises(ValueError, match=r"attribute: `head\.last_layer = weight`"):
            first_step(**options)
        head = options["head"]
        head.last_layer = head.layer.weight
        first_step(**options)
        head.layer.weight.requires_grad_(False)
        with pytest.raises(ValueError, match="frozen"):
            first_step(**options)
        first_step(**options | dict(adversarial_start=None))


class TestInStageDi:
    @pytest.mark.parametrize("channels", [2, 3])
    def test_a_head_of_other_images(self, channels: int) -> None:
        with pytest.raises(ValueError, match="cannot be compared with their targets"):
            first_step(head=Head(channels), restorative_start=5)

    def test_a_head_that_returns_no_images(self) -> None:
        class Several(Head):
            def forward(self, features, size):
                return [super().forward(features, size)]

        with pytest.raises(ValueError, match="got list"):
            first_step(head=Several(), restorative_start=5)

    def test_targets_of_other_channels(self) -> None:
        with pytest.raises(ValueError, match="target_channels"):
            first_step(make_views(channels=3), restorative_start=5)

    def test_a_view_that_the_backbone_never_sees(self) -> None:
        backbone = tiny_backbone()
        dira = DiRA(backbone, restorative_start=5)
        views = make_views()
        with pytest.raises(RuntimeError, match="never saw the view"):
            dira(backbone(views[0].flip(-1)).mean(), views)
        x = views[0].flip(-1)
        dira(backbone(x).mean(), views, view=x)

    def test_only_once(self) -> None:
        backbone = tiny_backbone()
        dira = DiRA(backbone, restorative_start=5)
        calls = []
        dira.head.register_forward_pre_hook(lambda *_: calls.append(1))
        for _ in range(3):
            views = make_views()
            dira(backbone(views[0]).mean(), views)
        assert len(calls) == 1

    @pytest.mark.parametrize("size", [30, 33, 64])
    def test_odd_sizes(self, size: int) -> None:
        views = DiRAViews(
            torch.rand(2, 4, 3, size, size + 5), torch.rand(4, 1, size, size + 5)
        )
        first_step(views, restorative_start=5)


HOST = dict(target_channels=3)


class TestHosts:
    @pytest.mark.parametrize("start", [0, 5])
    def test_a_view_that_is_missing(self, start: int) -> None:
        host = nn.Conv2d(3, 3, 3, padding=1)
        dira = Adversary(host, conditional=True, adversarial_start=start, **HOST)
        clean = torch.rand(2, 3, 16, 16)
        restored = host(clean)
        loss = F.mse_loss(restored, clean)
        with pytest.raises(ValueError, match="view=distorted"):
            dira(loss, restored=restored, target=clean)
        dira(loss, restored=restored, target=clean, view=clean)

    @pytest.mark.parametrize("start", [0, 5])
    def test_images_too_small(self, start: int) -> None:
        host = nn.Conv2d(3, 3, 3, padding=1)
        dira = Adversary(host, adversarial_start=start, **HOST)
        clean = torch.rand(2, 3, 6, 6)
        restored = host(clean)
        with pytest.raises(ValueError, match="leave no patches"):
            dira(F.mse_loss(restored, clean), restored=restored, target=clean)


class TestSeveralBatchesInOne:
    """Found: of `CombinedLoader({"ct": ..., "mr": ...})` the first was restored."""

    def made(self, *sizes: int, counts=(4, 2), **options):
        torch.manual_seed(0)
        backbone = tiny_backbone()
        optimizer = torch.optim.SGD(backbone.parameters(), lr=0.1)
        dira = DiRA(backbone, optimizer, **options)
        sets = [
            DiRAViews(torch.rand(2, n, 3, s, s), torch.rand(n, 1, s, s))
            for n, s in zip(counts, sizes, strict=True)
        ]
        return backbone, dira, dict(zip(("ct", "mr"), sets, strict=True))

    @pytest.mark.parametrize("how", ["apart", "joined", "copied"])
    @pytest.mark.parametrize("options", [{}, dict(conditional=True)])
    def test_restored_together(self, how: str, options) -> None:
        backbone, dira, batch = self.made(32, 32, **options)
        dira.head.eval()
        shown = []
        dira.discriminator.register_forward_pre_hook(
            lambda module, args: shown.append(args[0])
        )
        ct, mr = (batch[name][0] for name in ("ct", "mr"))
        if how == "joined":
            loss = backbone(torch.cat([ct, mr])).mean()
        else:
            passes = [ct, mr] if how == "apart" else [mr.clone(), ct.clone()]
            loss = sum(backbone(x).mean() for x in passes)
        dira(loss, batch).backward()
        assert {len(images) for images in shown} == {6}
        targets = torch.cat([batch[name].target for name in ("ct", "mr")])
        assert any(torch.equal(images[:, :1], targets) for images in shown)
        if options:
            views = torch.cat([ct, mr])
            assert all(torch.equal(images[:, 1:], views) for images in shown)

    def test_of_other_sizes(self) -> None:
        backbone, dira, batch = self.made(32, 48)
        loss = sum(backbone(views[0]).mean() for views in batch.values())
        with pytest.raises(ValueError, match="cannot be restored together"):
            dira(loss, batch)

    def test_of_which_one_was_not_seen(self) -> None:
        backbone, dira, batch = self.made(32, 32)
        with pytest.warns(UserWarning, match="has not seen all of them"):
            dira(backbone(batch["ct"][0]).mean(), batch).backward()
        with pytest.raises(RuntimeError, match="never saw the view"):
            dira(backbone(torch.rand(4, 3, 32, 32)).mean(), batch)

    def test_the_same_one_twice(self) -> None:
        backbone, dira, batch = self.made(32, 32)
        sizes = []
        dira.head.register_forward_pre_hook(
            lambda module, args: sizes.append(len(args[0][0]))
        )
        views = batch["ct"]
        loss = backbone(views[0]).mean()
        dira(loss, {"a": views, "b": [views]}, view=views[0])
        assert sizes == [4]

    def test_one_view_cannot_name_both(self) -> None:
        backbone, dira, batch = self.made(32, 32)
        x = batch["ct"][0]
        with pytest.raises(ValueError, match=r"batch\[name\], view=x"):
            dira(backbone(x).mean(), batch, view=x)

    def test_in_validation(self) -> None:
        _, dira, batch = self.made(32, 32)
        with torch.no_grad():
            dira(torch.zeros(()), batch)
        both = [dira.restore(views[0]) - views.target for views in batch.values()]
        expected = torch.cat(both).square().mean()
        torch.testing.assert_close(dira.components.restorative, expected)


def test_more_passes_than_are_remembered() -> None:
    """Found: the error spoke of another reason."""
    backbone = tiny_backbone()
    dira = DiRA(backbone)
    views = make_views()
    loss = backbone(views[0]).mean()
    for _ in range(40):
        backbone(torch.rand(1, 3, 32, 32))
    with pytest.raises(RuntimeError, match=r"last 32 passes.*9 before them"):
        dira(loss, views)


class TestHeldOut:
    """Without gradients no adversary fails, and the critic stays as it was."""

    @pytest.mark.parametrize(
        "adversary", ["least_squares", "cross_entropy", "hinge", "wasserstein"]
    )
    @pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
    @pytest.mark.parametrize("conditional", [False, True])
    def test_every_adversary(self, adversary: str, mode, conditional: bool) -> None:
        """Found: Wasserstein's penalty failed in Lightning's inference mode."""
        options = dict(loss=DiRALoss(adversary=adversary), conditional=conditional)
        dira = DiRA(tiny_backbone(), **options)
        with mode():
            views = make_views()
            assert dira(torch.zeros(()), views).isfinite()

    @pytest.mark.parametrize("kind", ["batch norm", "spectral norm", "old spectral"])
    def test_a_critic_of_the_user(self, kind: str) -> None:
        """Found: statistics and vectors of its layers were changed."""
        layer = nn.Conv2d(1, 8, 3, 2, 1)
        if kind == "spectral norm":
            layer = nn.utils.parametrizations.spectral_norm(layer)
        elif kind == "old spectral":
            layer = nn.utils.spectral_norm(layer)
        norm = nn.BatchNorm2d(8) if kind == "batch norm" else nn.Identity()
        critic = nn.Sequential(layer, norm, nn.LeakyReLU(0.2), nn.Conv2d(8, 1, 3))
        backbone = tiny_backbone()
        dira = DiRA(backbone, discriminator=critic)
        views = make_views()
        dira(backbone(views[0]).mean(), views).backward()
        before = {n: b.clone() for n, b in critic.named_buffers()}
        with torch.no_grad():
            dira(torch.zeros(()), make_views())
        assert before or kind == "identity"
        for name, buffer in critic.named_buffers():
            assert torch.equal(buffer, before[name]), name
        assert critic.training


def test_tokens_that_are_dropped_are_seen_in_stage_di() -> None:
    """As in CAPI, whose student never sees a whole view."""
    vit = timm.create_model(
        "vit_tiny_patch16_224",
        embed_dim=8,
        depth=2,
        num_heads=1,
        img_size=32,
        patch_size=8,
    )
    backbone = MaskedVisionTransformerTIMM(vit)
    dira = DiRA(backbone, restorative_start=5)
    views = make_views()
    kept = torch.arange(8).expand(4, -1)
    with pytest.raises(RuntimeError, match="drops tokens"):
        dira(backbone(views[0], idx_keep=kept).mean(), views)


@pytest.mark.parametrize("start", [0, 5])
@pytest.mark.parametrize("change", [lambda x: (x - 0.45) / 0.22, lambda x: 255 * x])
def test_targets_that_a_sigmoid_cannot_reach(change, start: int) -> None:
    """Found: views made by hand trained towards them, without a word."""
    views = torch.rand(2, 4, 3, 32, 32)
    batch = DiRAViews(views, change(torch.rand(4, 1, 32, 32)))
    with pytest.raises(ValueError, match=r"targets reach from .* sigmoid .*\[0, 1\]"):
        first_step(batch, restorative_start=start)
    backbone = tiny_backbone()
    free = RestorationHead(
        FeaturePyramid(backbone).channels,
        strides=FeaturePyramid(backbone).strides,
        activation=None,
    )
    assert first_step(batch, backbone, head=free, restorative_start=start)
