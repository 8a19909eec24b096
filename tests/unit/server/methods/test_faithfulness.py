"""Metrics of faithfulness, on models whose answers are computed by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from gradcam_server.methods.faithfulness import (
    auc,
    average_drop,
    blurred,
    deletion_images,
    energy_inside,
    explanation_map,
    hottest_first,
    increase_in_confidence,
    insertion_images,
    is_degenerate,
    mean_color,
    points_at,
)

Pixels = NDArray[np.uint8]

heatmaps = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12),
    elements=st.integers(0, 8).map(lambda value: value / 8),  # many ties
)


def black(image: Pixels) -> Pixels:
    return np.zeros_like(image)


def white(height: int, width: int) -> Pixels:
    return np.full((height, width, 3), 255, np.uint8)


def noise(height: int, width: int) -> Pixels:
    return np.random.default_rng(0).integers(1, 256, (height, width, 3), dtype=np.uint8)


def share(image: Pixels, weights: NDArray[np.float32]) -> float:
    """A linear model: the share of the weights whose pixels are white."""
    return float((image[..., 0] / 255 * weights).sum() / weights.sum())


def areas(heatmap: NDArray[np.float32], weights: NDArray[np.float32], steps: int) -> list[float]:
    image = white(*heatmap.shape)
    return [
        auc([share(one, weights) for one in images(image, heatmap, steps, black)])
        for images in (deletion_images, insertion_images)
    ]


def test_a_linear_model_gives_the_area_of_its_weights() -> None:
    """Four pixels of weights 4, 3, 2, 1 fall as 1, .6, .3, .1, 0: an area of 0.375."""
    weights = np.array([[1, 4], [2, 3]], np.float32)
    assert areas(weights, weights, 4) == pytest.approx([0.375, 0.625])


def test_a_perfect_map_beats_the_inverted_one() -> None:
    """Deleting by the true weights falls faster, inserting by them rises faster."""
    weights = np.random.default_rng(0).random((9, 13)).astype(np.float32)
    deletion, insertion = areas(weights, weights, 10)
    worst_deletion, worst_insertion = areas(1 - weights, weights, 10)
    assert deletion < 0.4 < 0.6 < worst_deletion
    assert worst_insertion < 0.4 < 0.6 < insertion


@settings(deadline=None)
@given(heatmaps, st.integers(1, 30))
def test_in_a_linear_model_what_is_deleted_is_what_is_inserted(
    heatmap: NDArray[np.float32], steps: int
) -> None:
    """The curves add up to 1 at each step, whatever the map, its size and its ties."""
    deletion, insertion = areas(heatmap, np.ones_like(heatmap), steps)
    assert deletion + insertion == pytest.approx(1)


@settings(deadline=None)
@given(heatmaps, st.integers(1, 30))
def test_the_hottest_pixels_go_first_in_equal_portions(
    heatmap: NDArray[np.float32], steps: int
) -> None:
    """No remaining pixel is hotter than a removed pixel; portions differ by at most one pixel."""
    image = noise(*heatmap.shape)
    images = list(deletion_images(image, heatmap, steps, black))
    assert len(images) == steps + 1
    np.testing.assert_array_equal(images[0], image)
    assert not images[-1].any()
    removed = [(one == 0).all(axis=-1) for one in images]
    for gone in removed:
        if gone.any() and not gone.all():
            assert heatmap[gone].min() >= heatmap[~gone].max()
    portions = np.diff([gone.sum() for gone in removed])
    assert np.abs(portions - heatmap.size / steps).max() <= 1


@settings(deadline=None)
@given(heatmaps, st.floats(0, 1))
def test_a_constant_predictor_has_its_constant_as_area(
    heatmap: NDArray[np.float32], constant: float
) -> None:
    """The area is normalised to a width of 1."""
    images = insertion_images(noise(*heatmap.shape), heatmap, 7)
    assert auc([constant for _ in images]) == pytest.approx(constant)


def test_equal_heat_goes_in_row_major_order() -> None:
    """Ties and degenerate maps give the same curve every time."""
    tied = np.array([[0.5, 1, 0.5], [1, 0, 0.5]], np.float32)
    assert hottest_first(tied).tolist() == [1, 3, 0, 2, 5, 4]
    assert hottest_first(np.zeros((2, 2), np.float32)).tolist() == [0, 1, 2, 3]


def test_the_images_are_the_callers_own() -> None:
    """A caller may keep or change the yielded arrays; its own image does not change."""
    image = noise(4, 4)
    before = image.copy()
    for one in deletion_images(image, np.eye(4, dtype=np.float32), 4):
        one[:] = 0
    np.testing.assert_array_equal(image, before)
    kept = list(deletion_images(image, np.eye(4, dtype=np.float32), 2, black))
    assert [int((one == 0).all(axis=-1).sum()) for one in kept] == [0, 8, 16]


def test_baselines_keep_size_and_brightness() -> None:
    """The mean colour is one colour; blurring spreads a point and keeps flat images."""
    image = noise(40, 60)
    assert (mean_color(image) == np.rint(image.mean(axis=(0, 1)))).all()
    np.testing.assert_array_equal(blurred(white(20, 30)), white(20, 30))
    soft = blurred(image)
    assert soft.shape == image.shape
    assert soft.std() < image.std() / 5
    assert soft.mean() == pytest.approx(image.mean(), rel=0.02)
    assert blurred(noise(1, 1)).shape == (1, 1, 3)


def test_an_explanation_map_is_the_image_times_the_heat() -> None:
    """The hottest pixel stays, other pixels dim in proportion, cold pixels are black."""
    image = np.full((1, 4, 3), 200, np.uint8)
    heat = np.array([[2, 1, 0, -1]], np.float32)
    assert explanation_map(image, heat)[0, :, 0].tolist() == [200, 100, 0, 0]
    assert not explanation_map(image, np.zeros((1, 4), np.float32)).any()


def test_average_drop_and_increase_by_hand() -> None:
    """A drop is relative to the full image; a rise counts as a drop of 0."""
    full, explained = [0.8, 0.5, 0.4, 0.0], [0.4, 0.6, 0.4, 0.2]
    assert average_drop(full, explained) == pytest.approx((50 + 0 + 0 + 0) / 4)
    assert increase_in_confidence(full, explained) == 50
    assert average_drop(0.5, 0.1) == pytest.approx(80)
    assert increase_in_confidence(0.5, 0.1) == 0


def test_mask_metrics_by_hand() -> None:
    """The hottest pixel decides the pointing game; the energy is a share of all heat."""
    heat = np.array([[0.1, 0.6], [0.2, 0.1]], np.float32)
    column = np.array([[False, True], [False, True]])
    assert points_at(heat, column)
    assert not points_at(heat, ~column)
    assert energy_inside(heat, column) == pytest.approx(0.7)
    assert energy_inside(heat, np.zeros_like(column)) == 0


@given(heatmaps, st.data())
def test_energy_inside_and_outside_is_all(
    heatmap: NDArray[np.float32], data: st.DataObject
) -> None:
    """A mask and its complement share all heat; a degenerate map has no heat."""
    mask = data.draw(hnp.arrays(np.bool_, heatmap.shape))
    total = energy_inside(heatmap, mask) + energy_inside(heatmap, ~mask)
    assert total == pytest.approx(0 if is_degenerate(heatmap) else 1)


def test_a_degenerate_map_hits_nothing() -> None:
    """A degenerate map hits no mask, wherever its zeros are."""
    heat = np.zeros((2, 2), np.float32)
    everywhere = np.ones((2, 2), np.bool_)
    assert is_degenerate(heat)
    assert not points_at(heat, everywhere)
    assert energy_inside(heat, everywhere) == 0


def test_what_cannot_be_measured_is_refused() -> None:
    """Different shapes, values that are not finite, and curves of one point are refused."""
    image, heat = noise(3, 4), np.ones((3, 4), np.float32)
    with pytest.raises(ValueError, match=r"heat map is \(4, 3\) for pixels of \(3, 4\)"):
        list(deletion_images(image, heat.T))
    with pytest.raises(ValueError, match="steps must be 1 or more"):
        list(deletion_images(image, heat, 0))
    with pytest.raises(ValueError, match="not finite"):
        explanation_map(image, heat * np.float32(np.nan))
    with pytest.raises(ValueError, match="two points or more"):
        auc([0.5])
