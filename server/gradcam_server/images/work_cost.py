"""How many CPU seconds decoding and rendering are expected to take, before any of it is done.

The figures are rough, as a machine's speed is: they tell long work from short work, and what is
measured afterwards counts (``fair_slots``).
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
# Of a file that does not say its size at its beginning.
_UNKNOWN_S = 0.5


def header_s(image: bytes | RawImage) -> float:
    """Returns the CPU seconds that it should take to read the size of an image."""
    return _MIN_S if isinstance(image, RawImage) else _MIN_S + len(image) * _S_PER_HEADER_BYTE


def decoding_s(image: bytes | RawImage) -> float:
    """Returns the CPU seconds that it should take to decode and resize an image."""
    if isinstance(image, RawImage):
        return _MIN_S + abs(image.height * image.width) * _S_PER_PIXEL
    size = peek_size(image)
    if size is None:
        return _UNKNOWN_S
    return _MIN_S + abs(size[0] * size[1]) * _S_PER_PIXEL + len(image) * _S_PER_FILE_BYTE


def rendering_s(pixels: int, forms: Sequence[HeatmapForm], map_count: int) -> float:
    """Returns the CPU seconds that it should take to render maps.

    Args:
        pixels: Of the image.
        forms: The wanted forms of each map.
        map_count: Maps.
    """
    return _MIN_S + map_count * count_bytes(pixels, forms) * _S_PER_RENDERED_BYTE
