"""Renders low-resolution maps as arrays, grey images and overlays."""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from gradcam_server.domain.layers import Extent
from gradcam_server.domain.requests import Colormap, Heatmap, HeatmapForm, HeatmapFormat
from gradcam_server.images.geometry import Placement

_COLORMAPS = {
    Colormap.JET: cv2.COLORMAP_JET,
    Colormap.TURBO: cv2.COLORMAP_TURBO,
    Colormap.VIRIDIS: cv2.COLORMAP_VIRIDIS,
    Colormap.INFERNO: cv2.COLORMAP_INFERNO,
}
_NO_MAP = np.zeros((0, 0), np.float32)
_AT_LAYER = {HeatmapFormat.RAW_FLOAT32}
# Upper bound on an encoded image, which noise reaches, and the size of an array.
_BYTES_PER_PIXEL = {
    HeatmapFormat.RAW_FLOAT32: 0,
    HeatmapFormat.IMAGE_FLOAT32: 4,
    HeatmapFormat.GRAY_PNG: 1,
    HeatmapFormat.OVERLAY_JPEG: 3,
    HeatmapFormat.OVERLAY_PNG: 3,
}


class RenderedMap(NamedTuple):
    """The heat maps of one explanation, and the range of the map, which scaling removes."""

    raw_min: float
    raw_max: float
    degenerate: bool
    heatmaps: tuple[Heatmap, ...]


def count_bytes(pixels: int, forms: Sequence[HeatmapForm]) -> int:
    """Returns an upper bound on the bytes of all forms of a map, for an image of so many pixels.

    Maps at the resolution of a layer are small and not counted.
    """
    return pixels * sum(_BYTES_PER_PIXEL[form.format] for form in forms)


def needs_image(forms: Sequence[HeatmapForm]) -> bool:
    """Returns whether any form is as large as the image."""
    return any(form.format not in _AT_LAYER for form in forms)


def render(
    signed_map: NDArray[np.float32],
    image: NDArray[np.uint8],
    placement: Placement,
    forms: Sequence[HeatmapForm],
    extent: Extent | None = None,
) -> RenderedMap:
    """Renders one explanation in every form.

    A map without a positive value, or with a value that is not finite, is degenerate: its heat
    maps are all zero, never NaN.

    Args:
        signed_map: float32, shape (h, w), before the method's final ReLU.
        image: The decoded original, uint8 RGB, shape (H, W, 3); unused unless ``needs_image``.
        placement: The position of the image on the model's input.
        forms: The forms of the heat map.
        extent: The part of the model's input that the map covers; None is the whole input.

    Returns:
        The range of ``signed_map``, and one heat map for each form.
    """
    raw_min, raw_max = float(signed_map.min()), float(signed_map.max())
    finite = math.isfinite(raw_min) and math.isfinite(raw_max)  # NaN if a value is NaN
    degenerate = not (finite and raw_max > 0)
    if not finite:
        raw_min, raw_max = (float(np.nan_to_num(np.float32(edge))) for edge in (raw_min, raw_max))
    raw = np.zeros_like(signed_map) if degenerate else np.maximum(signed_map, np.float32(0))
    on_image = _NO_MAP
    if needs_image(forms):
        scale = np.float32(1) if degenerate else np.float32(raw_max)
        on_image = placement.map_to_image((raw / scale).astype(np.float32), extent)
    return RenderedMap(
        raw_min, raw_max, degenerate, tuple(_heatmap(form, raw, on_image, image) for form in forms)
    )


def _heatmap(
    form: HeatmapForm,
    raw: NDArray[np.float32],
    on_image: NDArray[np.float32],
    image: NDArray[np.uint8],
) -> Heatmap:
    match form.format:
        case HeatmapFormat.RAW_FLOAT32:
            height, width = raw.shape
            return Heatmap(form.format, height, width, raw.astype("<f4", copy=False).tobytes())
        case HeatmapFormat.IMAGE_FLOAT32:
            data = on_image.astype("<f4").tobytes()
        case HeatmapFormat.GRAY_PNG:
            data = _encode(".png", _to_uint8(on_image))
        case HeatmapFormat.OVERLAY_JPEG:
            quality = [cv2.IMWRITE_JPEG_QUALITY, form.jpeg_quality]
            data = _encode(".jpg", _overlay_bgr(on_image, image, form), quality)
        case HeatmapFormat.OVERLAY_PNG:
            data = _encode(".png", _overlay_bgr(on_image, image, form))
    height, width = on_image.shape
    return Heatmap(form.format, height, width, data)


def _overlay_bgr(
    on_image: NDArray[np.float32], image: NDArray[np.uint8], form: HeatmapForm
) -> NDArray[np.uint8]:
    # OpenCV's colour maps and encoders are BGR: hot is red only if the image is BGR too.
    values = _to_uint8(on_image)
    colors = cv2.merge([cv2.LUT(values, table) for table in _color_tables(form.colormap)])
    original = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    blended = cv2.addWeighted(original, 1 - form.alpha, colors, form.alpha, 0)
    return blended.astype(np.uint8, copy=False)


@functools.cache
def _color_tables(colormap: Colormap) -> tuple[NDArray[np.uint8], ...]:
    """Returns the blue, the green and the red of each value.

    A table for each channel is twice as quick as ``cv2.applyColorMap``, which first makes three
    equal channels.
    """
    values = np.arange(256, dtype=np.uint8)[np.newaxis]
    colors = cv2.applyColorMap(values, _COLORMAPS[colormap])
    return tuple(np.ascontiguousarray(colors[0, :, channel], np.uint8) for channel in range(3))


def _to_uint8(on_image: NDArray[np.float32]) -> NDArray[np.uint8]:
    scaled = on_image * np.float32(255)
    # It rounds as NumPy does, half to even, in one pass.
    return cv2.convertScaleAbs(scaled).astype(np.uint8, copy=False)


def _encode(extension: str, image: NDArray[np.uint8], parameters: Sequence[int] = ()) -> bytes:
    encoded, data = cv2.imencode(extension, image, parameters)
    if not encoded:
        raise RuntimeError(f"OpenCV could not encode {image.shape} as {extension}")
    return data.tobytes()
