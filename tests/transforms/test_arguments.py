"""What `DiRATransform` is given: taken, or refused with the cure."""

from __future__ import annotations

import warnings

import albumentations as A
import numpy as np
import pytest
import torch
from monai import transforms as mt
from PIL import Image
from torchvision.transforms import v2
from torchvision.transforms.v2 import PILToTensor

from lightly_dira import DiRATransform
from lightly_dira.transforms import VolumePipeline

SIZE = (12, 16, 20)


class TestAsAnArgument:
    """`DiRATransform(distortion=)` takes what is called with an image and draws."""

    image = torch.rand(1, 32, 32)

    def test_a_function(self) -> None:
        def inverted(image, random):
            return 1 - image

        transform = DiRATransform([PILToTensor()], distortion=inverted)
        views = transform(Image.fromarray(np.full((32, 32), 255, np.uint8)))
        assert views[0].unique().tolist() != views.target.unique().tolist()

    def test_of_albumentations(self) -> None:
        step = A.InvertImg(p=1)
        views = DiRATransform([lambda x: x], distortion=step)(self.image)
        torch.testing.assert_close(views[0], 1 - views.target)
        assert "InvertImg" in repr(DiRATransform(distortion=step))

    @pytest.mark.parametrize(
        "wrong", [lambda *given: given, lambda image, _: image[:9]]
    )
    def test_what_returns_something_else(self, wrong) -> None:
        transform = DiRATransform([lambda x: x], distortion=wrong)
        with pytest.raises(ValueError, match="returns an array like the one"):
            transform(self.image)

    @pytest.mark.parametrize("wrong", [3, lambda image: image, v2.RGB(), "mine"])
    def test_what_cannot_be_called(self, wrong) -> None:
        with pytest.raises(TypeError, match="array and a NumPy generator"):
            DiRATransform(distortion=wrong)


class TestTheDefectOfThePublishedRun:
    """Found: `aligned=False` did nothing where there is no such flip."""

    def test_where_it_has_an_effect(self) -> None:
        base = v2.Compose([v2.RandomHorizontalFlip(1.0), v2.ToImage()])
        image = Image.fromarray(np.arange(40 * 40).reshape(40, 40).astype(np.uint8))
        views = DiRATransform(base, aligned=False, distortion=None)(image)
        torch.testing.assert_close(views[0].flip(-1), views.target)
        DiRATransform(aligned=False)

    def test_where_it_has_none(self) -> None:
        for base in (v2.CenterCrop(32), mt.RandFlip(0.5), v2.RandomVerticalFlip()):
            dims = 3 if isinstance(base, mt.RandFlip) else 2
            with pytest.raises(ValueError, match="has none"):
                DiRATransform(base, aligned=False, spatial_dims=dims)


def test_bad_options() -> None:
    for options in (
        {"spatial_dims": 4},
        {"spatial_dims": 2, "transform": VolumePipeline(SIZE)},
        {"input_size": (8, 8, 8)},
        {"spatial_dims": 3, "input_size": 0},
    ):
        with pytest.raises(ValueError, match=r"spatial_dims|input_size"):
            DiRATransform(**options)
    for numbers in ({"size": (8, 8)}, {"scale": (1, 0.5)}, {"flip": 2}):
        with pytest.raises(ValueError, match="VolumePipeline"):
            VolumePipeline(**numbers)


class TestErrors:
    def test_no_transform(self) -> None:
        with pytest.raises(TypeError, match=r"must be callable.*got 3"):
            DiRATransform(3)

    @pytest.mark.parametrize("distortion", ["inpainting", v2.GaussianBlur(3)])
    def test_no_distortion(self, distortion) -> None:
        with pytest.raises(TypeError, match="albumentations transform"):
            DiRATransform(distortion=distortion)

    @pytest.mark.parametrize(
        "options", [{"target_channels": 33}, {"target_view": -1}, {"input_size": 0}]
    )
    def test_out_of_range(self, options) -> None:
        with pytest.raises(ValueError, match=next(iter(options))):
            DiRATransform(**options)


class TestWholeTransforms:
    compose = v2.Compose(
        [v2.RandomResizedCrop(32), v2.ColorJitter(0.4), v2.ToImage(),
         v2.ToDtype(torch.float32, scale=True)]
    )  # fmt: skip

    class NCrops:
        """As solo-learn's pipeline."""

        def __init__(self, transform) -> None:
            self.transform = transform

        def __call__(self, image):
            return [self.transform(image) for _ in "12"]

    def test_are_noticed(self) -> None:
        """Found: targets were jittered and blurred, in silence."""
        cure = r"NCrops is left whole.*DiRATransform\(\[compose, compose\]\)"
        with pytest.warns(UserWarning, match=cure):
            DiRATransform(self.NCrops(self.compose))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            DiRATransform([self.compose] * 2)
