"""Fits images to the model's input, and maps heat maps back onto the whole image."""

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

# The resizer copies its source, which blocks all other Python threads: a few ms for so many bytes.
_BAND_BYTES = 4 << 20
# About the ImageNet mean, which normalisation takes to zero, so margins carry no signal.
LETTERBOX_COLOR = (124, 116, 104)


@dataclass(frozen=True)
class Span:
    """The position of the image on the model's input, along one axis.

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
        """Returns the weights that interpolate a map over the input at the pixels of the image.

        Bilinear with half-pixel centres and replicated borders, as ``tf.image.resize`` and
        ``cv2.INTER_LINEAR``; zero for pixels outside the input, or outside the part of it that
        the map covers.

        Args:
            map_size: Length of the map along this axis.
            start: Start of the map, in pixels of the input.
            length: Length of the map, in pixels of the input; None is the whole input.

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

    def on_image(self, start: float = 0, length: float | None = None) -> tuple[float, float]:
        """Returns the start and the length, in pixels of the image, of a part of the input.

        Args:
            start: Start of the part, in pixels of the input.
            length: Length of the part, in pixels of the input; None is the whole input.
        """
        scale = self.image_length / self.input_length
        length = self.input_size if length is None else length
        return self.image_start + (start - self.input_start) * scale, length * scale


@dataclass(frozen=True)
class Placement:
    """The position of an image on the model's input."""

    vertical: Span
    horizontal: Span

    def map_to_image(
        self, heatmap: NDArray[np.float32], extent: Extent | None = None
    ) -> NDArray[np.float32]:
        """Maps a heat map back onto the whole original image, which is zero outside the map.

        Args:
            heatmap: float32, shape (h, w).
            extent: The part of the model's input that the map covers; None is the whole input.

        Returns:
            float32, shape (image height, image width).
        """
        vertical = (extent.top, extent.height) if extent else ()
        horizontal = (extent.left, extent.width) if extent else ()
        rows = self.vertical.interpolation_matrix(heatmap.shape[0], *vertical)
        columns = self.horizontal.interpolation_matrix(heatmap.shape[1], *horizontal)
        return np.asarray(rows @ heatmap @ columns.T, np.float32)

    def on_image(self, extent: Extent | None = None) -> Extent:
        """Returns a part of the model's input as a rectangle in pixels of the image.

        Args:
            extent: The part; None is the whole input.
        """
        top, height = self.vertical.on_image(*((extent.top, extent.height) if extent else ()))
        left, width = self.horizontal.on_image(*((extent.left, extent.width) if extent else ()))
        return Extent(top, left, height, width)


def enlarge(
    heatmap: NDArray[np.float32], input_size: tuple[int, int], extent: Extent | None
) -> NDArray[np.float32]:
    """Resizes a heat map to the model's input, which is zero outside the map.

    Args:
        heatmap: float32, shape (h, w).
        input_size: (height, width) of the model's input.
        extent: The part of the input that the map covers; None is the whole input.

    Returns:
        float32, shape (height, width) of the input.
    """
    if extent is None:
        return cv2.resize(heatmap, input_size[::-1], interpolation=cv2.INTER_LINEAR)
    return _place(input_size, input_size, ResizeMode.STRETCH).map_to_image(heatmap, extent)


def shrinkage(image_size: tuple[int, int], input_size: tuple[int, int], mode: ResizeMode) -> float:
    """Returns the factor by which ``fit`` shrinks an image, along the axis that shrinks less."""
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
    """Resizes an image to the model's input: bilinear, antialiased where it shrinks.

    Args:
        image: uint8 RGB, shape (H, W, 3); the original, or the original at a reduced size.
        input_size: (height, width) of the model's input.
        mode: Stretch, centre crop or letterbox.
        image_size: (height, width) of the original; the size of ``image`` if None.

    Returns:
        uint8 RGB of the input size, and the position of the original on it.
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
    """Finds the part of a span in an axis that was reduced to ``length`` pixels.

    Returns:
        The pixels that hold the part, its start in them, and its length.
    """
    start = span.image_start * length / span.image_size
    end = (span.image_start + span.image_length) * length / span.image_size
    first = math.floor(start)
    return slice(first, math.ceil(end)), start - first, end - start


def _resize(image: NDArray[np.uint8], box: CropBox, height: int, width: int) -> NDArray[np.uint8]:
    if image.shape[:2] == (height, width) and box == CropBox(0, 0, width, height):
        return np.ascontiguousarray(image)
    rows = max(_BAND_BYTES // (3 * image.shape[1]), 1)
    if rows < image.shape[0]:
        # The horizontal pass, row by row, comes first in any case.
        bands = (image[top : top + rows] for top in range(0, image.shape[0], rows))
        image = np.concatenate(
            [
                _convolve(band, CropBox(box.left, 0, box.width, len(band)), len(band), width)
                for band in bands
            ]
        )
        box = CropBox(0, box.top, width, box.height)
    return _convolve(image, box, height, width)


def _convolve(image: NDArray[np.uint8], box: CropBox, height: int, width: int) -> NDArray[np.uint8]:
    """Resizes as Pillow does, up to rounding: the triangle filter widens as it shrinks."""
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
