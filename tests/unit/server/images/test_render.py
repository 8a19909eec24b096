"""Maps as arrays and pictures."""

import io
import json

import cv2
import numpy as np
import pytest
from PIL import Image

from gradcam_server.domain.requests import Colormap, HeatmapForm, HeatmapFormat, ResizeMode
from gradcam_server.images.geometry import fit
from gradcam_server.images.render import RenderedMap, count_bytes, render

ALL_FORMS = tuple(HeatmapForm(format) for format in HeatmapFormat)


def rendered(signed_map: np.ndarray, *forms: HeatmapForm, gray: int = 128) -> RenderedMap:
    image = np.full((60, 80, 3), gray, np.uint8)
    placement = fit(image, (224, 224), ResizeMode.STRETCH)[1]
    return render(signed_map.astype(np.float32), image, placement, forms)


def picture(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


def left_half_hot() -> np.ndarray:
    heat = np.zeros((6, 8), np.float32)
    heat[:, :4] = 5
    return heat


def test_raw_is_the_map_after_its_relu() -> None:
    """Raw values are not scaled; the range is the one before the ReLU."""
    signed = np.array([[-2.0, 0.5], [3.0, 1.0]])
    result = rendered(signed, HeatmapForm(HeatmapFormat.RAW_FLOAT32))
    (heatmap,) = result.heatmaps
    raw = np.frombuffer(heatmap.data, "<f4").reshape(heatmap.height, heatmap.width)
    np.testing.assert_array_equal(raw, [[0, 0.5], [3, 1]])
    assert (result.raw_min, result.raw_max, result.degenerate) == (-2, 3, False)


def test_image_float_is_divided_by_the_maximum() -> None:
    """At the image's resolution values lie in 0 to 1."""
    (heatmap,) = rendered(left_half_hot(), HeatmapForm(HeatmapFormat.IMAGE_FLOAT32)).heatmaps
    values = np.frombuffer(heatmap.data, "<f4").reshape(60, 80)
    np.testing.assert_allclose(values[:, :30], 1)
    np.testing.assert_allclose(values[:, 50:], 0)


@pytest.mark.parametrize("colormap", list(Colormap))
@pytest.mark.parametrize("format", [HeatmapFormat.OVERLAY_JPEG, HeatmapFormat.OVERLAY_PNG])
def test_hot_is_hot_and_channels_are_not_swapped(colormap: Colormap, format: HeatmapFormat) -> None:
    """Hot is red, not blue."""
    form = HeatmapForm(format, alpha=1.0, colormap=colormap)
    image = picture(rendered(left_half_hot(), form).heatmaps[0].data)
    hot, cold = image[30, 10], image[30, 70]
    match colormap:
        case Colormap.JET | Colormap.TURBO:
            assert hot[0] > hot[2] + 60
            assert cold[2] >= cold[0]
        case Colormap.VIRIDIS | Colormap.INFERNO:
            assert hot.sum() > cold.sum() + 200
            assert hot[0] > hot[2] + 60  # yellow


@pytest.mark.parametrize("colormap", list(Colormap))
def test_pictures_are_exactly_the_map_by_numpy_in_the_colours_of_opencv(colormap: Colormap) -> None:
    """Every value of the map is rounded half to even, and has the colour that OpenCV gives it."""
    signed = np.linspace(0, 1, 300).reshape(20, 15)
    forms = (
        HeatmapForm(HeatmapFormat.IMAGE_FLOAT32),
        HeatmapForm(HeatmapFormat.GRAY_PNG),
        HeatmapForm(HeatmapFormat.OVERLAY_PNG, alpha=1.0, colormap=colormap),
    )
    values, gray, overlay = (heatmap.data for heatmap in rendered(signed, *forms).heatmaps)
    expected = np.rint(np.frombuffer(values, "<f4").reshape(60, 80) * np.float32(255))
    np.testing.assert_array_equal(picture(gray)[..., 0], expected)
    colors = cv2.applyColorMap(expected.astype(np.uint8), getattr(cv2, f"COLORMAP_{colormap.name}"))
    np.testing.assert_array_equal(picture(overlay), colors[..., ::-1])
    assert len(np.unique(expected)) > 200


def test_alpha_weighs_the_colours_over_the_image() -> None:
    """Alpha 0 is the original, 1 the colours alone, 0.5 the mean."""
    overlays = [
        picture(
            rendered(left_half_hot(), HeatmapForm(HeatmapFormat.OVERLAY_PNG, alpha=alpha), gray=200)
            .heatmaps[0]
            .data
        )
        for alpha in (0.0, 0.5, 1.0)
    ]
    assert (overlays[0] == 200).all()
    assert np.abs(overlays[1] - (overlays[0] + overlays[2]) / 2).max() <= 1


def test_gray_png_shows_the_map() -> None:
    """White is hot, black is cold."""
    (heatmap,) = rendered(left_half_hot(), HeatmapForm(HeatmapFormat.GRAY_PNG)).heatmaps
    image = Image.open(io.BytesIO(heatmap.data))
    assert image.mode == "L"
    assert image.size == (80, 60)
    assert (image.getpixel((5, 30)), image.getpixel((75, 30))) == (255, 0)


@pytest.mark.parametrize(
    "signed",
    [np.full((7, 7), -1.0), np.zeros((7, 7)), np.full((7, 7), np.nan), np.full((7, 7), np.inf)],
)
def test_degenerate_maps_are_zero_and_flagged(signed: np.ndarray) -> None:
    """A map without a positive value, or not finite, gives zeros and a flag, never NaN."""
    result = rendered(signed, *ALL_FORMS)
    assert result.degenerate
    arrays = [h for h in result.heatmaps if h.format in ("raw-float32", "image-float32")]
    assert len(arrays) == 2
    for heatmap in arrays:
        assert not np.frombuffer(heatmap.data, "<f4").any()
    json.dumps([result.raw_min, result.raw_max], allow_nan=False)


def test_heatmaps_come_in_the_order_of_the_forms() -> None:
    """Each form is answered, duplicates too, with its true size."""
    forms = (*ALL_FORMS, ALL_FORMS[0])
    result = rendered(left_half_hot(), *forms)
    assert [heatmap.format for heatmap in result.heatmaps] == [form.format for form in forms]
    sizes = [(heatmap.height, heatmap.width) for heatmap in result.heatmaps]
    assert sizes == [(6, 8), (60, 80), (60, 80), (60, 80), (60, 80), (6, 8)]


def test_jpeg_quality_counts() -> None:
    """A lower quality makes a smaller file."""
    sizes = [
        len(
            rendered(
                np.random.default_rng(0).random((30, 40)),
                HeatmapForm(HeatmapFormat.OVERLAY_JPEG, jpeg_quality=quality),
            )
            .heatmaps[0]
            .data
        )
        for quality in (10, 95)
    ]
    assert sizes[0] < sizes[1]


@pytest.mark.parametrize("format", HeatmapFormat)
def test_no_form_takes_more_than_was_counted(format: HeatmapFormat) -> None:
    """Noise compresses worst; the counted bytes bound its forms, except for headers."""
    random = np.random.default_rng(0)
    image = random.integers(0, 256, (600, 800, 3), np.uint8)
    placement = fit(image, (600, 800), ResizeMode.STRETCH)[1]
    noise = random.random((600, 800), np.float32)
    form = HeatmapForm(format, alpha=0.1, jpeg_quality=100)
    (heatmap,) = render(noise, image, placement, [form]).heatmaps
    counted = count_bytes(600 * 800, [form])
    if format is not HeatmapFormat.RAW_FLOAT32:  # which is at the layer's resolution
        assert counted / 4 < len(heatmap.data) <= 1.01 * counted
