"""What all distortions do, and several as one."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import numbered

from lightly_dira.transforms import (
    InPainting,
    NonLinearIntensity,
    OneOf,
    OutPainting,
    PatchShuffling,
    Sequential,
)
from lightly_dira.transforms.published_distortions import published_mixture

DISTORTIONS = [InPainting, OutPainting, PatchShuffling]


images = st.tuples(
    st.integers(16, 80),
    st.integers(16, 80),
    st.sampled_from([None, 1, 3]),
    st.sampled_from([np.uint8, np.uint16, np.float32]),
    st.integers(0, 2**31),
)


@pytest.mark.parametrize("distortion", DISTORTIONS)
@settings(max_examples=60, deadline=None)
@given(drawn=images)
def test_any_image(distortion, drawn) -> None:
    height, width, channels, dtype, seed = drawn
    shape = (height, width) if channels is None else (height, width, channels)
    random = np.random.default_rng(seed)
    image = (1 + 254 * random.random(shape)).astype(dtype)
    before = image.copy()
    transform = distortion()
    first, second = (transform(image, np.random.default_rng(seed)) for _ in "12")
    assert np.array_equal(image, before), "the input was modified"
    assert np.array_equal(first, second), "one seed, two results"
    assert first.shape == shape
    assert first.dtype == dtype
    if distortion is PatchShuffling:
        assert np.array_equal(np.sort(first, axis=None), np.sort(image, axis=None))
    else:
        assert set(np.unique(first)) <= {0, *np.unique(image)}
        assert np.array_equal(first[first != 0], image[first != 0])


@pytest.mark.parametrize(
    "distortion", [*DISTORTIONS, published_mixture, NonLinearIntensity]
)
def test_copies(distortion) -> None:
    transform = distortion()
    image = numbered() / numbered().max()
    results = []
    for twin in (
        transform,
        copy.deepcopy(transform),
        pickle.loads(pickle.dumps(transform)),
    ):
        random = np.random.default_rng(5)
        results.append([twin(image, random) for _ in range(5)])
        assert repr(twin) == repr(transform)
    assert np.array_equal(results[0], results[1])
    assert np.array_equal(results[0], results[2])


def test_probability() -> None:
    image, random = numbered(), np.random.default_rng(0)
    distort = InPainting(p=0.25)
    changed = [distort(image, random) is not image for _ in range(4000)]
    assert np.mean(changed) == pytest.approx(0.25, abs=0.03)


def test_without_a_generator_pytorch_decides() -> None:
    results = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        results.append(InPainting()(numbered()))
    assert np.array_equal(results[0], results[1])
    assert not np.array_equal(results[0], results[2])


class TestCompositions:
    def test_of_any_callables(self) -> None:
        """Ours, the user's own and those of albumentations, adapted."""
        mine = Sequential([lambda image, random: image + random.random(), InPainting()])
        out = mine(numbered(), np.random.default_rng(0))
        assert (out == 0).any()
        added = (out - numbered())[out != 0]
        assert np.allclose(added, added[0], atol=1e-2)

    def test_none_is_left_out_of_the_draws(self) -> None:
        """Parts draw one after the other from one generator."""
        random, again = np.random.default_rng(3), np.random.default_rng(3)
        steps = [NonLinearIntensity(), PatchShuffling()]
        image = numbered() / numbered().max()
        expected = steps[1](steps[0](image, again), again)
        assert np.array_equal(Sequential(steps)(image, random), expected)

    def test_equal_parts(self) -> None:
        parts = OneOf([lambda image, random, add=add: image + add for add in (1, 2)])
        random, zero = np.random.default_rng(0), np.zeros((4, 4))
        drawn = [parts(zero, random)[0, 0] for _ in range(2000)]
        assert set(drawn) == {1, 2}
        assert np.mean(drawn) == pytest.approx(1.5, abs=0.05)
