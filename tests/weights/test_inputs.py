"""What an encoder was fed with is measured, and made of other images."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from dicom_files import save_slice
from lightly.transforms import MoCoV2Transform
from pictures import ramp
from torchvision.models import resnet18
from torchvision.transforms import v2

from lightly_dira import DiRATransform
from lightly_dira.data import ImageFiles, ToPixels
from lightly_dira.transforms import Sequential, read_image
from lightly_dira.weights import Inputs, from_pretrained, save_pretrained

SCAN = ramp(size=96)


class TestInputs:
    def test_are_measured(self) -> None:
        transform = DiRATransform(MoCoV2Transform(input_size=64), window=(0, 4095))
        inputs = Inputs.of(transform, SCAN)
        assert (inputs.channels, inputs.size) == (3, (64, 64))
        assert inputs.window == (0, 4095)
        assert inputs.mean == pytest.approx((0.485, 0.456, 0.406))

    def test_are_those_of_views(self) -> None:
        """A transform that only resizes gives exactly what `Inputs` gives."""
        from lightly.transforms.utils import IMAGENET_NORMALIZE
        from torchvision.transforms import v2

        steps = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
        steps += [v2.Normalize(**IMAGENET_NORMALIZE)]
        transform = DiRATransform(
            v2.Compose(steps), window=(0, 4095), distortion=Sequential([])
        )
        inputs = Inputs.of(transform, SCAN)
        assert inputs(SCAN).shape == (3, 96, 96)
        assert torch.allclose(inputs(SCAN), transform(SCAN)[0], atol=1e-3)

    def test_of_volumes(self) -> None:
        transform = DiRATransform(spatial_dims=3, window=(-1000, 400), input_size=32)
        volume = np.full((40, 50, 60), 400, np.float32)
        inputs = Inputs.of(transform, volume)
        assert (inputs.channels, inputs.size, inputs.mean) == (1, (32, 32, 32), ())
        assert inputs(volume).eq(1).all()

    def test_of_albumentations(self) -> None:
        import albumentations as A
        from albumentations.pytorch import ToTensorV2

        steps = A.Compose([A.Resize(32, 32), A.Normalize(), ToTensorV2()])
        inputs = Inputs.of(DiRATransform(steps), np.zeros((40, 40, 3), np.uint8))
        assert inputs.mean == pytest.approx((0.485, 0.456, 0.406), abs=1e-3)

    @pytest.mark.parametrize("window", [None, (0, 4095)])
    def test_of_albumentations_and_floats(self, window) -> None:
        """Found: A.Normalize divided floats in [0, 1] by 255 again."""
        import albumentations as A
        from albumentations.pytorch import ToTensorV2

        steps = A.Compose([A.Normalize(), ToTensorV2()])
        transform = DiRATransform(steps, window=window, distortion=Sequential([]))
        image = SCAN if window else SCAN.astype(np.float32) / 4095
        inputs = Inputs.of(transform, image)
        assert torch.allclose(inputs(image), transform(image)[0], atol=1e-3)

    @pytest.mark.parametrize("how", ["image", "min_max"])
    def test_normalised_by_each_image(self, how: str) -> None:
        """Found: the fixed numbers were kept, which were not applied."""
        import albumentations as A
        from albumentations.pytorch import ToTensorV2

        steps = A.Compose([A.Normalize(normalization=how), ToTensorV2()])
        transform = DiRATransform(steps, distortion=Sequential([]))
        image = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        with pytest.raises(ValueError, match="normalise by fixed numbers"):
            Inputs.of(transform, image)

    def test_scaled_by_a_step_of_monai(self) -> None:
        """Found: neither window nor numbers were kept, and inputs were black."""
        monai = pytest.importorskip("monai.transforms")
        volume = ramp(size=40).astype(np.float32)[None].repeat(40, axis=0)

        def inputs_of(*steps) -> tuple[Inputs, torch.Tensor]:
            first = monai.EnsureChannelFirst(channel_dim="no_channel")
            transform = DiRATransform(
                monai.Compose([first, *steps]), spatial_dims=3, distortion=None
            )
            return Inputs.of(transform, volume), transform(volume).view

        inputs, view = inputs_of(monai.ScaleIntensityRange(0, 4095, 0, 1, clip=True))
        assert inputs.window == (0, 4095)
        assert torch.allclose(inputs(volume), view.as_subclass(torch.Tensor), atol=1e-5)
        for step in (
            monai.ScaleIntensity(),
            monai.ScaleIntensityRangePercentiles(1, 99, 0, 1, clip=True),
            monai.NormalizeIntensity(0, 4095),
        ):
            with pytest.raises(ValueError, match=type(step).__name__):
                inputs_of(step)

    def test_two_normalisations(self) -> None:
        """Found: only the first was kept."""
        from torchvision.transforms import v2

        steps = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
        steps += [v2.Normalize([0.5], [0.5]), v2.Normalize([0.5], [2.0])]
        image = np.zeros((40, 40), np.uint8)
        with pytest.raises(ValueError, match="what Normalize does to values cannot be"):
            Inputs.of(DiRATransform(v2.Compose(steps)), image)

    def test_one_number_for_all_channels(self) -> None:
        from torchvision import transforms as v1

        steps = v1.Compose([v1.ToTensor(), v1.Normalize((0.5), (0.25))])
        transform = DiRATransform(steps, distortion=Sequential([]))
        image = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        inputs = Inputs.of(transform, image)
        assert torch.allclose(inputs(image), transform(image)[0], atol=1e-3)

    def test_windows_of_numpy(self, tmp_path) -> None:
        """Found: they were kept as text."""
        window = (np.int64(0), np.int64(4095))
        inputs = Inputs.of(DiRATransform(window=window, input_size=32), SCAN)
        save_pretrained(tmp_path, resnet18(), inputs=inputs)
        _, again = from_pretrained(tmp_path, resnet18(), return_inputs=True)
        assert again.window == (0, 4095)
        assert again(SCAN).equal(inputs(SCAN))

    def test_other_channels(self) -> None:
        with pytest.raises(ValueError, match="grey image or one of 3 channels, got 2"):
            Inputs(3, (32, 32))(np.zeros((40, 40, 2), np.uint8))


class TestWhatCannotBeKept:
    @pytest.mark.parametrize(
        "make",
        [
            lambda _, v2: v2.Compose([v2.RandomInvert(p=1.0), v2.ToTensor()]),
            lambda _, v2: v2.Compose([v2.RandomEqualize(p=1.0), v2.ToTensor()]),
            lambda a, _: a.Compose([a.InvertImg(p=1.0), a.ToFloat(255)]),
            lambda a, _: a.Compose([a.CLAHE(p=1.0), a.ToFloat(255)]),
        ],
    )
    def test_changes_of_all_images(self, make) -> None:
        """Found: they were left out, so that inputs were other images in silence."""
        import albumentations as A
        from torchvision.transforms import v2

        transform = DiRATransform(make(A, v2), distortion=Sequential([]))
        with pytest.raises(ValueError, match="cannot be kept"):
            Inputs.of(transform, (SCAN // 256).astype(np.uint8))

    def test_of_some_images(self) -> None:
        from torchvision.transforms import v2

        steps = [v2.RandomInvert(p=0.1), v2.RandomSolarize(0.5, p=0.2), v2.ToTensor()]
        transform = DiRATransform(v2.Compose(steps), distortion=Sequential([]))
        assert Inputs.of(transform, (SCAN // 256).astype(np.uint8)).channels == 1

    def test_other_transforms(self) -> None:
        """Found: 'ToPixels' object has no attribute 'transform'."""
        with pytest.raises(TypeError, match=r"expected the DiRATransform .* ToPixels"):
            Inputs.of(ToPixels(32), SCAN)


def test_numbers_of_numpy(tmp_path) -> None:
    """Found: they were saved as words, and failed only at the colleague's."""
    made = Inputs(3, (np.int64(32),) * 2, (np.float32(0), np.float32(1)))
    save_pretrained(tmp_path, resnet18(), inputs=made)
    _, inputs = from_pretrained(tmp_path, resnet18(), return_inputs=True)
    assert inputs == Inputs(3, (32, 32), (0.0, 1.0))


def test_windows_for_displays_are_remembered(tmp_path) -> None:
    """Found: the card read files without the window that they state."""
    tags = dict(BitsStored=12, HighBit=11, WindowCenter=600, WindowWidth=400)
    path = save_slice(tmp_path / "scan.dcm", SCAN // 16, **tags)
    transform = DiRATransform(input_size=32)
    inputs = Inputs.of(transform, ImageFiles([path], voi=True)[0][0])
    assert inputs.voi
    assert not Inputs.of(transform, ImageFiles([path])[0][0]).voi
    save_pretrained(tmp_path / "w", resnet18(), inputs=inputs)
    card = (tmp_path / "w/README.md").read_text()
    assert 'inputs(read_image("scan.dcm", voi=True))' in card
    _, again = from_pretrained(tmp_path / "w", resnet18(), return_inputs=True)
    assert again == inputs


@pytest.mark.parametrize("voi", [False, True])
def test_images_that_were_read_in_another_way(voi: bool, tmp_path) -> None:
    """Found: mean 0.50 in place of 0.76, without a word."""
    tags = dict(BitsStored=12, HighBit=11, WindowCenter=600, WindowWidth=400)
    path = save_slice(tmp_path / "scan.dcm", SCAN // 16, **tags)
    given = {way: read_image(path, voi=way) for way in (False, True)}
    inputs = Inputs.of(DiRATransform(input_size=32), given[voi])
    assert inputs(given[voi]).shape == (3, 32, 32)
    with pytest.raises(ValueError, match=rf"read_image\(file, voi={voi}\)"):
        inputs(given[not voi])


@pytest.mark.parametrize("step", [v2.Grayscale(3), v2.RandomGrayscale(1.0)])
def test_colours_that_are_taken_from_all_images(step) -> None:
    """Found: inputs had colours, which the encoder had never seen."""
    steps = [step, v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
    transform = DiRATransform(v2.Compose(steps), distortion=Sequential([]))
    grey = (SCAN // 256).astype(np.uint8)
    assert Inputs.of(transform, grey)
    with pytest.raises(ValueError, match="cannot be kept"):
        Inputs.of(transform, np.stack([grey, grey.T, 255 - grey], axis=-1))
