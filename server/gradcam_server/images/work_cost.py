"""Estimates of the CPU seconds of decoding and rendering.

They are rough, because machines differ in speed: they tell long work from short work, and
``fair_slots`` charges the measured time afterwards.
"""

from collections.abc import Sequence

from gradcam_server.domain.requests import HeatmapForm, RawImage
from gradcam_server.images.header import peek_size
from gradcam_server.images.render import count_bytes

_S_PER_PIXEL = 10e-9
_S_PER_FILE_BYTE = 20e-9
_S_PER_RENDERED_BYTE = 10e-9
_S_PER_HEADER_BYTE = 1e-9
_MIN_S = 0.5e-3
# For a file whose beginning does not hold its size.
_UNKNOWN_S = 0.5


def header_s(image: bytes | RawImage) -> float:
    """Estimates the CPU seconds of reading the size of an image."""
    return _MIN_S if isinstance(image, RawImage) else _MIN_S + len(image) * _S_PER_HEADER_BYTE


def decoding_s(image: bytes | RawImage) -> float:
    """Estimates the CPU seconds of decoding and resizing an image."""
    if isinstance(image, RawImage):
        return _MIN_S + abs(image.height * image.width) * _S_PER_PIXEL
    size = peek_size(image)
    if size is None:
        return _UNKNOWN_S
    return _MIN_S + abs(size[0] * size[1]) * _S_PER_PIXEL + len(image) * _S_PER_FILE_BYTE


def rendering_s(pixels: int, forms: Sequence[HeatmapForm], map_count: int) -> float:
    """Estimates the CPU seconds of rendering maps.

    Args:
        pixels: Number of pixels of the image.
        forms: The forms of each map.
        map_count: Number of maps.
    """
    return _MIN_S + map_count * count_bytes(pixels, forms) * _S_PER_RENDERED_BYTE
