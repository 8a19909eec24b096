"""Images to the model's input, and maps back."""

from typing import Any

import cv2
import numpy as np
import pytest
from cykooz_resizer import ImageData
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from gradcam_server.domain.layers import Extent
from gradcam_server.domain.requests import ResizeMode
from gradcam_server.images import geometry
from gradcam_server.images.geometry import LETTERBOX_COLOR, enlarge, fit, shrinkage

INPUT = (224, 224)


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    "size", [(300, 451), (224, 500), (100, 90), (1, 3), (2000, 225), (3001, 1999)]
)
def test_stretching_is_antialiased_bilinear(size: tuple[int, int]) -> None:
    """The input equals that of Pillow's bilinear filter, as in tutorials, up to rounding."""
    image = noise(*size)
    resized = Image.fromarray(image).resize((224, 224), Image.Resampling.BILINEAR)
    difference = fit(image, INPUT, ResizeMode.STRETCH)[0].astype(int) - np.asarray(resized)
    assert np.abs(difference).max() <= 1
    assert abs(difference.mean()) < 0.05


@pytest.mark.parametrize("mode", list(ResizeMode))
@pytest.mark.parametrize(("height", "width"), [(3000, 2000), (1500, 4000), (1, 1 << 20)])
def test_large_images_are_copied_in_small_parts(
    monkeypatch: pytest.MonkeyPatch, mode: ResizeMode, height: int, width: int
) -> None:
    """A copy blocks all other Python threads, so it is short whatever the size of the image."""
    copied: list[int] = []

    def copy(*arguments: Any) -> Any:
        copied.append(len(arguments[3]) if len(arguments) > 3 else 0)
        return ImageData(*arguments)

    monkeypatch.setattr(geometry, "ImageData", copy)
    fit(np.zeros((height, width, 3), np.uint8), INPUT, mode)
    assert max(copied) <= 4 << 20


def test_stretching_agrees_with_tensorflow() -> None:
    """An independent antialiased bilinear resize gives the same input, up to rounding."""
    tf = pytest.importorskip("tensorflow")
    image = noise(300, 451)
    expected = tf.image.resize(image, INPUT, method="bilinear", antialias=True).numpy()
    actual = fit(image, INPUT, ResizeMode.STRETCH)[0]
    assert np.abs(actual - expected).max() <= 1.5


@pytest.mark.parametrize("mode", list(ResizeMode))
@pytest.mark.parametrize(("height", "width"), [(900, 1353), (1200, 1000), (2999, 1502)])
def test_a_reduced_image_lies_where_the_whole_one_does(
    mode: ResizeMode, height: int, width: int
) -> None:
    """The model sees the same picture, and the placement is the original's."""
    smooth = np.asarray(
        Image.fromarray(noise(9, 7)).resize((width, height), Image.Resampling.BICUBIC)
    )
    whole, placement = fit(smooth, INPUT, mode)
    factor = 2 if shrinkage((height, width), INPUT, mode) >= 2 else 1
    half = Image.fromarray(smooth).resize((-(-width // factor), -(-height // factor)))
    fitted, reduced_placement = fit(np.asarray(half), INPUT, mode, (height, width))
    assert reduced_placement == placement
    assert np.abs(fitted.astype(int) - whole).mean() < 1


@pytest.mark.parametrize(
    ("mode", "expected"),
    [(ResizeMode.STRETCH, 2), (ResizeMode.CENTER_CROP, 2), (ResizeMode.LETTERBOX, 4)],
)
def test_shrinkage_is_that_of_the_axis_with_fewer_pixels(mode: ResizeMode, expected: int) -> None:
    """A letterboxed image shrinks by its longer side; in other modes by the shorter side."""
    assert shrinkage((448, 896), INPUT, mode) == expected


def test_an_image_of_the_input_size_is_untouched() -> None:
    """An image of the input's size is not resampled."""
    image = noise(*INPUT)
    for mode in ResizeMode:
        np.testing.assert_array_equal(fit(image, INPUT, mode)[0], image)


@pytest.mark.parametrize(("height", "width"), [(300, 451), (451, 300), (100, 80), (7, 7), (1, 1)])
@pytest.mark.parametrize("map_size", [1, 7, 14])
def test_mapping_back_agrees_with_opencv(height: int, width: int, map_size: int) -> None:
    """A stretched map is enlarged with half-pixel centres, as cv2.INTER_LINEAR does."""
    heatmap = np.random.default_rng(1).random((map_size, map_size), dtype=np.float32)
    placement = fit(noise(height, width), INPUT, ResizeMode.STRETCH)[1]
    expected = cv2.resize(heatmap, (width, height), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_allclose(placement.map_to_image(heatmap), expected, atol=1e-5)


@pytest.mark.parametrize("mode", list(ResizeMode))
@pytest.mark.parametrize(("height", "width"), [(300, 451), (451, 300), (90, 90)])
def test_a_mark_is_mapped_back_to_where_it_was(mode: ResizeMode, height: int, width: int) -> None:
    """Heat found on a mark in the input lies on that mark in the original, in every mode."""
    image = np.zeros((height, width, 3), np.uint8)
    row, column = height // 2 + height // 8, width // 2 - width // 8
    image[row - 4 : row + 5, column - 4 : column + 5] = 255
    fitted, placement = fit(image, INPUT, mode)
    bright = (fitted[..., 0] > 200).astype(np.float32)  # a perfect "explanation"
    back = placement.map_to_image(bright)
    assert back.shape == (height, width)
    rows, columns = np.nonzero(back > 0.5)
    assert abs(rows.mean() - row) < 1.5
    assert abs(columns.mean() - column) < 1.5


def test_centre_crop_is_zero_outside_the_crop() -> None:
    """Pixels that the model did not see are zero."""
    placement = fit(noise(100, 300), INPUT, ResizeMode.CENTER_CROP)[1]
    back = placement.map_to_image(np.ones((7, 7), np.float32))
    np.testing.assert_allclose(back[:, 100:200], 1, rtol=1e-6)
    assert not back[:, :100].any()
    assert not back[:, 200:].any()


def test_letterbox_keeps_the_aspect_ratio_and_fills_the_margins() -> None:
    """The whole image is in the middle; the margins have the mean colour."""
    fitted, placement = fit(np.zeros((100, 200, 3), np.uint8), INPUT, ResizeMode.LETTERBOX)
    assert (fitted[56:168] == 0).all()
    assert (fitted[:56] == LETTERBOX_COLOR).all()
    assert (fitted[168:] == LETTERBOX_COLOR).all()
    margins = np.zeros((224, 224), np.float32)
    margins[:56] = margins[168:] = 1
    assert placement.map_to_image(margins)[2:-2].max() == 0


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 400),
    width=st.integers(1, 400),
    mode=st.sampled_from(ResizeMode),
    map_size=st.integers(1, 14),
)
def test_any_size_fits_and_maps_back(
    height: int, width: int, mode: ResizeMode, map_size: int
) -> None:
    """Interpolation never leaves the map's range, whatever the image's size."""
    fitted, placement = fit(noise(height, width), INPUT, mode)
    assert fitted.shape == (*INPUT, 3)
    heatmap = np.random.default_rng(2).random((map_size, map_size), dtype=np.float32)
    back = placement.map_to_image(heatmap)
    assert back.shape == (height, width)
    assert back.min() >= 0
    assert back.max() <= heatmap.max() * 1.00001


def test_extreme_aspect_ratios_take_memory_of_their_own_size_only() -> None:
    """A letterboxed line of 100,000 pixels does not become a square."""
    placement = fit(noise(1, 100_000), INPUT, ResizeMode.LETTERBOX)[1]
    assert placement.map_to_image(np.ones((7, 7), np.float32)).shape == (1, 100_000)


@pytest.mark.parametrize(
    "extent", [Extent(56, 28, 112, 84), Extent(-56, 0, 336, 224), Extent(28, -28, 84, 112)]
)
def test_a_map_of_a_part_of_the_input_lies_on_that_part(extent: Extent) -> None:
    """A map of a crop, or of more than the input, equals OpenCV's enlargement at its position."""
    heatmap = np.random.default_rng(3).random((7, 7), dtype=np.float32)
    top, left, height, width = map(int, (extent.top, extent.left, extent.height, extent.width))
    canvas = np.zeros((3 * 224, 3 * 224), np.float32)
    canvas[224 + top :, 224 + left :][:height, :width] = cv2.resize(heatmap, (width, height))
    expected = canvas[224:448, 224:448]
    np.testing.assert_allclose(enlarge(heatmap, INPUT, extent), expected, atol=1e-5)
    mirrored = fit(noise(*INPUT), INPUT, ResizeMode.STRETCH)[1].map_to_image(heatmap, extent)
    np.testing.assert_allclose(mirrored, expected, atol=1e-5)


def test_a_crop_of_the_model_is_one_of_the_fitted_image() -> None:
    """The model's own crop is applied to the letterboxed image."""
    placement = fit(noise(100, 200), INPUT, ResizeMode.LETTERBOX)[1]
    back = placement.map_to_image(np.ones((7, 7), np.float32), Extent(56, 0, 56, 224))
    np.testing.assert_allclose(back[:50], 1, rtol=1e-6)  # The image's upper half.
    assert not back[50:].any()


def test_the_whole_input_as_an_extent_changes_nothing() -> None:
    """Without an extent a map covers the whole input."""
    heatmap = np.random.default_rng(3).random((7, 5), dtype=np.float32)
    for mode in ResizeMode:
        placement = fit(noise(90, 120), INPUT, mode)[1]
        whole = placement.map_to_image(heatmap, Extent(0, 0, *INPUT))
        np.testing.assert_array_equal(whole, placement.map_to_image(heatmap))


@pytest.mark.parametrize(
    ("mode", "extent", "expected"),
    [
        (ResizeMode.STRETCH, None, Extent(0, 0, 100, 200)),
        (ResizeMode.CENTER_CROP, None, Extent(0, 50, 100, 100)),
        (ResizeMode.LETTERBOX, None, Extent(-48, 0, 200, 200)),  # 12 rows of margin above
        (ResizeMode.STRETCH, Extent(-5, 10, 60, 25), Extent(-10, 40, 120, 100)),
        (ResizeMode.CENTER_CROP, Extent(-5, 10, 60, 25), Extent(-10, 70, 120, 50)),
    ],
)
def test_a_part_of_the_input_is_found_on_the_image(
    mode: ResizeMode, extent: Extent | None, expected: Extent
) -> None:
    """The rectangle of an image of 100 x 200 pixels that a map over an input of 50 x 50 covers."""
    _, placement = fit(np.zeros((100, 200, 3), np.uint8), (50, 50), mode)
    assert placement.on_image(extent) == expected
