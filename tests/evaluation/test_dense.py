"""What single pixels' features tell."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small import SIZE, balls
from torch import nn
from torch.utils.data import TensorDataset

from lightly_dira.evaluation.dense import dense_probe, encode_pixels


class TestDenseProbe:
    @pytest.fixture
    def data(self) -> TensorDataset:
        generator = torch.Generator().manual_seed(0)
        images = torch.rand(20, 1, 16, 16, generator=generator)
        masks = (images[:, 0] > 0.4).long() + (images[:, 0] > 0.7).long()
        return TensorDataset(images, masks)

    def test_finds_what_is_there(self, data) -> None:
        pixels = encode_pixels(lambda x: [torch.cat([x, x**2, x**3], 1)], data)
        scores = dense_probe(pixels, pixels)
        assert set(scores) == {1, 2}
        assert 0.9 < min(scores.values()) <= max(scores.values()) <= 1

    def test_finds_nothing_in_noise(self, data) -> None:
        torch.manual_seed(0)
        pixels = encode_pixels(lambda x: [torch.rand(len(x), 4, 16, 16)], data)
        others = encode_pixels(lambda x: [torch.rand(len(x), 4, 16, 16)], data)
        assert max(dense_probe(pixels, others).values()) < 0.6

    def test_coarse_maps_are_interpolated_as_when_enlarged(self, data) -> None:
        images, masks = data.tensors
        coarse = lambda x: [nn.functional.avg_pool2d(x, 4)]  # noqa: E731
        found, classes = encode_pixels(coarse, data, pixels=256, seed=3).tensors
        large = nn.functional.interpolate(
            coarse(images)[0], size=(16, 16), mode="bilinear"
        )
        random = np.random.default_rng(3)
        order = torch.from_numpy(np.stack([random.permutation(256) for _ in images]))
        expected = large.flatten(1).gather(1, order)
        torch.testing.assert_close(found[..., 0], expected, atol=1e-5, rtol=0)
        assert torch.equal(classes, masks.flatten(1).gather(1, order))

    def test_masks_must_fit(self, data) -> None:
        images, masks = data.tensors
        with pytest.raises(ValueError, match=r"need masks \(16, 16, 16\)"):
            encode_pixels(lambda x: [x], TensorDataset(images, masks[:, :8]))

    def test_classes_of_the_test_images_count(self, data) -> None:
        """Found: a class that few labels lack made the mean better."""
        images, masks = data.tensors
        maps = lambda x: [torch.cat([x, x**2, x**3], 1)]  # noqa: E731
        pixels = encode_pixels(maps, data)
        fewer = encode_pixels(maps, TensorDataset(images, masks.clamp(max=1)))
        assert dense_probe(fewer, pixels)[2] == 0
        # One that is neither there nor predicted does not.
        x, y = pixels.tensors
        dark = TensorDataset(x[:, :, :1] * 0, y * 0)
        assert dense_probe(TensorDataset(x[:, :, :1], y), dark) == {}

    def test_one_class(self, data) -> None:
        images, masks = data.tensors
        pixels = encode_pixels(lambda x: [x], TensorDataset(images, 0 * masks))
        with pytest.raises(ValueError, match="all training pixels are of one class"):
            dense_probe(pixels, pixels)


def test_pixels_are_those_of_the_voxels() -> None:
    """Maps that hold every voxel's own place are returned at those places."""
    data = balls(3)
    places = torch.stack(torch.meshgrid(*map(torch.arange, SIZE), indexing="ij"))
    numbers = torch.arange(places[0].numel()).reshape(SIZE).float()

    def maps(volumes):
        return [
            numbers.expand(len(volumes), 1, *SIZE),
            places.expand(len(volumes), -1, *SIZE),
        ]

    encoded, classes = encode_pixels(maps, data, pixels=50).tensors
    assert encoded.shape == (3, 50, 4)
    voxels = encoded[..., 0].round().long()
    assert torch.equal(classes, data.tensors[1].flatten(1).gather(1, voxels))
    expected = torch.stack(torch.unravel_index(voxels, SIZE), dim=-1)
    torch.testing.assert_close(encoded[..., 1:], expected.float(), rtol=0, atol=1e-3)
