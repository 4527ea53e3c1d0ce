"""DiRATransform around every transform of Lightly, and around others' classes."""

from __future__ import annotations

import inspect

import albumentations as A
import numpy as np
import pytest
import torch
from lightly import transforms
from PIL import Image
from torch import Tensor
from torch.utils.data import default_collate
from torchvision import transforms as v1
from torchvision import tv_tensors
from torchvision.transforms import v2

from lightly_dira import DiRATransform, DiRAViews
from lightly_dira.transforms.paintings import InPainting

# What `lightly.transforms` holds beside transforms that yield views of an image: their
# building blocks, which are of no use alone.
BLOCKS = {
    *("AddGridTransform", "AmplitudeRescaleTransform", "GaussianBlur"),
    *("GaussianMixtureMask", "IRFFT2DTransform", "Jigsaw", "MultiViewTransformV2"),
    *("PhaseShiftTransform", "RFFT2DTransform", "RandomFrequencyMaskTransform"),
    *("RandomRotate", "RandomRotateDegrees", "RandomSolarization", "ToTensor"),
}
CLASSES = sorted(
    name
    for name, value in vars(transforms).items()
    if inspect.isclass(value) and name not in BLOCKS
)


def picture(size: int = 300) -> Image.Image:
    random = np.random.default_rng(0)
    coarse = random.integers(20, 256, (size // 10, size // 10), dtype=np.uint8)
    return Image.fromarray(coarse).resize((size, size)).convert("RGB")


def arguments(name: str) -> tuple:
    if name != "DetConSTransform":
        return (picture(),)
    mask = torch.zeros(1, 300, 300, dtype=torch.int64)
    mask[:, 100:200] = 1
    return picture(), tv_tensors.Mask(mask)


def flatten(value) -> list[Tensor]:
    if isinstance(value, (list, tuple)):
        return [tensor for part in value for tensor in flatten(part)]
    return [value]


def build(name: str):
    cls = getattr(transforms, name)
    if name in ("DetConSTransform",):
        return cls(grid_size=None)
    return cls()


def seed(value: int = 0) -> None:
    torch.manual_seed(value)
    np.random.seed(value)


class TestEveryLightlyTransform:
    def test_introspection_finds_them(self) -> None:
        assert {"DINOTransform", "SwaVTransform", "VICRegLTransform"} <= set(CLASSES)
        assert len(CLASSES) > 25

    @pytest.mark.parametrize("name", CLASSES)
    def test_views_and_extras_are_those_of_the_base(self, name: str) -> None:
        base = build(name)
        seed()
        plain = base(*arguments(name))
        seed()
        wrapped = DiRATransform(base, distortion=None)(*arguments(name))
        assert isinstance(wrapped, DiRAViews)
        plain = plain if isinstance(plain, list) else [plain]
        assert len(plain) == len(wrapped)
        for expected, actual in zip(flatten(plain), flatten(wrapped), strict=True):
            torch.testing.assert_close(actual, expected)
        assert wrapped.target.shape[1:] == wrapped.view.shape[1:]
        assert 0 <= wrapped.target.min() < wrapped.target.max() <= 1

    @pytest.mark.parametrize("name", CLASSES)
    def test_every_view_is_distorted(self, name: str) -> None:
        def black(img, **params):
            return np.zeros_like(img)

        base = build(name)
        transform = DiRATransform(base, distortion=A.Lambda(image=black, p=1))
        views = transform(*arguments(name))
        images = [t for t in flatten(views) if t.ndim == 3 and min(t.shape[1:]) > 7]
        images = [image for image in images if len(image) == 3]
        assert images
        for image in images:
            assert image.flatten(1).std(dim=1).max() < 1e-6
        assert views.target.std() > 0.01

    @pytest.mark.parametrize("name", CLASSES)
    def test_batches(self, name: str) -> None:
        transform = DiRATransform(build(name))
        samples = [(transform(*arguments(name)), i, f"{i}") for i in range(2)]
        views, *_ = default_collate(samples)
        assert isinstance(views, DiRAViews)
        assert len(views.target) == 2
        assert views.view.shape[2:] == views.target.shape[2:]
        assert views.target_view is None
        for index, target in zip(views.target_views, views.targets, strict=True):
            assert target.shape[2:] == views.view_of(index).shape[2:]
        moved = views.to(torch.float64)
        assert all(tensor.dtype == torch.float64 for tensor in flatten(moved))


def ramp(low: float, high: float) -> np.ndarray:
    """Smooth, with more levels than 8 bits have."""
    y, x = np.mgrid[:300, :300] / 299
    return low + (high - low) * (0.5 + 0.5 * np.sin(5 * x + 3) * np.cos(4 * y))


IMAGES = {
    "8-bit RGB": (picture(), {}),
    "16-bit grey": (ramp(0, 65535).astype(np.uint16), {}),
    "CT, a window": (ramp(-1500, 1500).astype(np.float32), {"window": (-1000, 400)}),
    "CT, percentiles": (ramp(-1500, 1500).astype(np.int16), {"window": "percentiles"}),
}


@pytest.mark.parametrize("kind", list(IMAGES))
@pytest.mark.parametrize("name", CLASSES)
def test_every_lightly_transform_takes_images_of_medicine(name: str, kind: str) -> None:
    image, options = IMAGES[kind]
    transform = DiRATransform(build(name), **options)
    seed()
    views = transform(image, *arguments(name)[1:])
    assert views.target.shape[1:] == views.view.shape[1:]
    for target in views.targets:
        assert 0 <= target.min() <= target.max() <= 1
    if kind != "8-bit RGB":
        most = max(views.targets, key=lambda target: target.numel())
        levels = len((255 * most).unique())
        # A whole view has far more levels than 8 bits; small ones have fewer pixels.
        assert levels > min(300, most.numel() // 8)
    whole = DiRATransform(build(name), distortion=None, **options)
    seed()
    same = whole(image, *arguments(name)[1:])
    torch.testing.assert_close(same.target, views.target)


@pytest.mark.skipif(
    not hasattr(transforms, "DetConSTransform"), reason="came with Lightly 1.5.15"
)
def test_detcon_with_a_segmenter() -> None:
    def segment(image) -> Tensor:
        array = torch.from_numpy(np.asarray(image).copy())
        return (array[..., 0] > 128).long()

    base = transforms.DetConSTransform(grid_size=None, mask_fn=segment)
    (view, mask), _ = DiRATransform(base)(picture())
    assert view.shape[1:] == mask.shape[1:]


class TestOthers:
    def test_class_that_looks_into_the_image(self) -> None:
        class Mine:
            def __init__(self) -> None:
                self.transform = v2.Compose(
                    [
                        v2.RandomResizedCrop(32),
                        v2.ToImage(),
                        v2.ToDtype(torch.float32, scale=True),
                        v2.Normalize([0.5, 0.4, 0.3], [0.1, 0.2, 0.3]),
                    ]
                )

            def __call__(self, image):
                image = image.convert("RGB")
                return self.transform(image), self.transform(image)

        transform = DiRATransform(Mine(), target_view=1, distortion=InPainting())
        views = transform(picture())
        assert len(views) == 2
        mean = torch.tensor([0.5, 0.4, 0.3])[:, None, None]
        std = torch.tensor([0.1, 0.2, 0.3])[:, None, None]
        pixels = views[1] * std + mean
        black = pixels.abs().max(dim=0, keepdim=True)[0] < 1e-6
        assert black.any()
        assert torch.allclose(pixels[:1][~black], views.target[~black], atol=1e-6)

    def test_opaque_normalisation_is_an_error(self) -> None:
        with pytest.raises(ValueError, match=r"pixels in \[0, 1\].*`Compose`"):
            DiRATransform(lambda image: 3 * torch.randn(3, 32, 32))(picture())

    def test_list_of_callables(self) -> None:
        small = v2.Compose([v2.Resize((32, 32)), v2.ToImage()])
        large = v1.Compose([v1.RandomCrop(64), v1.ToTensor()])
        views = DiRATransform([small, large], target_view=1)(picture())
        assert [tuple(view.shape) for view in views] == [(3, 32, 32), (3, 64, 64)]
        assert views.target.shape == (1, 64, 64)

    def test_subclass_of_a_container(self) -> None:
        class Mine(transforms.MoCoV2Transform):
            def __init__(self) -> None:
                super().__init__(input_size=32, cj_prob=1.0)

        views = DiRATransform(Mine(), distortion=None)(picture())
        assert not torch.allclose(views[0].mean(), views.target.mean(), atol=1e-3)
        assert views.target.shape == (1, 32, 32)

    def test_stack_of_crops_is_no_target(self) -> None:
        transform = DiRATransform(transforms.PIRLTransform(), target_view=1)
        with pytest.raises(ValueError, match="Choose another `target_view`"):
            transform(picture())
