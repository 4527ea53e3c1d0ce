"""Any image through any transform: pixels, or an error with the cure."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from bounded import BOUNDED
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from lightly.transforms import MoCoV2Transform
from pictures import DTYPES, pixels
from PIL import Image
from torchvision import transforms as v1
from torchvision.transforms import v2

from lightly_dira import DiRATransform
from lightly_dira.data import white

PLAIN = v2.Compose([v2.RandomCrop(16), v2.ToImage(), v2.ToDtype(torch.float32, True)])


@pytest.fixture(autouse=True)
def warn_again() -> None:
    white._warn_of_few_bits.cache_clear()


@settings(max_examples=80, deadline=None)
@given(
    height=st.integers(16, 40),
    width=st.integers(16, 40),
    channels=st.sampled_from([None, 1, 2, 3, 4]),
    dtype=st.sampled_from(list(DTYPES)),
    as_tensor=st.booleans(),
    base=st.sampled_from(["published", "torchvision", "lightly"]),
    number=st.integers(0, 2**31),
)
def test_any_array(height, width, channels, dtype, as_tensor, base, number) -> None:
    shape = (height, width) if channels is None else (height, width, channels)
    image = given_image = pixels(dtype, shape, number)
    before = image.copy()
    if as_tensor and dtype is not np.uint16:
        given_image = torch.from_numpy(image)
        given_image = given_image if channels is None else given_image.movedim(-1, 0)
    options = {"window": (-1000, 1000)} if dtype is np.int16 else {}
    transform = DiRATransform(
        {
            "published": None,
            "torchvision": PLAIN,
            "lightly": MoCoV2Transform(input_size=16),
        }[base],
        input_size=16,
        distortion=None,
        **options,
    )
    outputs = []
    for _ in range(2):
        torch.manual_seed(number)
        np.random.seed(number % 2**32)
        views = transform(given_image)
        outputs.append(torch.cat([views[0], views.target]))
    assert torch.equal(*outputs), "one seed, two results"
    assert np.array_equal(image, before), "the input was modified"
    assert views.target.shape == (1, 16, 16)
    assert 0 <= views.target.min() <= views.target.max() <= 1
    count = channels or 1
    expected = {"published": 3 if count == 1 else count, "torchvision": count}
    assert len(views[0]) == expected.get(base, 3)
    if base == "torchvision" and count == 1:
        assert torch.allclose(views[0], views.target)


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "RGBA", "I;16", "I", "F"])
@pytest.mark.parametrize("base", [None, MoCoV2Transform(input_size=16)])
def test_any_pil_mode(mode: str, base) -> None:
    grey = pixels(np.uint8, (40, 40))
    image = {
        "I;16": lambda: Image.fromarray(pixels(np.uint16, (40, 40))),
        "I": lambda: Image.fromarray(pixels(np.uint16, (40, 40)).astype(np.int32)),
        "F": lambda: Image.fromarray(pixels(np.float32, (40, 40))),
    }.get(mode, lambda: Image.fromarray(grey).convert(mode))()
    assert image.mode == mode
    views = DiRATransform(base, input_size=16)(image)
    assert views.target.shape == (1, 16, 16)
    assert len(views[0]) == 3


@pytest.mark.parametrize("base", [None, "lightly"])
@pytest.mark.parametrize("kind", ["uint16", "int16", "I;16", "float32", "tensor"])
def test_sixteen_bits_survive(kind: str, base: str | None) -> None:
    ramp = np.arange(128 * 128, dtype=np.uint16).reshape(128, 128)
    options = {}
    if kind == "int16":
        image, options = ramp.astype(np.int16) - 1000, {"window": (-1000, 15383)}
    elif kind == "I;16":
        image = Image.fromarray(ramp)
    elif kind == "uint16":
        image = ramp
    else:
        image = (ramp / 16383).astype(np.float32)
        image = torch.from_numpy(image)[None] if kind == "tensor" else image
    lightly = MoCoV2Transform(input_size=64, normalize=None)
    transform = DiRATransform(
        lightly if base == "lightly" else None,
        input_size=64,
        distortion=None,
        **options,
    )
    for number in range(5):
        torch.manual_seed(number)
        views = transform(image)
        assert len(views.target.unique()) > 1000
        assert len(views[0][0].unique()) > 1000


def test_shrinking_does_not_alias() -> None:
    """A grating finer than the output's pixels must become an even grey."""
    grating = np.tile(np.array([0, 255], np.uint8), (1024, 512))
    transform = DiRATransform(distortion=None, input_size=224)
    for number in range(10):
        torch.manual_seed(number)
        target = transform(grating).target
        # Sides of 0.45 to 1 of 1024 pixels shrink at least twofold.
        assert target[:, 8:-8, 8:-8].std() < 0.2
    aliased = cv2.resize(grating, (224, 224), interpolation=cv2.INTER_NEAREST)
    assert (aliased / 255).std() > 0.4


@pytest.mark.parametrize("channels", [3, 4])
def test_target_as_the_image(channels: int) -> None:
    image = pixels(np.uint8, (32, 32, channels))
    transform = DiRATransform(PLAIN, distortion=None, target_channels=channels)
    views = transform(image)
    torch.testing.assert_close(views.target, views[0])


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        (
            np.zeros((0, 16), np.uint8),
            ValueError,
            "16 x 16 pixels, got 0 x 16",
        ),
        (np.zeros((15, 40), np.uint8), ValueError, "got 15 x 40"),
        (Image.new("L", (15, 40)), ValueError, "got 40 x 15"),
        (np.full((16, 16), np.nan), ValueError, "NaN or infinite"),
        (np.full((16, 16), np.inf, np.float32), ValueError, "NaN or infinite"),
        (np.full((16, 16), 3.0), ValueError, r"floats in \[0, 1\], got.*window="),
        (np.zeros((16, 16), np.int16), ValueError, "int16.*window="),
        (np.full((16, 16), 2**20, np.int32), ValueError, "1.04858e\\+06.*window="),
        (np.zeros((16, 16), np.complex64), TypeError, "got complex64"),
        (np.zeros((16, 16, 33), np.uint8), ValueError, "1 to 32 channels"),
        (np.zeros((2, 16, 16, 3), np.uint8), ValueError, "1 to 32 channels"),
        ("image.png", TypeError, "got str"),
    ],
)
@pytest.mark.parametrize("base", [None, PLAIN])
def test_bad_images(image, error, message: str, base) -> None:
    with pytest.raises(error, match=message):
        DiRATransform(base)(image)


def test_colour_target_of_other_channels() -> None:
    with pytest.raises(ValueError, match=r"image of 4 channels.*target of 3"):
        DiRATransform(PLAIN, target_channels=3)(np.zeros((16, 16, 4), np.uint8))


STEPS = {
    "crop": lambda: v2.RandomResizedCrop(24),
    "old crop": lambda: v1.RandomResizedCrop(24),
    "flip": lambda: v1.RandomHorizontalFlip(),
    "rotation": lambda: v1.RandomRotation(20),
    "jitter": lambda: v1.ColorJitter(0.4, 0.4, 0.4, 0.1),
    "blur": lambda: v1.GaussianBlur(3),
    "grey": lambda: v1.RandomGrayscale(0.5),
    "solarise": lambda: v2.RandomSolarize(0.5, 0.5),
    "invert": lambda: v2.RandomInvert(0.5),
    "jpeg": lambda: v2.JPEG(50),
    "rand": lambda: v2.RandAugment(),
}


KINDS_OF_PIXELS = ["uint8", "uint16", "int32", "float32", "float64", "bool"]


@settings(**BOUNDED)
@given(data=st.data())
def test_any_image_through_any_transform(data) -> None:
    """Targets are the moved image, whatever it comes as; or an error of ours."""
    kind = data.draw(st.sampled_from(KINDS_OF_PIXELS))
    channels = data.draw(st.sampled_from([0, 1, 2, 3, 4]))
    random = np.random.default_rng(data.draw(st.integers(0, 1000)))
    shape = (40, 36, channels) if channels else (40, 36)
    top = {"uint8": 255, "uint16": 65535, "int32": 65535}.get(kind, 1)
    clean = np.kron(random.random((5, 4)), np.ones((8, 9)))
    clean = np.broadcast_to(clean[..., None] if channels else clean, shape)
    image = (clean > 0.5) if kind == "bool" else (clean * top).astype(kind)
    how = data.draw(st.sampled_from(["array", "tensor", "pil"]))
    if how == "tensor":
        assume(kind not in ("uint16", "bool"))
        image = torch.from_numpy(np.atleast_3d(image).copy()).movedim(-1, 0)
    elif how == "pil":
        modes = {("uint8", 0): "L", ("uint8", 3): "RGB", ("uint8", 4): "RGBA"}
        modes |= {("uint8", 2): "LA", ("uint16", 0): "I;16", ("int32", 0): "I"}
        modes |= {("float32", 0): "F", ("bool", 0): "1"}
        assume((kind, channels) in modes)
        image = Image.fromarray(image)
    names = data.draw(st.lists(st.sampled_from(sorted(STEPS)), max_size=4))
    last = data.draw(st.sampled_from([v1.ToTensor, v2.ToImage, None]))
    steps = [STEPS[name]() for name in names] + ([last()] if last else [])
    library = data.draw(st.sampled_from([v1, v2] if steps else [v1]))
    transform = DiRATransform(library.Compose(steps))
    torch.manual_seed(0)
    try:
        views = transform(image)
    except (ValueError, TypeError) as error:
        assert str(error).startswith("DiRATransform: "), error
        return
    assert views[0].shape[1:] == views.target.shape[1:]
    assert views.target.dtype == torch.float32
    assert 0 <= views.target.min() <= views.target.max() <= 1
    moves = {"crop", "old crop", "flip", "rotation", "rand"} & set(names)
    if not moves:
        expected = clean > 0.5 if kind == "bool" else clean
        expected = expected[..., 0] if channels else expected
        np.testing.assert_allclose(views.target[0], expected, atol=0.01)


class TestTransforms:
    @pytest.mark.parametrize("mode", ["I;16", "I", "F", "LA"])
    def test_old_composes_with_such_images(self, mode: str) -> None:
        """Found: a TypeError of torchvision's from inside."""
        ramp = np.linspace(0, 1, 1600).reshape(40, 40)
        array = {
            "I;16": (65535 * ramp).astype("uint16"),
            "I": (65535 * ramp).astype("int32"),
            "F": ramp.astype("float32"),
            "LA": np.stack([255 * ramp] * 2, axis=-1).astype("uint8"),
        }[mode]
        image = Image.fromarray(array)
        assert image.mode == mode
        compose = v1.Compose([v1.RandomHorizontalFlip(0), v1.ToTensor()])
        views = DiRATransform(compose, distortion=None)(image)
        np.testing.assert_allclose(views.target[0], ramp, atol=5e-3)

    def test_eight_bits_only(self) -> None:
        compose = v2.Compose([v2.ToImage(), v2.JPEG(50)])
        with pytest.raises(ValueError, match=r"JPEG failed .*8 bits"):
            DiRATransform(compose)(np.zeros((40, 40), np.uint16))

    @pytest.mark.parametrize("crop", [v1.FiveCrop, v2.TenCrop])
    def test_several_crops(self, crop) -> None:
        with pytest.raises(TypeError, match="list of transforms, one for each view"):
            DiRATransform(v2.Compose([crop(16)]))


def test_usual_transforms_are_quiet(recwarn) -> None:
    DiRATransform(MoCoV2Transform(input_size=32))(Image.new("RGB", (64, 64)))
    assert not [w for w in recwarn if "DiRA" in str(w.message)]
