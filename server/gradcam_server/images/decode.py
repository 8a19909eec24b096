"""Encoded or raw images to uint8 RGB pixels; costly images are refused by their header."""

from collections.abc import Callable
from contextlib import suppress

import cv2
import numpy as np
from numpy.typing import NDArray

from gradcam_server.domain.requests import RawImage
from gradcam_server.errors import InvalidRequestError
from gradcam_server.images.header import JPEG, Size, read_header

# OpenCV's flags for libjpeg's scaled transforms, by the factor that divides each axis.
_REDUCTIONS = {
    8: cv2.IMREAD_REDUCED_GRAYSCALE_8,
    4: cv2.IMREAD_REDUCED_GRAYSCALE_4,
    2: cv2.IMREAD_REDUCED_GRAYSCALE_2,
}

# A reduced image has at least this many times the model's input along each axis, so that the
# resize that follows still has pixels to average.
_MARGIN = 2

# Limit on a JPEG's scans, as passes over the pixels of the largest image. Encoders write about ten
# scans.
_MAX_PASSES = 20
# An animated PNG may have 1/4 of the pixels of other images: for 50 megapixels OpenCV takes up to
# 1.3 GB, and 0.3 to 0.6 GB for other formats.
_ANIMATED_PNG_SHARE = 4

# The caller learns of a broken image by an error, so OpenCV does not log it.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


def decode_image(data: bytes, max_pixels: int) -> NDArray[np.uint8]:
    """Decodes an image file.

    The EXIF orientation is applied, grey becomes RGB, 16-bit samples keep their high
    byte, and an alpha channel is dropped (as Keras' ``load_img`` does).

    Args:
        data: A JPEG, PNG, WebP or BMP file. Of an animation the first frame is decoded.
        max_pixels: Maximum number of pixels that the header may declare.

    Returns:
        uint8 RGB, shape (height, width, 3).

    Raises:
        InvalidRequestError: Not an image of these formats, truncated or corrupt, too many
            pixels, or too many scans for its pixels. The last two are found from the header,
            before memory is taken.
    """
    return decode_reduced(data, max_pixels, lambda _: 1)[0]


def decode_reduced(
    data: bytes, max_pixels: int, shrinkage: Callable[[Size], float]
) -> tuple[NDArray[np.uint8], Size]:
    """Decodes an image file, a JPEG at 1/2, 1/4 or 1/8 of its size if that is enough.

    libjpeg then computes the smaller image from the coefficients, in a fraction of the time and
    memory.

    Args:
        data: As for ``decode_image``.
        max_pixels: Maximum number of pixels that the header may declare.
        shrinkage: Returns the factor by which an image of a size is shrunk later. Decoding
            shrinks it by at most half of that factor.

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
    """Reads the size that an image declares, before its EXIF orientation is applied.

    Args:
        image: A file as for ``decode_image``, or raw pixels.
        max_pixels: Maximum number of pixels that it may declare.

    Returns:
        Height and width in pixels.

    Raises:
        InvalidRequestError: As ``decode_image`` or ``view_raw``, for faults in the header.
    """
    if isinstance(image, RawImage):
        view_raw(image, max_pixels)
        return image.height, image.width
    declared = read_header(image).size
    _check_size("encoded_image", *declared, max_pixels)
    return declared


def _reduction(declared: Size, shrinkage: Callable[[Size], float]) -> int:
    """Returns the largest allowed reduction, for the image as declared and turned; 1 is none."""
    height, width = declared
    max_reduction = min(shrinkage((height, width)), shrinkage((width, height))) / _MARGIN
    for reduction in _REDUCTIONS:
        reduced = _reduced(declared, reduction)
        # A square reduced image would not show whether EXIF turned the image.
        if reduction <= max_reduction and (height == width or reduced[0] != reduced[1]):
            return reduction
    return 1


def _reduced(size: Size, reduction: int) -> Size:
    return -(-size[0] // reduction), -(-size[1] // reduction)


def view_raw(image: RawImage, max_pixels: int) -> NDArray[np.uint8]:
    """Views raw pixels as an array, without a copy.

    Returns:
        uint8 RGB, shape (height, width, 3).

    Raises:
        InvalidRequestError: The bytes do not match the size, or the size is out of range.
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
    """Bounds the cost of a progressive JPEG by the cost of the largest image."""
    height, width = size
    max_scans = _MAX_PASSES * max_pixels // (height * width)
    if scans > max_scans:
        raise InvalidRequestError(
            "encoded_image",
            f"the JPEG has {scans} scans of {width} x {height} pixels, and may have {max_scans} at "
            "that size here; send it with fewer, or as a baseline JPEG",
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
