"""Transforms of images, by values worked out by hand, and what random ones may and may not do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import windlass as wl
from windlass_proto.errors import UsageError

T = wl.data.transforms
untyped: Any = T
GREY = np.arange(12, dtype=np.uint8).reshape(3, 4)
COLOUR = np.arange(36, dtype=np.uint8).reshape(3, 4, 3)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_to_tensor_puts_channels_first_and_255_at_one() -> None:
    tensor = T.ToTensor()(np.array([[[0, 51, 255]]], np.uint8))
    assert tensor.shape == (3, 1, 1)
    assert tensor.dtype == np.float32
    assert tensor.flags.c_contiguous
    assert tensor[:, 0, 0] == pytest.approx([0.0, 0.2, 1.0])
    assert T.ToTensor()(GREY).shape == (1, 3, 4)


def test_normalize_and_cast() -> None:
    tensor = np.ones((2, 1, 3), np.float32)
    assert T.Normalize((1.0, 0.0), (1.0, 0.5))(tensor)[:, 0, 0].tolist() == [0.0, 2.0]
    assert T.Normalize(0.5, 0.25)(tensor).dtype == np.float32
    assert T.Cast("float64")(GREY).dtype == np.float64


def test_the_centre_is_cut_out() -> None:
    assert T.CenterCrop((1, 2))(GREY).tolist() == [[5, 6]]
    assert np.array_equal(T.CenterCrop(3)(COLOUR), COLOUR[:, :3])


def test_nearest_takes_the_pixel_under_the_centre() -> None:
    # centres of 2 of 4 columns are at 1.0 and 3.0; of 6 of 3 rows at 0.25, 0.75, 1.25, ...
    assert T.Resize((3, 2), "nearest")(GREY).tolist() == [[1, 3], [5, 7], [9, 11]]
    assert T.Resize((6, 4), "nearest")(GREY)[:, 0].tolist() == [0, 0, 4, 4, 8, 8]


def test_bilinear_weighs_the_pixels_around_the_centre() -> None:
    line = np.array([[0.0, 4.0]], np.float32)
    # centres at 0.25, 0.75, 1.25, 1.75 of pixels with centres at 0.5 and 1.5
    assert T.Resize((1, 4))(line).tolist() == [[0.0, 1.0, 3.0, 4.0]]
    assert T.Resize((2, 1))(line).tolist() == [[2.0], [2.0]]
    assert T.Resize((1, 4))(line.astype(np.uint8)).tolist() == [[0, 1, 3, 4]]
    assert T.Resize((6, 8))(COLOUR).shape == (6, 8, 3)
    assert T.Resize(6, keep_ratio=True)(COLOUR).shape == (6, 8, 3)


@pytest.mark.parametrize("method", ["nearest", "bilinear"])
@pytest.mark.parametrize("size", [(1, 1), (2, 7), (9, 3)])
def test_resizing_keeps_a_constant_and_never_leaves_the_range(method: Any, size: tuple[int, int]) -> None:
    assert (T.Resize(size, method)(np.full((5, 4), 255, np.uint8)) == 255).all()
    noise = rng().integers(0, 256, (5, 4, 3)).astype(np.uint8)
    found = T.Resize(size, method)(noise)
    assert found.dtype == np.uint8
    assert noise.min() <= found.min() <= found.max() <= noise.max()


def test_a_random_crop_is_any_part_of_the_padded_image() -> None:
    found = {T.RandomCrop(2).randomly(GREY, rng(seed)).tobytes() for seed in range(200)}
    assert found == {GREY[t : t + 2, s : s + 2].tobytes() for t in range(2) for s in range(3)}
    padded = [T.RandomCrop(4, padding=1, fill=9).randomly(np.zeros((2, 2)), rng(seed)) for seed in range(3)]
    assert all(one.sum() == 9 * 12 for one in padded)
    assert T.RandomCrop((4, 3), padding=1).randomly(COLOUR, rng()).shape == (4, 3, 3)


@pytest.mark.parametrize(
    ("flip", "flipped"), [(T.RandomFlipLeftRight, GREY[:, ::-1]), (T.RandomFlipTopBottom, GREY[::-1])]
)
def test_a_flip_comes_as_often_as_its_probability(flip: Any, flipped: np.ndarray) -> None:
    draws = rng(1)
    mirrored = sum(bool((flip(0.25).randomly(GREY, draws) == flipped).all()) for _ in range(2000))
    assert mirrored / 2000 == pytest.approx(0.25, abs=0.04)
    assert np.array_equal(flip(1.0).randomly(GREY, draws), flipped)
    assert np.array_equal(flip(0.0).randomly(GREY, draws), GREY)


def test_a_resized_crop_keeps_to_its_area_and_proportions() -> None:
    rows, columns = np.mgrid[0:60, 0:80]
    image = np.stack([rows, columns], 2).astype(np.float32)
    crop = T.RandomResizedCrop((5, 7), scale=(0.2, 0.6), ratio=(0.5, 2.0), method="nearest")
    for seed in range(50):
        found = crop.randomly(image, rng(seed))
        assert found.shape == (5, 7, 2)
        # the outermost samples lie half a step inside the part
        high, wide = (found[..., axis].max() - found[..., axis].min() for axis in (0, 1))
        area = high * 5 / 4 * wide * 7 / 6 / 4800
        assert 0.12 < area < 0.72
        assert 0.4 < (wide * 7 / 6) / (high * 5 / 4) < 2.5
    whole = T.RandomResizedCrop(4, scale=(1.0, 1.0), ratio=(3.0, 3.0)).randomly(image, rng())
    assert whole.shape == (4, 4, 2), "where no draw fits, the middle is taken"


def test_brightness_and_contrast_stay_in_their_amounts_and_in_range() -> None:
    half = np.full((2, 2), 100, np.uint8)
    bright = [T.RandomBrightness(0.2).randomly(half, rng(seed))[0, 0] for seed in range(200)]
    assert 80 <= min(bright) < 85
    assert 115 < max(bright) <= 120
    assert T.RandomBrightness(1.0).randomly(np.full((1, 1), 250, np.uint8), rng(5)).dtype == np.uint8
    two = np.array([[100, 140]], np.uint8)
    contrasts = [T.RandomContrast(0.5).randomly(two, rng(seed)) for seed in range(200)]
    assert all(int(one.astype(int).sum()) in (239, 240, 241) for one in contrasts)
    assert all(19 <= int(one[0, 1]) - int(one[0, 0]) <= 61 for one in contrasts)
    assert T.RandomBrightness(1.0).randomly(np.full(999, 255, np.uint8), rng(1)).max() <= 255


RANDOM = [
    T.RandomCrop(2, padding=2),
    T.RandomResizedCrop(2),
    T.RandomFlipLeftRight(),
    T.RandomFlipTopBottom(),
    T.RandomBrightness(0.3),
    T.RandomContrast(0.3),
]


@pytest.mark.parametrize("transform", RANDOM, ids=lambda t: type(t).__name__)
def test_a_random_transform_takes_its_chance_from_its_generator_and_leaves_the_image(transform: Any) -> None:
    image = COLOUR.copy()
    found = [transform.randomly(image, rng(3)) for _ in range(2)]
    assert np.array_equal(found[0], found[1])
    assert np.array_equal(image, COLOUR)
    assert found[0].dtype == np.uint8
    assert isinstance(transform, T.RandomTransform)


def test_a_chain_runs_in_order_and_is_random_if_a_link_is() -> None:
    plain = T.Compose(T.CenterCrop(2), T.ToTensor(), T.Normalize(0.5, 0.5))
    assert plain(COLOUR).shape == (3, 2, 2)
    chain = T.Compose(T.RandomCrop(2), T.Compose(T.RandomFlipLeftRight(), T.ToTensor()))
    draws = rng(4)
    cut = T.RandomCrop(2).randomly(COLOUR, draws)
    by_hand = T.ToTensor()(T.RandomFlipLeftRight().randomly(cut, draws))
    assert np.array_equal(chain.randomly(COLOUR, rng(4)), by_hand)
    with pytest.raises(UsageError, match="needs a generator"):
        chain(COLOUR)


@pytest.mark.parametrize(
    ("act", "said"),
    [
        (lambda: T.ToTensor()(GREY.astype(np.float32)), "dtype=float32"),
        (lambda: T.ToTensor()(np.zeros(3, np.uint8)), r"shape=\(3,\)"),
        (lambda: T.Normalize((0.0, 0.0), 1.0)(np.zeros((3, 2, 2))), "mean=2"),
        (lambda: T.Normalize(0.0, 0.0), "std above 0"),
        (lambda: T.CenterCrop(5)(GREY), "larger than the image"),
        (lambda: T.RandomCrop(5).randomly(GREY, rng()), r"size=\(5, 5\), image=\(3, 4\)"),
        (lambda: T.RandomCrop(0), "size=0"),
        (lambda: untyped.Resize(3, "cubic"), "method=cubic"),
        (lambda: T.Resize((2, 3), keep_ratio=True), "shorter side"),
        (lambda: T.RandomFlipLeftRight(1.5), "given=1.5"),
        (lambda: T.RandomResizedCrop(3, scale=(0.0, 1.0)), "low=0.0"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(act: Callable[[], Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        act()
