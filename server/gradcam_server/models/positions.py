"""Finds the part of the image from which the positions of a tensor come.

Four images show it: a grey image, a lighter image, and two whose lightness grows from the first to
the second with the row and with the column. Between the image and the first convolution values
are only scaled and moved, so the growth of a value tells its row and column. That holds for any
crop, padding or resize, by any layer or operation.
"""

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from gradcam_server.domain.layers import Extent

_GREY = 64
# Small, so that curves such as a gamma correction are straight; integers need a larger step.
_STEP = 1.0
_COARSE_STEP = 64.0
_FINE_TYPES = {"float32", "float64"}
# A value that grows by less than this part of the maximal growth is mixed with a margin.
_WHOLE = 0.99


class UnknownPositionsError(Exception):
    """The values do not depend on the lightness, so their positions are unknown."""


class MovedPositionsError(Exception):
    """The positions come from a flipped, turned or warped image, or from several parts of it."""


def position_images(shape: tuple[int, int, int], dtypes: Collection[str]) -> NDArray[np.float32]:
    """Returns the four images.

    Args:
        shape: (height, width, channels).
        dtypes: Types to which the images will be cast on their way.

    Returns:
        float32, shape (4, height, width, channels).
    """
    height, width, channels = shape
    rows = np.broadcast_to(_centres(height)[:, None] / height, (height, width))
    columns = np.broadcast_to(_centres(width) / width, (height, width))
    growth = np.stack([np.zeros((height, width)), np.ones((height, width)), rows, columns])
    images = _GREY + (_STEP if _FINE_TYPES.issuperset(dtypes) else _COARSE_STEP) * growth
    if any("int" in dtype for dtype in dtypes):
        images = np.rint(images)
    return np.repeat(images[..., None], channels, axis=3).astype(np.float32)


def locate(values: NDArray[np.floating], size: tuple[int, int]) -> Extent:
    """Finds the rectangle of the image that a tensor covers.

    Args:
        values: The tensor for ``position_images``, shape (4, h, w, channels).
        size: (height, width) of the image.

    Returns:
        The rectangle, in pixels of the image.

    Raises:
        UnknownPositionsError: The values do not tell.
        MovedPositionsError: The part is not a rectangle.
    """
    values = values.astype(np.float64)
    if len(values) != 4 or not np.isfinite(values).all():  # 4: the batch was not rearranged.
        raise UnknownPositionsError
    grey, light, rows, columns = values
    growth = light - grey
    channel = int(np.abs(growth).sum(axis=(0, 1)).argmax())
    growth = growth[..., channel]
    max_growth = np.abs(growth).max(initial=0)
    seen = np.abs(growth) > _WHOLE * max_growth
    # Values that lightness scales, not shifts, show no positions.
    if not max_growth > 1e-3 * np.abs(rows - grey)[..., channel].max(initial=0):
        raise UnknownPositionsError
    safe = np.where(seen, growth, 1)
    row = np.where(seen, (rows - grey)[..., channel] / safe * size[0], np.nan)
    column = np.where(seen, (columns - grey)[..., channel] / safe * size[1], np.nan)
    top, height = _locate_axis(row, size[0])
    left, width = _locate_axis(column.T, size[1])
    return Extent(top, left, height, width)


def _locate_axis(coordinates: NDArray[np.float64], size: int) -> tuple[float, float]:
    """Returns where an axis begins and how long it is, in pixels of the image.

    Args:
        coordinates: Coordinates along the image's axis of each position, shape (n, others); NaN
            in a margin.
        size: Length of the image's axis in pixels.
    """
    count = len(coordinates)
    known = np.flatnonzero(~np.isnan(coordinates).all(axis=1))
    if len(known) < 2:
        raise UnknownPositionsError
    coordinates = coordinates[known]
    centre = np.nanmedian(coordinates, axis=1)
    positions = _centres(count)[known]
    # The median of all slopes: mirrored margins do not count.
    first, second = np.triu_indices(len(known), 1)
    slopes = (centre[second] - centre[first]) / (positions[second] - positions[first])
    slope = float(np.median(slopes))
    start = float(np.median(centre - slope * positions))
    # In types with few digits the coordinates have steps, too.
    gap = float(np.quantile(np.diff(np.unique(centre)), 0.9)) if slope else 0.0
    tolerance = max(1.0, abs(slope), gap)
    on_line = np.abs(centre - start - slope * positions) <= tolerance
    inner = on_line & (centre > tolerance) & (centre < size - tolerance)
    if inner.sum() >= 4:  # Near its borders a resized image is replicated.
        slope, start = map(float, np.polyfit(positions[inner], centre[inner], 1))
    expected = start + slope * positions
    on_line = np.abs(centre - expected) <= tolerance
    inside = (expected > 0) & (expected < size)
    shown = centre[on_line]
    is_new = [np.abs(shown - value).min(initial=size) > tolerance for value in centre[~on_line]]
    if (
        slope <= 0
        or (inside & ~on_line).any()
        or any(is_new)
        or np.nanmax(np.abs(coordinates - centre[:, None])) > tolerance
    ):
        raise MovedPositionsError
    length = slope * count
    # A map cannot show half a position.
    if max(abs(start), abs(start + length - size)) <= 0.75 * tolerance:
        return 0.0, float(size)
    return round(start, 2), round(length, 2)


def _centres(count: int) -> NDArray[np.float64]:
    return np.arange(count, dtype=np.float64) + 0.5
