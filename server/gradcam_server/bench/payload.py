"""The image and the request to send: the user's file, or a generated image."""

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gradcam_client import build_request

# The size of a thumbnail of a photograph; encoded it has about 30 kB, as a thumbnail has.
_SIZE = (300, 450)
_QUALITY = 90


def photograph(seed: int = 0, size: tuple[int, int] = _SIZE) -> NDArray[np.uint8]:
    """Makes an image with as much detail as photographs have: noise of all scales.

    Returns:
        uint8 RGB, shape (H, W, 3).
    """
    height, width = size
    chance = np.random.default_rng(seed)
    total = np.zeros((height, width, 3))
    for cells in (2, 4, 8, 16, 32, 64):
        coarse = chance.integers(0, 256, (cells, cells, 3), np.uint8)
        layer = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        total += np.asarray(layer, float) / cells
    total -= total.min()
    return (total / total.max() * 255).astype(np.uint8)


def jpeg(path: Path | None) -> bytes:
    """Returns the bytes of an image file, or of a generated JPEG.

    Raises:
        OSError: The file cannot be read.
    """
    if path is not None:
        return path.read_bytes()
    buffer = io.BytesIO()
    Image.fromarray(photograph()).save(buffer, "JPEG", quality=_QUALITY)
    return buffer.getvalue()


def pixels(path: Path | None, input_size: tuple[int, int]) -> NDArray[np.uint8]:
    """Returns an image file, or a generated image, as raw pixels of a size.

    Args:
        path: The image file; None generates an image.
        input_size: (height, width).

    Returns:
        uint8 RGB, shape (H, W, 3).

    Raises:
        OSError: The file cannot be read.
    """
    height, width = input_size
    with Image.open(io.BytesIO(jpeg(path))) as opened:
        return np.asarray(opened.convert("RGB").resize((width, height)), np.uint8)


def request(payload: str, path: Path | None, input_size: tuple[int, int], model: str = "") -> bytes:
    """Makes the request to send: Grad-CAM of the best class.

    Args:
        payload: ``jpeg``: the file; ``raw``: uint8 RGB of the model's input size.
        path: The image file; None generates an image.
        input_size: (height, width) of the model's input.
        model: The model's name; empty is the server's first.

    Returns:
        A serialised ``ExplainImageRequest``.

    Raises:
        OSError: The file cannot be read.
    """
    image: bytes | NDArray[np.uint8]
    image = pixels(path, input_size) if payload == "raw" else jpeg(path)
    return build_request(image, model=model).SerializeToString()
