"""Decodes an image and fits it to a model's input."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradcam_server.config.settings import ServeConfig
from gradcam_server.domain.requests import RawImage, ResizeMode
from gradcam_server.images.decode import decode_image, decode_reduced, view_raw
from gradcam_server.images.geometry import Placement, fit, shrinkage


@dataclass(frozen=True, slots=True)
class LoadedImage:
    """A decoded image and the model's input that is made of it. Both are uint8 RGB.

    Attributes:
        pixels: The whole image, shape (height, width, 3); ``fitted`` if it is not needed.
        fitted: The model's input, shape (H, W, 3).
        placement: Where the image lies in the input.
    """

    pixels: NDArray[np.uint8]
    fitted: NDArray[np.uint8]
    placement: Placement

    @property
    def pixel_count(self) -> int:
        """The number of pixels of the image as it was sent."""
        return self.placement.vertical.image_size * self.placement.horizontal.image_size


def load(
    image: bytes | RawImage,
    config: ServeConfig,
    input_size: tuple[int, int],
    mode: ResizeMode,
    *,
    is_whole_needed: bool,
) -> LoadedImage:
    """Decodes an image and fits it to a model's input.

    Args:
        image: An encoded file, or pixels.
        config: The settings.
        input_size: (height, width) of the model's input.
        mode: How the image is fitted.
        is_whole_needed: Whether all of its pixels are needed, not only the model's input.

    Raises:
        InvalidRequestError: The image cannot be decoded, or has too many pixels.
    """
    size, max_pixels = None, config.max_image_pixels
    if isinstance(image, RawImage):
        pixels = view_raw(image, max_pixels)
    elif is_whole_needed or not config.reduced_decode:
        pixels = decode_image(image, max_pixels)
    else:
        pixels, size = decode_reduced(
            image, max_pixels, lambda size: shrinkage(size, input_size, mode)
        )
    fitted, placement = fit(pixels, input_size, mode, size)
    if is_whole_needed:
        return LoadedImage(pixels, fitted, placement)
    if np.may_share_memory(fitted, pixels) and not isinstance(image, RawImage):
        fitted = fitted.copy()  # a view would keep the whole image
    return LoadedImage(fitted, fitted, placement)
