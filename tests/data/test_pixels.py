"""Any image through any transform: pixels, or an error with the cure."""

from __future__ import annotations

import albumentations as A
import numpy as np
import pytest
import torch
from bounded import BOUNDED
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from lightly.transforms import MoCoV2Transform
from PIL import Image
from torchvision import transforms as v1
from torchvision.transforms import v2

from lightly_dira import DiRATransform
from lightly_dira.data import white


@pytest.fixture(autouse=True)
def warn_again() -> None:
    white._warn_of_few_bits.cache_clear()


KINDS_OF_PIXELS = ["uint8", "uint16", "int32", "float32", "float64", "bool"]


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

    def test_replay(self) -> None:
        """Found: KeyError 'images'."""
        compose = A.ReplayCompose([A.HorizontalFlip(p=0.5), A.Normalize()])
        views = DiRATransform(compose)(np.full((40, 40, 3), 128, np.uint8))
        assert views.target.shape == (1, 40, 40)

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
