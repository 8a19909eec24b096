"""Bytes to pixels: encoded or raw images to uint8 RGB, refused before they cost anything."""

from collections.abc import Callable
from contextlib import suppress

import cv2
import numpy as np
from numpy.typing import NDArray

from gradcam_server.domain.requests import RawImage
from gradcam_server.errors import InvalidRequestError
from gradcam_server.images.header import JPEG, Size, read_header

# OpenCV's flags for libjpeg's scaled transforms, by how many pixels of an axis become one.
_REDUCTIONS = {
    8: cv2.IMREAD_REDUCED_GRAYSCALE_8,
    4: cv2.IMREAD_REDUCED_GRAYSCALE_4,
    2: cv2.IMREAD_REDUCED_GRAYSCALE_2,
}

# How many times the model's input a reduced image must have at least: the resize that follows
# then has pixels to average, as it has in the whole image.
_MARGIN = 2

# How many passes over the pixels of the largest image a decoder may be made to take. Encoders write
# about ten scans.
_MAX_PASSES = 20
# As OpenCV takes up to 1.3 GB for 50 megapixels of one, where other formats take 0.3 to 0.6.
_ANIMATED_PNG_SHARE = 4

# Broken images are answered to the caller, not logged.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


def decode_image(data: bytes, max_pixels: int) -> NDArray[np.uint8]:
    """Decodes an image file.

    The EXIF orientation is applied, grey becomes RGB, 16-bit samples keep their high
    byte, and an alpha channel is dropped (as Keras' ``load_img`` does).

    Args:
        data: A JPEG, PNG, WebP or BMP file. Of an animation the first frame counts.
        max_pixels: The most pixels that the header may declare.

    Returns:
        uint8 RGB, shape (height, width, 3).

    Raises:
        InvalidRequestError: Not an image of these formats, truncated or corrupt, or too
            many pixels, or scans of so many pixels. The last two are found from the header,
            before memory is taken.
    """
    return decode_reduced(data, max_pixels, lambda _: 1)[0]


def decode_reduced(
    data: bytes, max_pixels: int, shrinkage: Callable[[Size], float]
) -> tuple[NDArray[np.uint8], Size]:
    """Decodes an image file, a JPEG at 1/2, 1/4 or 1/8 of its size if that is enough.

    libjpeg then computes the smaller image straight from the coefficients, in a fraction of
    the time and memory.

    Args:
        data: As for ``decode_image``.
        max_pixels: The most pixels that the header may declare.
        shrinkage: Says how many pixels of each axis become one later, for an image of a size.
            Half of that is left to do then, or more.

    Returns:
        uint8 RGB, shape (height, width, 3), upright, and the size of the original, upright.

    Raises:
        InvalidRequestError: As ``decode_image``.
    """
    declared, scans, is_animated_png = read_header(data)
    _check_size("encoded_image", *declared, max_pixels)
    if is_animated_png:
        share = max_pixels // _ANIMATED_PNG_SHARE
        _check_size("encoded_image", *declared, share, "the animated PNG")
    _check_scans(declared, scans, max_pixels)
    reduction = _reduction(declared, shrinkage) if data.startswith(JPEG) else 1
    image = None
    with suppress(cv2.error):
        flags = cv2.IMREAD_COLOR_RGB | _REDUCTIONS.get(reduction, 0)
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    if image is None:
        height, width = declared
        raise InvalidRequestError(
            "encoded_image",
            f"the image declares {width} x {height} pixels but is truncated or corrupt",
        )
    upright = _reduced(declared, reduction) == image.shape[:2]
    size = declared if upright else (declared[1], declared[0])
    return image.astype(np.uint8, copy=False), size


def declared_size(image: bytes | RawImage, max_pixels: int) -> Size:
    """Reads the size that an image declares, which its EXIF orientation may turn.

    Args:
        image: As for ``decode_image``, or raw pixels.
        max_pixels: The most pixels that it may declare.

    Returns:
        Height and width in pixels.

    Raises:
        InvalidRequestError: As ``decode_image`` or ``view_raw``, as far as the header tells.
    """
    if isinstance(image, RawImage):
        view_raw(image, max_pixels)
        return image.height, image.width
    declared = read_header(image).size
    _check_size("encoded_image", *declared, max_pixels)
    return declared


def _reduction(declared: Size, shrinkage: Callable[[Size], float]) -> int:
    """Chooses the greatest that leaves enough, whether or not EXIF turns the image; 1 is none."""
    height, width = declared
    most = min(shrinkage((height, width)), shrinkage((width, height))) / _MARGIN
    for reduction in _REDUCTIONS:
        reduced = _reduced(declared, reduction)
        # Of a reduced image that is square, nobody could tell whether it was turned.
        if reduction <= most and (height == width or reduced[0] != reduced[1]):
            return reduction
    return 1


def _reduced(size: Size, reduction: int) -> Size:
    return -(-size[0] // reduction), -(-size[1] // reduction)


def view_raw(image: RawImage, max_pixels: int) -> NDArray[np.uint8]:
    """Views raw pixels as an array, without a copy.

    Returns:
        uint8 RGB, shape (height, width, 3).

    Raises:
        InvalidRequestError: The bytes don't match the size, or it is out of range.
    """
    _check_size("raw_image", image.height, image.width, max_pixels)
    expected = image.height * image.width * 3
    if len(image.data) != expected:
        raise InvalidRequestError(
            "raw_image.data",
            f"{len(image.data)} bytes do not match height {image.height} x width {image.width} "
            f"x 3 channels = {expected} bytes of uint8 RGB",
        )
    return np.frombuffer(image.data, np.uint8).reshape(image.height, image.width, 3)


def _check_scans(size: Size, scans: int, max_pixels: int) -> None:
    """Bounds what a progressive JPEG costs by what the largest image costs."""
    height, width = size
    most = _MAX_PASSES * max_pixels // (height * width)
    if scans > most:
        raise InvalidRequestError(
            "encoded_image",
            f"the JPEG has {scans} scans of {width} x {height} pixels, and may have {most} at that "
            "size here; send it with fewer, or as a baseline JPEG",
        )


def _check_size(
    field: str, height: int, width: int, max_pixels: int, what: str = "the image"
) -> None:
    if height < 1 or width < 1:
        raise InvalidRequestError(
            field, f"{what}'s size {width} x {height} is not positive: it needs a pixel"
        )
    if height * width > max_pixels:
        raise InvalidRequestError(
            field,
            f"{what}'s {width} x {height} = {height * width} pixels are more than this server's "
            f"limit of {max_pixels}; send a smaller one",
        )
