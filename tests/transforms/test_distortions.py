from __future__ import annotations

import copy
import pickle

import albumentations as A
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import stats
from torchvision.transforms import v2
from torchvision.transforms.v2 import PILToTensor

from lightly_dira import DiRATransform
from lightly_dira.transforms import (
    InPainting,
    NonLinearIntensity,
    OneOf,
    OutPainting,
    PatchShuffling,
    PixelShuffling,
    Sequential,
)
from lightly_dira.transforms.published_distortions import published_mixture

DISTORTIONS = [InPainting, OutPainting, PatchShuffling]


def numbered(height: int = 224, width: int = 224) -> np.ndarray:
    """An image whose pixels all differ, and differ from black."""
    return 1 + np.arange(height * width, dtype=np.float32).reshape(height, width)


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


def rectangles(transform, key: str = "blocks", n: int = 2000) -> list:
    random = np.random.default_rng(0)
    return [transform.draw((224, 224), random)[key] for _ in range(n)]


@pytest.mark.parametrize(
    ("distortion", "shortest", "longest"),
    [(InPainting, 10, 70), (OutPainting, 154, 174)],
)
def test_published_rectangles(distortion, shortest: int, longest: int) -> None:
    drawn = rectangles(distortion())
    sides, borders = [], []
    for top, left, bottom, right in (r for image in drawn for r in image):
        sides += [bottom - top, right - left]
        borders.append(min(top, left, 224 - bottom, 224 - right))
    assert min(borders) == 3
    counts = np.bincount(sides)[shortest:]
    assert len(counts) == longest - shortest + 1
    assert stats.chisquare(counts).pvalue > 1e-4
    # After each of at most 10 rectangles, stop with probability 0.1.
    numbers = np.bincount([len(image) for image in drawn], minlength=11)[1:]
    expected = [0.1 * 0.9**k for k in range(9)] + [0.9**9]
    assert stats.chisquare(numbers, len(drawn) * np.array(expected)).pvalue > 1e-4


def test_published_shuffling() -> None:
    sides = []
    for pairs in rectangles(PatchShuffling(), "pairs"):
        assert len(pairs) == 10
        covered = np.zeros((224, 224), int)
        for first, second in pairs:
            sizes = {(b - t, r - l_) for t, l_, b, r in (first, second)}
            assert len(sizes) == 1
            sides += sizes.pop()
            for top, left, bottom, right in (first, second):
                covered[top:bottom, left:right] += 1
        assert covered.max() == 1, "rectangles overlap"
    counts = np.bincount(sides)[10:]
    assert len(counts) == 6
    assert stats.chisquare(counts).pvalue > 1e-4


def test_shuffling_exchanges() -> None:
    transform, image = PatchShuffling(count=1), numbered()
    drawn = transform.draw(image.shape, np.random.default_rng(0))
    shuffled = transform.apply(image, **drawn)
    ((t, l_, b, r), (top, left, bottom, right)) = drawn["pairs"][0]
    assert np.array_equal(shuffled[t:b, l_:r], image[top:bottom, left:right])
    assert np.array_equal(shuffled[top:bottom, left:right], image[t:b, l_:r])
    assert (shuffled != image).sum() == 2 * (b - t) * (r - l_)


def test_crowded_image_gets_fewer_exchanges() -> None:
    transform = PatchShuffling(count=50, side=(0.3, 0.3))
    image = numbered(16, 16)
    drawn = transform.draw(image.shape, np.random.default_rng(0))
    shuffled = transform.apply(image, **drawn)
    assert 0 < len(drawn["pairs"]) < 50
    assert np.array_equal(np.sort(shuffled, axis=None), np.sort(image, axis=None))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("inverted", [0.0, 1.0])
def test_nonlinear_intensity_is_monotone(dtype, inverted: float) -> None:
    top = 1 if dtype is np.float32 else np.iinfo(dtype).max
    ramp = (np.linspace(0, 1, 4096).reshape(64, 64) * top).astype(dtype)
    transform = NonLinearIntensity(inverted=inverted)
    curves = set()
    for seed in range(20):
        mapped = transform(ramp, np.random.default_rng(seed))
        assert mapped.dtype == dtype
        steps = np.diff(mapped.ravel().astype(np.float64))
        assert (steps <= 1e-6).all() if inverted else (steps >= -1e-6).all()
        assert {mapped.min(), mapped.max()} == {0, top}
        curves.add(mapped.tobytes())
    assert len(curves) == 20


def test_nonlinear_intensity_follows_the_bezier_curve() -> None:
    """de Casteljau's construction, point by point."""
    transform = NonLinearIntensity(inverted=0.0)
    params = transform.draw((16, 16), np.random.default_rng(1))
    a, b, c, d, _ = np.random.default_rng(1).random(5)
    xs, ys = sorted((a, b)), sorted((c, d))
    points = np.array([(0, 0), *zip(xs, ys, strict=True), (1, 1)])
    for t in (0.2, 0.5, 0.9):
        row = points
        while len(row) > 1:
            row = (1 - t) * row[:-1] + t * row[1:]
        index = round(1000 * t)
        np.testing.assert_allclose((params["x"][index], params["y"][index]), row[0])


def test_sizes_are_relative() -> None:
    transform, random = InPainting(), np.random.default_rng(0)
    for _ in range(50):
        blocks = transform.draw((448, 448), random)["blocks"]
        for top, left, bottom, right in blocks:
            assert 20 <= bottom - top <= 140
            assert 20 <= right - left <= 140


def kind(before: np.ndarray, after: np.ndarray) -> str:
    if np.array_equal(before, after):
        return "none"
    if np.array_equal(np.sort(before, axis=None), np.sort(after, axis=None)):
        return "shuffling"
    return "outpainting" if not after[0].any() else "inpainting"


def test_published_mixture() -> None:
    image = numbered(96, 96)
    mixture, random = published_mixture(), np.random.default_rng(0)
    n = 20_000
    seen = [kind(image, mixture(image, random)) for _ in range(n)]
    names = ["inpainting", "outpainting", "shuffling", "none"]
    counts = [seen.count(name) for name in names]
    expected = n * np.array([0.30, 0.05, 0.30, 0.35])
    assert stats.chisquare(counts, expected).pvalue > 1e-4


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


@pytest.mark.parametrize(
    ("distortion", "options"),
    [
        (InPainting, {"count": 0}),
        (InPainting, {"side": (0.5, 0.2)}),
        (OutPainting, {"side": (0.0, 0.2)}),
        (OutPainting, {"margin": 0.5}),
        (InPainting, {"stop": 1.5}),
        (PatchShuffling, {"side": (0.5, 1.2)}),
        (PatchShuffling, {"count": -1}),
        (NonLinearIntensity, {"inverted": 2.0}),
    ],
)
def test_bad_arguments(distortion, options) -> None:
    with pytest.raises(ValueError, match=distortion.__name__):
        distortion(**options)


@pytest.mark.parametrize("options", [(-0.1, 0.5, 0.5), (0.5, 0.5, 0.5), (0, 0, 0)])
def test_bad_mixture(options) -> None:
    with pytest.raises(ValueError, match="OneOf: expected a probability"):
        published_mixture(*options)


class TestPixelShuffling:
    def test_pixels_stay_in_their_blocks(self) -> None:
        """The same permutation for all channels; what lies outside stays."""
        transform = PixelShuffling(count=1, side=(0.25, 0.25))
        image = np.arange(32 * 32, dtype=np.uint16).reshape(32, 32)
        image = np.stack([image, image + 2000], axis=2)
        out = transform(image, np.random.default_rng(0))
        changed = np.argwhere((out != image).any(axis=2))
        low, high = changed.min(axis=0), changed.max(axis=0) + 1
        assert (high - low <= 8).all()
        block = np.s_[low[0] : high[0], low[1] : high[1]]
        assert np.array_equal(np.sort(out[block], None), np.sort(image[block], None))
        assert np.array_equal(out[..., 1], out[..., 0] + 2000)
        assert len(changed) > 32, "most pixels move"

    def test_volumes_by_blocks_of_three_dimensions(self) -> None:
        transform = PixelShuffling(count=1, side=(0.25, 0.25))
        volume = np.arange(16 * 24 * 32, dtype=np.float32).reshape(16, 24, 32)
        out = transform(volume[..., None], np.random.default_rng(0))[..., 0]
        changed = np.argwhere(out != volume)
        spread = changed.max(axis=0) + 1 - changed.min(axis=0)
        assert (spread <= (4, 6, 8)).all()
        assert (spread > (2, 3, 5)).all()
        assert np.array_equal(np.sort(out, None), np.sort(volume, None))

    @pytest.mark.parametrize("sizes", [(20, 30), (10, 12, 14)])
    def test_of_blocks_that_overlap_the_last_counts(self, sizes) -> None:
        """Each position holds a value of the last block that covers it."""
        transform = PixelShuffling()
        random = np.random.default_rng(0)
        lengths = random.integers(1, 6, (40, len(sizes)))
        starts = random.integers(0, np.subtract(sizes, lengths), endpoint=True)
        image = np.arange(np.prod(sizes)).reshape(sizes)
        out = transform.apply(image, starts=starts, lengths=lengths, seed=0)
        owner = np.full(sizes, -1)
        areas = [
            tuple(map(slice, start, start + length))
            for start, length in zip(starts, lengths, strict=True)
        ]
        for number, area in enumerate(areas):
            owner[area] = number
        assert np.array_equal(out[owner < 0], image[owner < 0])
        whole = 0
        for number, area in enumerate(areas):
            seen = out[owner == number]
            assert np.isin(seen, image[area]).all()
            assert len(np.unique(seen)) == len(seen)
            whole += seen.size == image[area].size > 1
        assert whole > 0
        assert (out != image).mean() > 0.2

    def test_many_blocks(self) -> None:
        """As in Models Genesis: no voxel stays where it was, none moves far."""
        transform = PixelShuffling(count=10_000, side=(1 / 64, 6 / 64))
        ramp = np.linspace(0, 1, 64, dtype=np.float32)
        volume = np.tile(ramp, (32, 64, 1))[..., None]
        out = transform(volume, np.random.default_rng(0))[..., 0]
        moved = np.abs(out - ramp) * 63
        assert (moved > 0.5).mean() > 0.3
        assert moved.max() < 6
