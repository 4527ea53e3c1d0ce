"""Views that are made of a batch on its device: targets move with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import kornia.augmentation as K
import pytest
import torch
from pictures import batch_of
from torch import Tensor, nn
from torchvision.models import resnet18
from torchvision.transforms import v2

from lightly_dira import DiRA, DiRAViews
from lightly_dira.transforms import BatchDistortion, DiRABatchTransform, InPainting


class Crop(nn.Module):
    """A user's own crop and flip of images or volumes, each image with its own."""

    def forward(self, batch: Tensor) -> Tensor:
        side = batch.shape[-1] // 2
        crops = []
        for image in batch:
            start = int(torch.randint(side, ()))
            crop = image[..., start : start + side, start : start + side]
            crops.append(crop.flip(-1) if torch.rand(()) < 0.5 else crop)
        return torch.stack(crops)


def kornia_2d() -> Any:
    return K.AugmentationSequential(
        K.RandomResizedCrop((24, 24), resample="bicubic"),
        K.RandomHorizontalFlip(),
        K.RandomRotation(20.0),
        data_keys=["input"],
    )


def v2_2d() -> Any:
    return v2.Compose(
        [
            v2.RandomResizedCrop(24, interpolation=v2.InterpolationMode.BICUBIC),
            v2.RandomApply([v2.RandomRotation(90)], p=0.5),
            v2.RandomHorizontalFlip(),
        ]
    )


GEOMETRY: dict[str, tuple[Callable[[], Any], int]] = {
    "kornia": (kornia_2d, 2),
    "v2": (v2_2d, 2),
    "own": (Crop, 2),
    "kornia volumes": (
        lambda: nn.Sequential(
            K.RandomHorizontalFlip3D(), K.RandomRotation3D((20.0, 20.0, 20.0))
        ),
        3,
    ),
    "own volumes": (Crop, 3),
}
OWN = {Crop: "geometric"}


@pytest.mark.parametrize("name", GEOMETRY)
@pytest.mark.parametrize("channels", [1, 3])
def test_targets_equal_views_bit_for_bit(name: str, channels: int) -> None:
    make, dims = GEOMETRY[name]
    make_views = DiRABatchTransform(
        make(), distortion=None, target_channels=channels, spatial_dims=dims, kinds=OWN
    )
    images = batch_of(dims, channels)
    kept = images.clone()
    x0, x1 = views = make_views(images)
    assert isinstance(views, DiRAViews)
    assert not x0.equal(x1)
    for view, target in zip(views, views.targets, strict=True):
        assert target.equal(view)
        assert ((target >= 0) & (target <= 1)).all()
    assert images.equal(kept)


@pytest.mark.parametrize("name", GEOMETRY)
def test_geometry_after_photometric_steps_moves_both_alike(name: str) -> None:
    make, dims = GEOMETRY[name]
    negative = v2.RandomInvert(p=1.0)
    make_views = DiRABatchTransform(
        [nn.Sequential(negative, make())],
        distortion=None,
        target_channels=3,
        spatial_dims=dims,
        kinds={**OWN, "RandomInvert": "photometric"},
    )
    views = make_views(batch_of(dims))
    (view,), (target,) = views, views.targets
    inside = (view > 0.02) & (target > 0.02)  # not what rotations leave black
    sums = (view + target)[inside]
    assert inside.float().mean() > 0.5
    # Some pixels are mixed with that black; unrelated ones would agree in a tenth.
    assert ((sums - 1).abs() < 0.05).float().mean() > 0.8


def test_photometric_steps_and_the_distortion_leave_the_target_clean() -> None:
    steps = K.AugmentationSequential(
        K.RandomHorizontalFlip(),
        K.ColorJiggle(0.4, 0.4, 0.4, 0.1),
        K.RandomGaussianBlur((3, 3), (0.1, 2.0)),
    )
    plain = K.AugmentationSequential(K.RandomHorizontalFlip())
    images = batch_of(2)
    torch.manual_seed(1)
    views = DiRABatchTransform([steps], target_channels=3)(images)
    torch.manual_seed(1)
    (clean,) = DiRABatchTransform([plain], distortion=None, target_channels=3)(images)
    assert views.target.equal(clean)
    assert not views[0].equal(clean)


def test_black_is_black_before_normalisation() -> None:
    """The published order: colours, distortion, normalisation."""
    steps = v2.Compose(
        [
            v2.ColorJitter(0.4),
            v2.Normalize([0.5, 0.4, 0.3], [0.2, 0.2, 0.2], inplace=True),
        ]
    )
    distortion = BatchDistortion(InPainting(), inplace=True)
    images = 0.5 + batch_of(2) / 2
    views = DiRABatchTransform(steps, distortion=distortion)(images)
    for view, target in zip(views, views.targets, strict=True):
        black = torch.tensor([-2.5, -2.0, -1.5]).view(3, 1, 1)
        assert torch.isclose(view, black).all(dim=1).any(dim=(1, 2)).all()
        assert target.min() >= 0.49  # nothing is black in the clean image


def test_in_place_steps_do_not_reach_targets_or_the_batch() -> None:
    def darken(batch: Tensor) -> Tensor:
        return batch.mul_(0.5)

    def flip(batch: Tensor) -> Tensor:
        return batch.copy_(batch.flip(-1))

    kinds = {darken: "photometric", flip: "geometric"}
    images = batch_of(2)
    kept = images.clone()
    for steps in ([darken], [flip, darken], [darken, flip]):
        make_views = DiRABatchTransform(
            [v2.Compose(steps)],
            distortion=None,
            target_channels=3,
            kinds=kinds,
        )
        views = make_views(images)
        assert images.equal(kept)
        assert views[0].equal(views.target * 0.5)


def test_targets_stay_precise_under_autocast() -> None:
    make_views = DiRABatchTransform([v2.Identity()], distortion=None)
    expected = make_views(batch_of(2)).target
    with torch.autocast("cpu", torch.bfloat16):
        assert make_views(batch_of(2)).target.equal(expected)


def test_grey_targets_are_luminance_and_bytes_become_pixels() -> None:
    images = (batch_of(2) * 255).byte()
    views = DiRABatchTransform([v2.Identity()], distortion=None)(images)
    expected = v2.functional.rgb_to_grayscale(images.float() / 255)
    assert torch.allclose(views.target, expected, atol=1e-3)
    many = DiRABatchTransform([v2.Identity()], distortion=None)(batch_of(2, 13))
    assert torch.allclose(many.target, batch_of(2, 13).mean(dim=1, keepdim=True))


def test_one_transform_for_each_view() -> None:
    crops = [v2.RandomCrop(24), v2.RandomCrop(24), v2.RandomCrop(16)]
    views = DiRABatchTransform(crops)(batch_of(2))
    assert [view.shape[-1] for view in views] == [24, 24, 16]
    assert [target.shape[-1] for target in views.targets] == [24, 24, 16]
    assert len(DiRABatchTransform(v2.RandomCrop(24), views=4)(batch_of(2))) == 4


def test_errors_of_values() -> None:
    make_views = DiRABatchTransform(v2.Identity())
    with pytest.raises(ValueError, match=r"pixels in \[0, 1\]"):
        make_views(batch_of(2) * 255)
    with pytest.raises(TypeError, match="int32"):
        make_views(batch_of(2).int())
    with pytest.raises(ValueError, match="spatial_dims=3"):
        make_views(batch_of(3))
    with pytest.raises(ValueError, match="target_channels"):
        DiRABatchTransform(v2.Identity(), target_channels=2)(batch_of(2))
    with pytest.raises(TypeError, match="one batch"):
        DiRABatchTransform(Pairs(), kinds={Pairs: "geometric"})(batch_of(2))


class Pairs(nn.Module):
    def forward(self, batch: Tensor) -> list[Tensor]:
        return [batch, batch]


class Turned(nn.Module):
    def forward(self, batch: Tensor) -> Tensor:
        return batch.rot90(1, (-2, -1))


class Normalised(nn.Module):
    def forward(self, batch: Tensor) -> Tensor:
        return (batch - 0.5) / 0.2


def test_what_is_said_of_a_step_is_checked() -> None:
    with pytest.warns(UserWarning, match="Turned is said to be photometric"):
        DiRABatchTransform(Turned(), kinds={Turned: "photometric"})(batch_of(2))
    hides_it = DiRABatchTransform(Normalised(), kinds={Normalised: "photometric"})
    with pytest.raises(ValueError, match="normalisation"):
        hides_it(batch_of(2))
    DiRABatchTransform(Normalised(), kinds={Normalised: "normalisation"})(batch_of(2))


def test_trains_in_a_plain_loop() -> None:
    torch.manual_seed(0)
    backbone = resnet18(num_classes=8)
    optimizer = torch.optim.SGD(backbone.parameters(), lr=0.01)
    dira = DiRA(backbone, optimizer)
    make_views = DiRABatchTransform(kornia_2d())
    for _ in range(2):
        x0, x1 = views = make_views(batch_of(2))
        loss = (backbone(x0) - backbone(x1)).square().mean()
        dira(loss, views).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert dira.components.restorative > 0
    assert dira.steps == 2


def test_views_share_nothing_with_targets() -> None:
    """Found: a loop that normalised its views in place changed targets and batch."""
    blur = v2.RandomApply([v2.GaussianBlur(3)], p=0.0)
    for steps in ([v2.CenterCrop(24)], [v2.CenterCrop(24), blur], [blur]):
        images = batch_of(2)
        before = images.clone()
        transform = DiRABatchTransform(v2.Compose(steps), distortion=None)
        views = transform(images)
        targets = [target.clone() for target in views.targets]
        for view in views:
            view.sub_(0.5).div_(0.25)
        assert all(map(torch.equal, views.targets, targets))
        assert images.equal(before)
