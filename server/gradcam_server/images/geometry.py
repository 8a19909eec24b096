"""Image to model input, and heat map back onto the whole image."""

import functools
import math
from dataclasses import dataclass

import cv2
import numpy as np
from cykooz_resizer import (
    CropBox,
    FilterType,
    ImageData,
    PixelType,
    ResizeAlg,
    ResizeOptions,
    Resizer,
)
from numpy.typing import NDArray

from gradcam_server.domain.layers import Extent
from gradcam_server.domain.requests import ResizeMode

# Normalisation takes the ImageNet mean to about zero, so margins carry no signal.
LETTERBOX_COLOR = (124, 116, 104)


@dataclass(frozen=True)
class Span:
    """How one axis of the image lies on the same axis of the model's input.

    Pixels ``image_start`` to ``image_start + image_length`` of the image fill pixels
    ``input_start`` to ``input_start + input_length`` of the input.
    """

    image_size: int
    image_start: int
    image_length: int
    input_size: int
    input_start: int
    input_length: int

    def interpolation_matrix(
        self, map_size: int, start: float = 0, length: float | None = None
    ) -> NDArray[np.float32]:
        """Weights that take a map over the input to the pixels of the image.

        Bilinear with half-pixel centres and replicated borders, as
        ``tf.image.resize`` and ``cv2.INTER_LINEAR``; zero where the image lies
        outside the input, or outside the part of it that the map covers.

        Args:
            map_size: Length of the map along this axis.
            start: Where the map begins, in pixels of the input.
            length: How long it is there; None is the whole input.

        Returns:
            float32, shape (image_size, map_size).
        """
        pixel = np.arange(self.image_length) + 0.5
        on_input = self.input_start + pixel * self.input_length / self.image_length
        from_start = on_input - start
        length = self.input_size if length is None else length
        is_covered = (from_start >= 0) & (from_start <= length)
        on_map = np.clip(from_start * map_size / length - 0.5, 0, map_size - 1)
        lower = np.floor(on_map).astype(np.intp)
        upper = np.minimum(lower + 1, map_size - 1)
        fraction = on_map - lower
        matrix = np.zeros((self.image_size, map_size), np.float32)
        rows = self.image_start + np.arange(self.image_length)
        matrix[rows, lower] += (1 - fraction) * is_covered
        matrix[rows, upper] += fraction * is_covered
        return matrix


@dataclass(frozen=True)
class Placement:
    """How an image lies on the model's input."""

    vertical: Span
    horizontal: Span

    def map_to_image(
        self, heatmap: NDArray[np.float32], extent: Extent | None = None
    ) -> NDArray[np.float32]:
        """Maps a heat map back onto the whole original image; it is zero where the map is not.

        Args:
            heatmap: float32, shape (h, w).
            extent: The part of the model's input that it covers; None is the whole input.

        Returns:
            float32, shape (image height, image width).
        """
        vertical = (extent.top, extent.height) if extent else ()
        horizontal = (extent.left, extent.width) if extent else ()
        rows = self.vertical.interpolation_matrix(heatmap.shape[0], *vertical)
        columns = self.horizontal.interpolation_matrix(heatmap.shape[1], *horizontal)
        return np.asarray(rows @ heatmap @ columns.T, np.float32)


def enlarge(
    heatmap: NDArray[np.float32], input_size: tuple[int, int], extent: Extent | None
) -> NDArray[np.float32]:
    """Maps a heat map to the model's input; it is zero where the map is not.

    Args:
        heatmap: float32, shape (h, w).
        input_size: (height, width) of the model's input.
        extent: The part of the input that the map covers; None is the whole input.

    Returns:
        float32, of the input's size.
    """
    if extent is None:
        return cv2.resize(heatmap, input_size[::-1], interpolation=cv2.INTER_LINEAR)
    return _place(input_size, input_size, ResizeMode.STRETCH).map_to_image(heatmap, extent)


def shrinkage(image_size: tuple[int, int], input_size: tuple[int, int], mode: ResizeMode) -> float:
    """Returns how many pixels of an image ``fit`` makes one, along the axis with fewer."""
    placement = _place(image_size, input_size, mode)
    return min(
        span.image_length / span.input_length for span in (placement.vertical, placement.horizontal)
    )


def fit(
    image: NDArray[np.uint8],
    input_size: tuple[int, int],
    mode: ResizeMode,
    image_size: tuple[int, int] | None = None,
) -> tuple[NDArray[np.uint8], Placement]:
    """Brings an image to the model's input size: bilinear, antialiased where it shrinks.

    Args:
        image: uint8 RGB, shape (H, W, 3); the original, or a reduced one.
        input_size: (height, width) of the model's input.
        mode: Stretch, centre crop or letterbox.
        image_size: (height, width) of the original; those of ``image`` if None.

    Returns:
        uint8 RGB of the input size, and how the original lies on it.
    """
    placement = _place(image_size or image.shape[:2], input_size, mode)
    v, h = placement.vertical, placement.horizontal
    rows, top, part_height = _part(v, image.shape[0])
    columns, left, part_width = _part(h, image.shape[1])
    box = CropBox(left, top, part_width, part_height)
    resized = _resize(image[rows, columns], box, v.input_length, h.input_length)
    if (v.input_length, h.input_length) == input_size:
        return resized, placement
    canvas = np.full((*input_size, 3), LETTERBOX_COLOR, np.uint8)
    canvas[
        v.input_start : v.input_start + v.input_length,
        h.input_start : h.input_start + h.input_length,
    ] = resized
    return canvas, placement


def _part(span: Span, length: int) -> tuple[slice, float, float]:
    """Finds the part that a span wants in an axis of another length than the original's.

    Returns:
        The pixels that hold it, where it begins in them, and how long it is.
    """
    start = span.image_start * length / span.image_size
    end = (span.image_start + span.image_length) * length / span.image_size
    first = math.floor(start)
    return slice(first, math.ceil(end)), start - first, end - start


def _resize(image: NDArray[np.uint8], box: CropBox, height: int, width: int) -> NDArray[np.uint8]:
    if image.shape[:2] == (height, width) and box == CropBox(0, 0, width, height):
        return np.ascontiguousarray(image)
    # As Pillow's, to rounding: its triangle filter widens as it shrinks, where OpenCV's aliases.
    source = ImageData(image.shape[1], image.shape[0], PixelType.U8x3, image.tobytes())
    target = ImageData(width, height, PixelType.U8x3)
    triangle = ResizeAlg.convolution(FilterType.bilinear)
    Resizer().resize(source, target, ResizeOptions(triangle, crop_box=box))
    return np.frombuffer(target.get_buffer(), np.uint8).reshape(height, width, 3)


@functools.lru_cache(maxsize=1024)
def _place(image_size: tuple[int, ...], input_size: tuple[int, int], mode: ResizeMode) -> Placement:
    height, width = image_size
    input_height, input_width = input_size
    crop_height, crop_width = height, width
    fit_height, fit_width = input_height, input_width
    if mode is ResizeMode.CENTER_CROP:
        scale = min(height / input_height, width / input_width)
        crop_height = _rounded(input_height * scale, height)
        crop_width = _rounded(input_width * scale, width)
    elif mode is ResizeMode.LETTERBOX:
        scale = min(input_height / height, input_width / width)
        fit_height = _rounded(height * scale, input_height)
        fit_width = _rounded(width * scale, input_width)
    return Placement(
        _centred(height, crop_height, input_height, fit_height),
        _centred(width, crop_width, input_width, fit_width),
    )


def _rounded(length: float, at_most: int) -> int:
    return min(max(round(length), 1), at_most)


def _centred(image_size: int, image_length: int, input_size: int, input_length: int) -> Span:
    return Span(
        image_size=image_size,
        image_start=(image_size - image_length) // 2,
        image_length=image_length,
        input_size=input_size,
        input_start=(input_size - input_length) // 2,
        input_length=input_length,
    )
