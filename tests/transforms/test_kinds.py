"""Every class of torchvision, Lightly and albumentations: what it does, measured."""

from __future__ import annotations

import importlib
import inspect
import pickle
import pkgutil

import albumentations as A
import lightly.transforms
import numpy as np
import pytest
import torch
from lightly.transforms import jigsaw
from PIL import Image
from torch import nn
from torchvision import transforms as v1
from torchvision.transforms import v2

from lightly_dira import DiRATransform
from lightly_dira.data.pixels import to_target
from lightly_dira.transforms.alignment import Draws, Sample, Step
from lightly_dira.transforms.kinds import kind_of

SIZE = 64
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:albumentations")


def classes_of(module, base=object) -> dict[str, type]:
    found = {n: c for n, c in vars(module).items() if inspect.isclass(c)}
    return {n: c for n, c in found.items() if issubclass(c, base)}


def lightlys() -> dict[str, type]:
    names = pkgutil.iter_modules(lightly.transforms.__path__, "lightly.transforms.")
    modules = [importlib.import_module(name.name) for name in names]
    found = [c for module in modules for c in classes_of(module).values()]
    return {
        c.__name__: c
        for c in found
        if c.__module__.startswith("lightly.transforms")
        and any("__call__" in vars(base) for base in c.__mro__[:-1])
    }


def instance(cls: type, module) -> object | None:
    """Makes a step that acts; None for what is a container or has no image."""
    name = cls.__name__
    special = {
        v1: dict(
            CenterCrop=dict(size=32),
            ColorJitter=dict(brightness=0.5, hue=0.2),
            ConvertImageDtype=dict(dtype=torch.float32),
            Normalize=dict(mean=[0.5] * 3, std=[0.5] * 3),
            ToDtype=dict(dtype=torch.float32),
            JPEG=dict(quality=10),
            GaussianBlur=dict(kernel_size=5),
            Pad=dict(padding=4),
            RandomAdjustSharpness=dict(sharpness_factor=3, p=1),
            RandomAffine=dict(degrees=30),
            RandomCrop=dict(size=32),
            RandomPosterize=dict(bits=2, p=1),
            RandomResize=dict(min_size=40, max_size=50),
            RandomResizedCrop=dict(size=32),
            RandomRotation=dict(degrees=30),
            RandomShortestSize=dict(min_size=32),
            RandomSolarize=dict(threshold=100, p=1),
            Resize=dict(size=32),
            ScaleJitter=dict(target_size=(32, 32)),
            Lambda=dict(lambd=lambda x: x),
        ),
        A: dict(
            Affine=dict(rotate=(20, 40)),
            ChannelShuffle={},
            FancyPCA=dict(alpha=1.0),
            GridElasticDeform=dict(num_grid_xy=(4, 4), magnitude=4),
            Pad=dict(padding=4),
            Solarize=dict(threshold_range=(0.2, 0.2)),
            UnsharpMask=dict(threshold=0),
            XYMasking=dict(num_masks_x=2, mask_x_length=8),
            CenterCrop=dict(height=32, width=32),
            Crop=dict(x_max=32, y_max=32),
            CropAndPad=dict(px=4),
            CoarseDropout=dict(fill=255, p=1),
            LongestMaxSize=dict(max_size=32),
            RandomCrop=dict(height=32, width=32),
            RandomResizedCrop=dict(size=(32, 32)),
            RandomSizedCrop=dict(min_max_height=(32, 48), size=(32, 32)),
            Resize=dict(height=32, width=32),
            SmallestMaxSize=dict(max_size=32),
        ),
    }
    special[v2] = special[v1]
    arguments = dict(special.get(module, {}).get(name, {}))
    parameters = inspect.signature(cls.__init__).parameters
    if "p" in parameters and "p" not in arguments:
        arguments["p"] = 1.0
    if "prob" in parameters:
        arguments["prob"] = 1.0
    return cls(**arguments)


def picture(factor: float = 1.0) -> np.ndarray:
    """Smooth and coloured, and dark at the border, as fills are."""
    y, x = np.mgrid[:SIZE, :SIZE] / SIZE
    frame = np.clip(8 * np.minimum.reduce([x, y, 1 - x, 1 - y]) - 0.5, 0, 1)
    image = frame * (0.5 + 0.4 * np.sin(7 * x + 3) * np.cos(5 * y))
    colours = np.array([1.0, 0.7, 0.4])
    return (factor * 240 * image[..., None] * colours).astype(np.uint8)


def seed(value: int) -> None:
    torch.manual_seed(value)
    np.random.seed(value)


def run(step: Step, value: int, how: str) -> tuple[np.ndarray, np.ndarray]:
    seed(value)
    make = {
        "pil": Image.fromarray,
        "array": lambda array: array,
        "tensor": lambda array: torch.from_numpy(array / np.float32(255)).movedim(2, 0),
    }[how]
    sample = Sample(make(picture(0.5)), make(picture()), Draws(), None)
    out = step(sample)
    out = out[0] if isinstance(out, tuple) else out
    if how == "tensor":
        view, target = (
            (255 * image).round().byte().movedim(0, -1)
            for image in (out.view, out.target)
        )
        return view.numpy(), target.numpy()
    return np.asarray(out.view), np.asarray(out.target)


# Need boxes, key points, masks, videos, volumes, other images or batches of them.
NO_IMAGE = """
    ClampBoundingBoxes ClampKeyPoints ConvertBoundingBoxFormat RandomIoUCrop
    SanitizeBoundingBoxes SanitizeKeyPoints SetClampingMode UniformTemporalSubsample
    LinearTransformation Transform AtLeastOneBBoxRandomCrop BBoxSafeRandomCrop
    RandomCropNearBBox RandomSizedBBoxSafeCrop CropNonEmptyMaskIfExists MaskDropout
    ConstrainedCoarseDropout OverlayElements TextImage FDA HistogramMatching
    PixelDistributionAdaptation HEStain RandomGravel CenterCrop3D CoarseDropout3D
    CubicSymmetry Pad3D PadIfNeeded3D RandomCrop3D Transform3D ToTensor3D DualTransform
    ImageOnlyTransform BasicTransform Lambda""".split()
CONTAINERS = """
    Compose RandomApply RandomChoice RandomOrder InterpolationMode AutoAugmentPolicy
    OneOf OneOrOther SomeOf Sequential ReplayCompose SelectiveChannelTransform
    BaseCompose""".split()
AUTOMATIC = ["AutoAugment", "RandAugment", "TrivialAugmentWide"]
SEVERAL = {"CutMix", "MixUp", "FiveCrop", "TenCrop", "Mosaic"}


def cases() -> list:
    found = []
    albumentations = classes_of(A, A.BasicTransform) | classes_of(A, A.BaseCompose)
    for library, classes in ((v1, classes_of(v1)), (v2, classes_of(v2))):
        found += [(library, cls) for cls in classes.values()]
    found += [(A, cls) for cls in albumentations.values()]
    return [
        pytest.param(library, cls, id=f"{library.__name__}.{cls.__name__}")
        for library, cls in found
        if cls.__name__ not in {*NO_IMAGE, *CONTAINERS, *SEVERAL}
    ]


def as_it_takes(transform, library):
    """Returns how a conversion wants its images."""
    if library is A:
        return lambda array: array
    of_pil = ("PILToTensor", "ToTensor", "ToImage", "ToPureTensor", "ToRGB", "RGB")
    if type(transform).__name__ in of_pil:
        return Image.fromarray
    return lambda array: torch.from_numpy(array / np.float32(255)).movedim(2, 0)


def check_values(step: Step, make) -> None:
    """Nothing moves: values are the same up to a scale, or to a line if normalised."""
    given = picture(0.5), picture()
    out = step(Sample(*map(make, given), Draws(), None))
    found = [
        np.asarray(i.movedim(0, -1) if isinstance(i, torch.Tensor) else i, float)
        for i in (out.view, out.target)
    ]
    for values, expected in zip(found, given, strict=True):
        assert values.shape == expected.shape
        for channel in range(3):
            own, right = values[..., channel].ravel(), expected[..., channel].ravel()
            assert np.corrcoef(own, right)[0, 1] > 0.9999
    if step.kind == "conversion":
        for values, expected in zip(found, given, strict=True):
            scaled = values / values.max() * expected.max()
            np.testing.assert_allclose(scaled, expected, atol=1.01)
    else:
        scale = found[0].max() / given[0].max()
        assert not np.allclose(found[0], given[0] * scale, atol=1e-3)
        scaled = found[1] / found[1].max() * given[1].max()
        np.testing.assert_allclose(scaled, given[1], atol=1e-3)


@pytest.mark.parametrize(("library", "cls"), cases())
def test_measured(library, cls: type) -> None:
    """Pixels change and the target does not, or both are moved alike."""
    transform = instance(cls, library)
    kind = kind_of(transform, {})
    assert kind != "unknown"
    step = Step(transform, kind)
    if kind in ("conversion", "normalisation"):
        return check_values(step, as_it_takes(transform, library))
    moved = changed = 0
    tensors = cls.__name__ in ("RandomErasing", "GaussianNoise") and library is not A
    how = "array" if library is A else "tensor" if tensors else "pil"
    for value in range(8):
        view, target = run(step, value, how)
        if kind == "photometric":
            assert np.array_equal(target, picture())
            changed += view.shape != target.shape or not np.array_equal(
                view, picture(0.5)
            )
        elif kind == "geometric":
            assert view.shape == target.shape
            # Where interpolation and fills differ, it is by a few grey levels.
            difference = np.abs(view.astype(float) - 0.5 * target)
            assert difference.mean() < 2
            assert np.quantile(difference, 0.99) < 8
            same = view.shape == picture().shape
            moved += not (same and np.array_equal(target, picture()))
        else:  # measured below
            assert cls.__name__ in AUTOMATIC
    if kind == "photometric":
        assert changed or cls.__name__ in ("NoOp", "Identity", "RGB", "ToRGB")
    if kind == "geometric":
        assert moved


@pytest.mark.parametrize("library", [v1, v2], ids=["v1", "v2"])
@pytest.mark.parametrize("name", AUTOMATIC)
def test_automatic_augmentations_only_move_the_target(library, name: str) -> None:
    """Found: their colours entered the target, by up to 0.88 of the range."""
    bright = picture()[..., :1] > 60
    flat = np.where(bright, np.uint8(153), np.uint8(0)).repeat(3, axis=2)
    step = Step(getattr(library, name)(), "mixed")
    moved = coloured = aligned = 0
    for value in range(60):
        seed(value)
        sample = Sample(Image.fromarray(flat), Image.fromarray(flat), Draws(), None)
        out = step(sample)
        view, target = np.asarray(out.view), np.asarray(out.target)
        assert set(np.unique(target)) <= {0, 153}
        moved += not np.array_equal(target, flat)
        if set(np.unique(view)) <= {0, 153}:
            assert np.array_equal(view, target)
            aligned += 1
        else:
            coloured += 1
    assert min(moved, coloured, aligned) > 3
    pickle.loads(pickle.dumps(step))


@pytest.mark.parametrize("name", sorted(SEVERAL))
def test_several_images(name: str) -> None:
    library = A if name == "Mosaic" else v2
    arguments = {
        "FiveCrop": dict(size=8),
        "TenCrop": dict(size=8),
        "CutMix": dict(num_classes=2),
        "MixUp": dict(num_classes=2),
    }.get(name, {})
    step = getattr(library, name)(**arguments)
    compose = A.Compose([step]) if library is A else v2.Compose([step])
    with pytest.raises(TypeError, match=rf"{name} mixes images or makes several"):
        DiRATransform(compose)


def test_lightlys_steps_are_known() -> None:
    for cls in lightlys().values():
        names = {base.__name__ for base in cls.__mro__}
        made = [p for p in inspect.signature(cls.__init__).parameters.values()]
        needed = [p for p in made[1:] if p.default is p.empty and p.kind == 1]
        if needed or names & {"MultiViewTransform", "MultiViewTransformV2"}:
            continue
        transform = cls()
        if not any(hasattr(transform, n) for n in ("transforms", "transform", "tr")):
            assert kind_of(transform, {}) != "unknown", cls


def inverted(image, **_):
    return 255 - image


def jitter() -> A.ColorJitter:
    return A.ColorJitter(brightness=(0.5, 0.5), contrast=(1, 1), p=1)


@pytest.mark.parametrize(
    "compose",
    [
        A.Compose([jitter()]),
        A.OneOf([jitter()], p=1),
        A.SomeOf([jitter(), jitter()], n=1, p=1),
        A.Sequential([jitter()], p=0.9),
        A.Compose([A.OneOf([jitter(), A.HorizontalFlip(p=1)], p=1)]),
        A.Compose([A.Sequential([jitter(), A.HorizontalFlip(p=0.5)], p=0.9)]),
        A.ReplayCompose([jitter(), A.HorizontalFlip()]),
        A.Compose([A.CoarseDropout(p=1), A.PixelDropout(p=1), A.GridDropout(p=1)]),
        A.Compose([A.XYMasking((1, 3), (1, 3), 5, 5, p=1), A.Erasing(p=1)]),
        A.Compose([A.Morphological(p=1), A.Lambda(image=inverted, p=1)]),
    ],
    ids=lambda compose: type(compose).__name__,
)
def test_colour_and_holes_never_enter_the_target(compose) -> None:
    """Found: of `ColorJitter`, which has a list of functions, and of dropouts."""
    transform = DiRATransform(compose, distortion=None)
    clean = np.asarray(Image.fromarray(picture()).convert("L")) / 255
    changed = 0
    for value in range(12):
        seed(value)
        views = transform(picture())
        target = views.target[0].numpy()
        assert any(
            np.allclose(target, way, atol=5e-3) for way in (clean, clean[:, ::-1])
        )
        changed += not np.allclose(views[0][0].numpy(), target, atol=0.02)
    assert changed


class TestUnknownSteps:
    class Mine(nn.Module):
        def forward(self, image):
            return v2.functional.invert(image)

    def test_warned_of_by_name_with_the_cure(self) -> None:
        with pytest.warns(UserWarning, match=r'kinds=\{"Mine": "photometric"\}'):
            DiRATransform(v2.Compose([self.Mine(), v2.ToImage()]))

    @pytest.mark.parametrize("key", ["class", "name", "step"])
    def test_said(self, key: str, recwarn) -> None:
        step = self.Mine()
        key = {"class": self.Mine, "name": "Mine", "step": step}[key]
        transform = DiRATransform(
            v2.Compose([step, v2.RandomHorizontalFlip(1.0)]),
            distortion=None,
            kinds={key: "photometric"},
        )
        views = transform(Image.fromarray(picture()))
        clean = to_target(Image.fromarray(picture()[:, ::-1]), 1)
        torch.testing.assert_close(views.target, clean)
        grey = to_target(views[0], 1)
        torch.testing.assert_close(grey, 1 - clean, rtol=0, atol=0.01)
        assert not recwarn.list

    def test_said_wrongly(self) -> None:
        with pytest.raises(ValueError, match="kinds must be of geometric, photometric"):
            DiRATransform(v2.Compose([self.Mine()]), kinds={"Mine": "colour"})


def test_jigsaw_needs_no_word(recwarn) -> None:
    assert kind_of(jigsaw.Jigsaw(), {}) == "stack"
    DiRATransform(lightly.transforms.PIRLTransform())
    assert not [w for w in recwarn if "is not known" in str(w.message)]


class TestStepsOfTheUsersOwn:
    """Found: a class was taken for a library's step by its bare name."""

    def test_a_to_tensor(self) -> None:
        class ToTensor:
            def __call__(self, image):
                called.append(1)
                return v2.functional.to_dtype(v2.functional.to_image(image), scale=True)

        called = []
        with pytest.warns(UserWarning, match="effect of ToTensor"):
            transform = DiRATransform(v2.Compose([v2.CenterCrop(32), ToTensor()]))
        transform(Image.fromarray(np.zeros((40, 40, 3), np.uint8)))
        assert called

    def test_a_normalize(self) -> None:
        class Normalize:
            mean, std = (0.5,) * 3, (0.5,) * 3

            def __call__(self, image):
                return image

        with pytest.warns(UserWarning, match="effect of Normalize"):
            transform = DiRATransform(v2.Compose([v2.ToImage(), Normalize()]))
        assert transform._boundary.normalisation is None
        said = DiRATransform(
            v2.Compose([v2.CenterCrop(32), v2.ToImage(), Normalize()]),
            kinds={Normalize: "photometric"},
        )
        assert said is not None

    def test_of_a_library_by_inheritance(self) -> None:
        class Mine(v2.CenterCrop):
            pass

        DiRATransform(v2.Compose([Mine(32), v2.ToImage()]))


def test_a_policy_with_a_forward_of_its_own() -> None:
    """Found: a KeyError of names that such a `forward` does not have."""

    class Own(v1.RandAugment):
        def forward(self, image: Image.Image) -> Image.Image:
            return super().forward(image)

    assert kind_of(Own(), {}) == "unknown"
    assert kind_of(v1.RandAugment(), {}) == "mixed"
