"""Images that are the same, also moved, normalised or repeated."""

from __future__ import annotations

import torch

from lightly_dira.core import same_image


class TestAccelerator:
    """Where a value would be waited for: here by saying so of the CPU."""

    def test_samples_stand_for_images_on_another_device(self, monkeypatch) -> None:
        images = torch.rand(2, 3, 224, 224)
        sampled = same_image._sampled(images)
        assert sampled.shape == (2, 3, 32, 32)
        difference = same_image.difference_of(sampled, same_image._sampled(images / 2))
        assert difference < 1e-6
