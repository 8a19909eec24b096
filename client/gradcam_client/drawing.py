"""Draws heat maps over images with NumPy, as the server draws its overlays.

Reading image files and writing JPEG files takes Pillow (the extra ``pictures``); arrays are drawn,
and PNG files written, without it.
"""

import importlib
import io
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradcam_client.colormaps import table
from gradcam_client.extents import Extent
from gradcam_client.file_types import media_type
from gradcam_client.html_view import data_uri
from gradcam_client.image_files import read_image_file
from gradcam_client.image_urls import ImageUrl
from gradcam_client.requests import ImageInput

_INSTALL = "pip install 'gradcam-server[pictures]'"
_JPEG_QUALITY = 90
# The longest side of pictures in notebooks, in pixels; files that cannot be reduced are larger.
_SCREEN_SIDE = 480
_MAX_EMBEDDED_BYTES = 2**20


def enlarge(
    heatmap: NDArray[np.float32], extent: Extent, height: int, width: int
) -> NDArray[np.float32]:
    """Places a heat map on an image: bilinear, with half-pixel centres, zero outside of the map.

    Args:
        heatmap: float32 (h, w).
        extent: The part of the image that the map covers, in pixels.
        height: The image's height, in pixels.
        width: The image's width, in pixels.

    Returns:
        float32 (height, width).
    """
    rows = _weights(height, extent.top, extent.height, heatmap.shape[0])
    columns = _weights(width, extent.left, extent.width, heatmap.shape[1])
    # In the order that takes the fewest operations.
    return np.asarray(np.linalg.multi_dot([rows, heatmap, columns.T]), np.float32)


def _weights(size: int, start: float, length: float, count: int) -> NDArray[np.float32]:
    """Returns the weights of ``count`` cells at each of ``size`` pixels, shape (size, count)."""
    share = (np.arange(size) + 0.5 - start) / length
    position = np.clip(share * count - 0.5, 0, count - 1)
    distance = np.abs(position[:, None] - np.arange(count))
    inside = (share >= 0) & (share <= 1)
    return (np.maximum(1 - distance, 0) * inside[:, None]).astype(np.float32)


def colored(on_image: NDArray[np.float32], colormap: str) -> NDArray[np.uint8]:
    """Returns the colours of a map of values from 0 to 1: uint8 RGB (height, width, 3)."""
    return table(colormap)[np.rint(on_image * np.float32(255)).astype(np.uint8)]


def blended(image: NDArray[np.uint8], colors: NDArray[np.uint8], alpha: float) -> NDArray[np.uint8]:
    """Returns ``alpha`` of the colours over an image of the same shape: uint8 (H, W, 3)."""
    return np.rint(image * np.float32(1 - alpha) + colors * np.float32(alpha)).astype(np.uint8)


def read_file_of(image: ImageInput) -> bytes:
    """Returns the file of an image as it was sent: of a path, a link, or the bytes themselves.

    Raises:
        OSError: It cannot be read.
        TypeError: The image is an array.
    """
    if isinstance(image, np.ndarray):
        raise TypeError("an array has no file")
    if isinstance(image, bytes):
        return image
    return image.read_bytes() if isinstance(image, ImageUrl) else read_image_file(image)


def pixels_of(image: ImageInput) -> NDArray[np.uint8]:
    """Returns the pixels of an image after EXIF orientation: uint8 RGB (height, width, 3).

    Raises:
        ImportError: The image is a file, and Pillow is not installed.
        OSError: The file cannot be read.
    """
    if isinstance(image, np.ndarray):
        return image
    pillow = _pillow("an image file is read", "PIL.Image", "PIL.ImageOps")
    with pillow.Image.open(io.BytesIO(read_file_of(image))) as opened:
        return np.asarray(pillow.ImageOps.exif_transpose(opened).convert("RGB"))


def screen_scale(height: int, width: int) -> float:
    """Returns by how much an image is reduced in a notebook: the size there over its own."""
    return min(1.0, _SCREEN_SIDE / max(height, width, 1))


def picture_uri(image: ImageInput | None) -> str | None:
    """Returns an image as a data: URI for a notebook, reduced if possible; None if it cannot be."""
    try:
        if image is None:
            return None
        if isinstance(image, np.ndarray):
            step = -(-max(image.shape[:2]) // _SCREEN_SIDE)
            return data_uri(png(np.ascontiguousarray(image[::step, ::step])))
        data = read_file_of(image)
        try:
            return data_uri(_reduced(data))
        except ImportError:
            # A browser reads the file itself, and turns it as its EXIF orientation says.
            is_shown = media_type(data) is not None and len(data) <= _MAX_EMBEDDED_BYTES
            return data_uri(data) if is_shown else None
    except (OSError, ValueError):
        return None


def _reduced(data: bytes) -> bytes:
    pillow = _pillow("an image is reduced", "PIL.Image", "PIL.ImageOps")
    with pillow.Image.open(io.BytesIO(data)) as opened:
        upright = pillow.ImageOps.exif_transpose(opened).convert("RGB")
        upright.thumbnail((_SCREEN_SIDE, _SCREEN_SIDE))
        return jpeg(np.asarray(upright))


def write_image(pixels: NDArray[np.uint8], path: str | os.PathLike[str]) -> None:
    """Writes a .png, .jpg or .jpeg file.

    Raises:
        ImportError: The file is a JPEG, and Pillow is not installed.
        OSError: The file cannot be written.
    """
    path = Path(path)
    path.write_bytes(png(pixels) if path.suffix.lower() == ".png" else jpeg(pixels))


def jpeg(pixels: NDArray[np.uint8]) -> bytes:
    """Returns a JPEG file of uint8 RGB pixels (height, width, 3).

    Raises:
        ImportError: Pillow is not installed.
    """
    pillow = _pillow("a JPEG file is written (a .png file is not)", "PIL.Image")
    file = io.BytesIO()
    pillow.Image.fromarray(pixels).save(file, "JPEG", quality=_JPEG_QUALITY)
    return file.getvalue()


def png(pixels: NDArray[np.uint8]) -> bytes:
    """Returns a PNG file of uint8 pixels: (height, width, 3) RGB, or (height, width, 4) RGBA."""
    height, width, channels = pixels.shape
    header = struct.pack(">IIBBBBB", width, height, 8, {3: 2, 4: 6}[channels], 0, 0, 0)
    # Each row begins with the number of its filter. Filter 1 stores differences to the left pixel,
    # which are smaller than the pixels.
    rows = np.empty((height, 1 + width * channels), np.uint8)
    rows[:, 0] = 1
    differences = pixels.copy()
    differences[:, 1:] -= pixels[:, :-1]
    rows[:, 1:] = differences.reshape(height, -1)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes(), 6)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


def _pillow(need: str, *modules: str) -> Any:
    try:
        for module in modules:
            importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"{need} by Pillow: {_INSTALL}; or the server draws: heatmaps=['overlay-jpeg']"
        ) from error
    return importlib.import_module("PIL")
