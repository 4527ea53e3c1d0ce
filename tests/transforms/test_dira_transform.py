from __future__ import annotations

import copy
import pickle

import albumentations as A
import numpy as np
import pytest
import torch
from lightly.data import LightlyDataset
from lightly.transforms import (
    BYOLTransform,
    MoCoV2Transform,
    SimCLRTransform,
    SimSiamTransform,
    VICRegTransform,
)
from lightning_fabric.utilities import move_data_to_device
from pictures import picture
from PIL import Image
from torch.utils.data import DataLoader, default_collate
from torch.utils.data._utils.pin_memory import pin_memory
from torchvision import transforms as v1
from torchvision.transforms import v2

from lightly_dira import DiRATransform, DiRAViews
from lightly_dira.core.rows import Rows
from lightly_dira.transforms.paintings import InPainting

SIZE = 32
GEOMETRY_ONLY = {"cj_prob": 0.0, "random_gray_scale": 0.0, "normalize": None}


def geometry_only() -> list:
    lightly = {"input_size": SIZE, "rr_prob": 0.5, **GEOMETRY_ONLY}
    square = (SIZE, SIZE)
    resize = v2.Resize(square)
    v1_steps = [v1.RandomResizedCrop(SIZE), v1.RandomRotation(30)]
    v2_steps = [v2.RandomPerspective(p=1.0), v2.RandomAffine(20), resize]
    to_float = v2.ToDtype(torch.float32, scale=True)
    dark = v2.ColorJitter(brightness=(0.5, 0.5))
    return [
        SimCLRTransform(gaussian_blur=0.0, **lightly),
        SimCLRTransform(gaussian_blur=0.0, rr_degrees=30, **lightly),
        SimSiamTransform(gaussian_blur=0.0, **lightly),
        v1.Compose([v1.RandomApply(v1_steps), v1.Resize(square), v1.ToTensor()]),
        v2.Compose([v2.ToImage(), *v2_steps, to_float]),
        v2.Compose([v2.ToImage(), to_float, *v2_steps]),
        v2.Compose([v2.RandomChoice(v2_steps), resize, v2.ToImage()]),
        A.Compose([A.RandomResizedCrop(square), A.HorizontalFlip(), A.Rotate()]),
        A.Compose([A.OneOf([A.Affine(), A.ElasticTransform()]), A.Resize(*square)]),
        lambda image: image.rotate(np.random.uniform(0, 90)).resize(square),
        v2.Compose([dark, lambda image: image.resize(square), v2.ToImage()]),
    ]


class TestAlignment:
    @pytest.mark.parametrize("number", range(len(geometry_only())))
    @pytest.mark.parametrize("target_channels", [1, 3])
    def test_geometry_is_shared_to_the_pixel(self, number, target_channels) -> None:
        transform = DiRATransform(
            geometry_only()[number], distortion=None, target_channels=target_channels
        )
        for seed in range(5):
            torch.manual_seed(seed)
            np.random.seed(seed)
            views = transform(picture())
            expected = views[0][:target_channels]
            torch.testing.assert_close(views.target, expected, rtol=0, atol=1e-6)

    @pytest.mark.parametrize("order", ["colour first", "colour last", "nested"])
    def test_colour_touches_the_view_only(self, order: str) -> None:
        darken = v2.ColorJitter(brightness=(0.5, 0.5))
        geometry = [v2.RandomResizedCrop(SIZE), v2.RandomHorizontalFlip()]
        geometry += [v2.RandomRotation(20)]
        steps = {
            "colour first": [darken, *geometry],
            "colour last": [*geometry, darken],
            "nested": [v2.RandomApply([v2.Compose([darken, *geometry])], p=1.0)],
        }[order]
        tensor = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
        transform = DiRATransform(v2.Compose([*steps, *tensor]), distortion=None)
        for seed in range(10):
            torch.manual_seed(seed)
            (view,) = views = transform(picture())
            # 8-bit brightness rounds, on either side of the geometry.
            assert (view[:1] - 0.5 * views.target).abs().max() < 2 / 255
            assert views.target.max() > 0.8

    @pytest.mark.parametrize("target_view", [0, 1])
    def test_target_view(self, target_view: int) -> None:
        base = SimCLRTransform(SIZE, gaussian_blur=0.0, **GEOMETRY_ONLY)
        transform = DiRATransform(base, distortion=None, target_view=target_view)
        views = transform(picture())
        assert views.target_view == target_view
        assert torch.allclose(views[target_view][:1], views.target)
        assert not torch.allclose(views[1 - target_view][:1], views.target)

    def test_undistorted_pixels_are_those_of_the_target(self) -> None:
        base = SimCLRTransform(SIZE, gaussian_blur=0.0, **GEOMETRY_ONLY)
        transform = DiRATransform(base, distortion=InPainting())
        touched = []
        for _ in range(10):
            views = transform(picture())
            black = views[0][:1] == 0
            assert torch.allclose(views[0][:1][~black], views.target[~black])
            assert (views.target > 0).all()
            touched += [black.any(), (views[1] == 0).any()]
        assert all(touched), "both views are distorted"

    def test_black_stays_black_under_normalisation(self) -> None:
        transform = DiRATransform(MoCoV2Transform(SIZE), distortion=InPainting())
        (view, _) = transform(Image.new("RGB", (48, 48), "white"))
        mean = torch.tensor([0.485, 0.456, 0.406])
        std = torch.tensor([0.229, 0.224, 0.225])
        for channel, value in zip(view, -mean / std, strict=True):
            assert torch.isclose(channel, value, atol=1e-5).any()

    def test_distortion_sees_the_bytes_of_the_image(self) -> None:
        seen = []

        class Spy(A.ImageOnlyTransform):
            def apply(self, img, **params):
                seen.append((img.dtype, img.shape))
                return img

        DiRATransform(MoCoV2Transform(SIZE), distortion=Spy(p=1))(picture())
        assert seen == [(np.uint8, (SIZE, SIZE, 3))] * 2

    def test_published_mirror_defect(self) -> None:
        flip = v2.Compose([v2.RandomHorizontalFlip(p=1.0), v2.ToImage()])
        aligned, mirrored = (
            DiRATransform(flip, distortion=None, aligned=aligned)(picture())
            for aligned in (True, False)
        )
        assert torch.equal(aligned[0][:1], aligned.target)
        assert torch.equal(mirrored[0][:1], mirrored.target.flip(-1))


class TestOutput:
    @pytest.mark.parametrize(
        "base",
        [MoCoV2Transform, SimCLRTransform, SimSiamTransform, BYOLTransform],
    )
    def test_views_are_those_of_the_base(self, base) -> None:
        """Same number, order, shapes and, without distortion, values."""
        base = base() if base is BYOLTransform else base(input_size=SIZE)
        results = []
        for transform in (base, DiRATransform(base, distortion=None)):
            torch.manual_seed(0)
            np.random.seed(0)
            results.append(transform(picture(size=256)))
        plain, wrapped = results
        assert isinstance(wrapped, DiRAViews)
        assert isinstance(wrapped, list)
        assert len(plain) == len(wrapped)
        for a, b in zip(plain, wrapped, strict=True):
            assert torch.equal(a, b)
        assert wrapped.target.shape == (1, *plain[0].shape[1:])
        assert 0 <= wrapped.target.min() <= wrapped.target.max() <= 1

    def test_base_transform_is_left_alone(self) -> None:
        base = VICRegTransform(input_size=SIZE)
        before = repr(vars(base.transforms[0].transform))
        DiRATransform(base)(picture())
        assert repr(vars(base.transforms[0].transform)) == before
        assert not isinstance(base(picture()), DiRAViews)

    def test_same_crops_with_any_distortion(self) -> None:
        """Also with one that does nothing: comparisons stay paired, image by image."""
        targets = []
        for distortion in (A.NoOp(), "published", InPainting()):
            transform = DiRATransform(input_size=SIZE, distortion=distortion)
            torch.manual_seed(0)
            targets.append(torch.stack([transform(picture()).target for _ in "123"]))
        assert torch.equal(targets[0], targets[1])
        assert torch.equal(targets[0], targets[2])

    def test_input_is_not_modified(self) -> None:
        image = np.asarray(picture()).copy()
        before = image.copy()
        DiRATransform(input_size=SIZE, distortion=InPainting())(image)
        assert np.array_equal(image, before)

    def test_same_seed_same_output(self) -> None:
        transform = DiRATransform(input_size=SIZE)
        results = []
        for _ in range(2):
            torch.manual_seed(0)
            views = transform(picture())
            results.append(torch.cat([*views, views.target]))
        assert torch.equal(*results)
        assert not torch.equal(
            results[0], torch.cat([*(v := transform(picture())), v.target])
        )

    def test_pickle_and_copy(self) -> None:
        transform = DiRATransform(MoCoV2Transform(SIZE))
        for twin in (pickle.loads(pickle.dumps(transform)), copy.deepcopy(transform)):
            torch.manual_seed(0), np.random.seed(0)
            expected = transform(picture())
            torch.manual_seed(0), np.random.seed(0)
            assert torch.equal(expected[0], twin(picture())[0])


class TestViews:
    @pytest.fixture
    def samples(self) -> list:
        transform = DiRATransform(MoCoV2Transform(SIZE), target_view=1)
        return [(transform(picture()), label, f"{label}.png") for label in range(4)]

    def test_collation(self, samples) -> None:
        views, labels, names = default_collate(samples)
        assert isinstance(views, DiRAViews)
        x0, x1 = views
        assert x0.shape == x1.shape == (4, 3, SIZE, SIZE)
        assert torch.equal(views.target, torch.stack([s[0].target for s in samples]))
        assert torch.equal(x1, torch.stack([s[0][1] for s in samples]))
        assert views.target_view == 1
        assert labels.tolist() == [0, 1, 2, 3]
        assert list(names) == ["0.png", "1.png", "2.png", "3.png"]

    def test_bare_views_collate(self, samples) -> None:
        views = default_collate([views for views, *_ in samples])
        assert isinstance(views, DiRAViews)

    @pytest.mark.parametrize("workers", [0, 2])
    def test_data_loader(self, workers: int) -> None:
        transform = DiRATransform(MoCoV2Transform(SIZE))

        class Pictures(torch.utils.data.Dataset):
            def __len__(self) -> int:
                return 8

            def __getitem__(self, index: int):
                return transform(picture()), index

        loader = DataLoader(Pictures(), 4, num_workers=workers)
        for views, labels in loader:
            assert isinstance(views, DiRAViews)
            assert views.target.shape == (4, 1, SIZE, SIZE)
            assert len(labels) == 4

    def test_targets_that_are_not_used_are_not_moved(self, monkeypatch) -> None:
        transform = DiRATransform(MoCoV2Transform(SIZE))
        views = default_collate([transform(picture()) for _ in range(2)])
        moves, to = [], torch.Tensor.to
        monkeypatch.setattr(
            torch.Tensor,
            "to",
            lambda self, *a, **k: moves.append(self) or to(self, *a, **k),
        )
        moved = views.to("meta")
        assert len(moves) == 2, "the views"
        assert moved.target_of(1).device.type == "meta"
        cpu = torch.device("cpu")
        assert moved.target_on(0, Rows(0, 2, 2), cpu) is views.targets[0]

    def test_moves_as_a_whole(self, samples) -> None:
        views = default_collate(samples)[0].to(torch.float64)
        assert isinstance(views, DiRAViews)
        assert {t.dtype for t in [*views, views.target]} == {torch.float64}
        assert views.target_view == 1

    def test_lightnings_batch_transfer(self, samples) -> None:
        batch = move_data_to_device(default_collate(samples), torch.device("meta"))
        assert isinstance(batch[0], DiRAViews)
        assert {t.device.type for t in [*batch[0], batch[0].target]} == {"meta"}

    def test_pinned_memory(self, samples, monkeypatch) -> None:
        """Pinning needs an accelerator; what is asked to be pinned does not."""
        pinned = []
        monkeypatch.setattr(
            torch.Tensor, "pin_memory", lambda self, *_: pinned.append(self) or self
        )
        views, *_ = pin_memory(default_collate(samples))
        assert isinstance(views, DiRAViews)
        if torch.__version__ < "2.6":  # which pins the items of any list instead
            assert len(pinned) == 3
            return
        assert len(pinned) == 4, "two views, the target and the labels"
        assert any(views.target is tensor for tensor in pinned)

    def test_lightly_dataset(self, tmp_path) -> None:
        for number in range(4):
            picture().save(tmp_path / f"{number}.png")
        transform = DiRATransform(MoCoV2Transform(SIZE))
        dataset = LightlyDataset(str(tmp_path), transform=transform)
        ((views, labels, names),) = DataLoader(dataset, 4)
        assert isinstance(views, DiRAViews)
        assert views.target.shape == (4, 1, SIZE, SIZE)
        assert len(labels) == len(names) == 4

    def test_pickle(self, samples) -> None:
        views = samples[0][0]
        twin = pickle.loads(pickle.dumps(views))
        assert isinstance(twin, DiRAViews)
        assert torch.equal(twin.target, views.target)
        assert len(twin) == 2


class TestErrors:
    def test_no_such_view(self) -> None:
        with pytest.raises(ValueError, match=r"target_view=2.*2 views"):
            DiRATransform(MoCoV2Transform(SIZE), target_view=2)(picture())
