from __future__ import annotations

import albumentations as A
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from lightly_dira.transforms import (
    InPainting,
    NonLinearIntensity,
    OutPainting,
    PatchShuffling,
    PixelShuffling,
)
from lightly_dira.transforms.mixtures import published_mixture

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
    outputs = []
    for _ in range(2):
        transform.set_random_seed(seed)
        outputs.append(transform(image=image)["image"])
    first, second = outputs
    assert np.array_equal(image, before), "the input was modified"
    assert np.array_equal(first, second), "one seed, two results"
    assert first.shape == shape
    assert first.dtype == dtype
    if distortion is PatchShuffling:
        assert np.array_equal(np.sort(first, axis=None), np.sort(image, axis=None))
    else:
        assert set(np.unique(first)) <= {0, *np.unique(image)}
        assert np.array_equal(first[first != 0], image[first != 0])


def rectangles(transform, key: str = "rectangles", n: int = 2000) -> list:
    transform.set_random_seed(0)
    drawn = []
    for _ in range(n):
        transform(image=numbered())
        drawn.append(transform.params[key])
    return drawn


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
    shuffled = transform(image=image)["image"]
    ((t, l_, b, r), (top, left, bottom, right)) = transform.params["pairs"][0]
    assert np.array_equal(shuffled[t:b, l_:r], image[top:bottom, left:right])
    assert np.array_equal(shuffled[top:bottom, left:right], image[t:b, l_:r])
    assert (shuffled != image).sum() == 2 * (b - t) * (r - l_)


def test_crowded_image_gets_fewer_exchanges() -> None:
    transform = PatchShuffling(count=50, side=(0.3, 0.3))
    image = numbered(16, 16)
    shuffled = transform(image=image)["image"]
    assert 0 < len(transform.params["pairs"]) < 50
    assert np.array_equal(np.sort(shuffled, axis=None), np.sort(image, axis=None))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("inverted", [0.0, 1.0])
def test_nonlinear_intensity_is_monotone(dtype, inverted: float) -> None:
    top = 1 if dtype is np.float32 else np.iinfo(dtype).max
    ramp = (np.linspace(0, 1, 4096).reshape(64, 64) * top).astype(dtype)
    transform = NonLinearIntensity(inverted=inverted)
    curves = set()
    for seed in range(20):
        transform.set_random_seed(seed)
        mapped = transform(image=ramp)["image"]
        assert mapped.dtype == dtype
        steps = np.diff(mapped.ravel().astype(np.float64))
        assert (steps <= 1e-6).all() if inverted else (steps >= -1e-6).all()
        assert {mapped.min(), mapped.max()} == {0, top}
        curves.add(mapped.tobytes())
    assert len(curves) == 20


def test_nonlinear_intensity_follows_the_bezier_curve() -> None:
    """de Casteljau's construction, point by point."""
    transform = NonLinearIntensity(inverted=0.0)
    transform.set_random_seed(1)
    params = transform.get_params()
    transform.set_random_seed(1)
    draw = transform.py_random.random
    xs, ys = sorted((draw(), draw())), sorted((draw(), draw()))
    points = np.array([(0, 0), *zip(xs, ys, strict=True), (1, 1)])
    for t in (0.2, 0.5, 0.9):
        row = points
        while len(row) > 1:
            row = (1 - t) * row[:-1] + t * row[1:]
        index = round(1000 * t)
        np.testing.assert_allclose((params["x"][index], params["y"][index]), row[0])


def test_sizes_are_relative() -> None:
    transform = InPainting()
    for _ in range(50):
        transform(image=numbered(448, 448))
        for top, left, bottom, right in transform.params["rectangles"]:
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
    mixture = published_mixture()
    mixture.set_random_seed(0)
    n = 20_000
    seen = [kind(image, mixture(image=image)["image"]) for _ in range(n)]
    names = ["inpainting", "outpainting", "shuffling", "none"]
    counts = [seen.count(name) for name in names]
    expected = n * np.array([0.30, 0.05, 0.30, 0.35])
    assert stats.chisquare(counts, expected).pvalue > 1e-4


@pytest.mark.parametrize(
    "distortion", [*DISTORTIONS, published_mixture, NonLinearIntensity]
)
def test_serialisation(distortion) -> None:
    transform = distortion()
    twin = A.from_dict(A.to_dict(transform))
    image = numbered() / numbered().max()
    results = []
    for each in (transform, twin):
        each.set_random_seed(5)
        results.append([each(image=image)["image"] for _ in range(5)])
    assert np.array_equal(*results)


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
    with pytest.raises(ValueError, match="published_mixture"):
        published_mixture(*options)


class TestPixelShuffling:
    def test_pixels_stay_in_their_blocks(self) -> None:
        """The same permutation for all channels; what lies outside stays."""
        transform = PixelShuffling(count=1, side=(0.25, 0.25))
        transform.set_random_seed(0)
        image = np.arange(32 * 32, dtype=np.uint16).reshape(32, 32)
        image = np.stack([image, image + 2000], axis=2)
        out = transform(image=image)["image"]
        changed = np.argwhere((out != image).any(axis=2))
        low, high = changed.min(axis=0), changed.max(axis=0) + 1
        assert (high - low <= 8).all()
        block = np.s_[low[0] : high[0], low[1] : high[1]]
        assert np.array_equal(np.sort(out[block], None), np.sort(image[block], None))
        assert np.array_equal(out[..., 1], out[..., 0] + 2000)
        assert len(changed) > 32, "most pixels move"

    def test_volumes_by_blocks_of_three_dimensions(self) -> None:
        transform = PixelShuffling(count=1, side=(0.25, 0.25))
        transform.set_random_seed(0)
        volume = np.arange(16 * 24 * 32, dtype=np.float32).reshape(16, 24, 32)
        out = transform(volume=volume)["volume"]
        changed = np.argwhere(out != volume)
        spread = changed.max(axis=0) + 1 - changed.min(axis=0)
        assert (spread <= (4, 6, 8)).all()
        assert (spread > (2, 3, 5)).all()
        assert np.array_equal(np.sort(out, None), np.sort(volume, None))

    @pytest.mark.parametrize("sizes", [(20, 30), (10, 12, 14)])
    def test_of_blocks_that_overlap_the_last_counts(self, sizes) -> None:
        """Each position holds a value of the last block that covers it."""
        transform = PixelShuffling()
        transform.set_random_seed(0)
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
        transform.set_random_seed(0)
        ramp = np.linspace(0, 1, 64, dtype=np.float32)
        out = transform(volume=np.tile(ramp, (32, 64, 1)))["volume"]
        moved = np.abs(out - ramp) * 63
        assert (moved > 0.5).mean() > 0.3
        assert moved.max() < 6
