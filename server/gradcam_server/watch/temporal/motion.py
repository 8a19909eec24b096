"""Estimates the motion between two frames by dense optical flow on small pictures."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from gradcam_client.extents import Extent
from gradcam_server.watch.frames import Pixels

Gray: TypeAlias = NDArray[np.uint8]
Map: TypeAlias = NDArray[np.float32]

_LONGER_SIDE = 128
# Smaller pictures leave the flow no coarse scale.
_MIN_SIDE = 32
_MAX_GAIN = 4.0


def small_gray(image: Pixels, extent: Extent | None = None) -> Gray:
    """Returns a small gray picture of the part of a frame that a map covers.

    Args:
        image: uint8 RGB (height, width, 3).
        extent: The part, in pixels of the image; it may reach beyond, where the edge is
            repeated. None is the whole image.

    Returns:
        uint8 (h, w), of which the longer side has 128 pixels and the other at least 32.
    """
    part = image if extent is None else _part(image, extent)
    height, width = part.shape[:2]
    scale = _LONGER_SIDE / max(height, width)
    size = (max(_MIN_SIDE, round(width * scale)), max(_MIN_SIDE, round(height * scale)))
    shrunk = cv2.resize(part, size, interpolation=cv2.INTER_AREA)
    gray: Gray = cv2.cvtColor(shrunk, cv2.COLOR_RGB2GRAY)
    return gray


def _part(image: Pixels, extent: Extent) -> Pixels:
    height, width = image.shape[:2]
    top, left = round(extent.top), round(extent.left)
    bottom = max(top + 1, round(extent.top + extent.height))
    right = max(left + 1, round(extent.left + extent.width))
    inside = image[
        min(max(top, 0), height - 1) : max(bottom, 1), min(max(left, 0), width - 1) : max(right, 1)
    ]
    beyond = (-top, bottom - height, -left, right - width)
    if max(beyond) <= 0:
        return inside
    above, below, before, after = (max(0, pixels) for pixels in beyond)
    padded: Pixels = cv2.copyMakeBorder(inside, above, below, before, after, cv2.BORDER_REPLICATE)
    return padded


@dataclass(frozen=True, eq=False)
class Motion:
    """Two frames, and where each pixel of the later one was in the earlier one.

    Attributes:
        before: The earlier frame in the exposure of the later one, uint8 (h, w).
        now: The later frame, uint8 (h, w).
        flow: float32 (h, w, 2): the pixel (x, y) of ``now`` was at (x, y) + flow[y, x].
    """

    before: Gray
    now: Gray
    flow: NDArray[np.float32]

    @cached_property
    def origin(self) -> NDArray[np.float32]:
        """Where each pixel was, as (x, y): float32 (h, w, 2)."""
        height, width = self.now.shape
        rows, columns = np.indices((height, width), np.float32)
        return self.flow + np.stack([columns, rows], axis=2)

    @cached_property
    def was_visible(self) -> NDArray[np.bool_]:
        """Whether each pixel was inside the earlier frame: bool (h, w)."""
        height, width = self.now.shape
        x, y = self.origin[..., 0], self.origin[..., 1]
        return (x >= 0) & (y >= 0) & (x <= width - 1) & (y <= height - 1)

    def carry(self, values: NDArray[Any]) -> NDArray[Any]:
        """Moves a map or picture (h, w) of the earlier frame along, to where it is now."""
        moved: NDArray[Any] = cv2.remap(
            values, self.origin, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )
        return moved


class MotionEstimator:
    """Estimates the motion from each frame of a source to the next one.

    The flow is that of Kroeger et al. 2016, "Fast Optical Flow using Dense Inverse Search", of
    OpenCV: a few milliseconds for pictures of 128 pixels.
    """

    def __init__(self) -> None:
        self._flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        self._before: Gray | None = None

    def update(self, gray: Gray) -> Motion | None:
        """Takes the next frame.

        Args:
            gray: uint8 (h, w) of ``small_gray``.

        Returns:
            The motion; None at the first frame and where the size of the frames changes.
        """
        before, self._before = self._before, gray
        if before is None or before.shape != gray.shape:
            return None
        exposed = _expose_like(before, gray)
        return Motion(exposed, gray, self._flow.calc(gray, exposed, None))


def _expose_like(picture: Gray, other: Gray) -> Gray:
    """Gives a picture the mean and contrast of another one: the flow expects equal exposures."""
    # Nearly flat pictures hold little but noise.
    gain = (float(other.std()) + 2) / (float(picture.std()) + 2)
    gain = min(_MAX_GAIN, max(1 / _MAX_GAIN, gain))
    levels = (np.arange(256, dtype=np.float32) - picture.mean()) * gain + other.mean()
    exposed: Gray = cv2.LUT(picture, np.clip(levels.round(), 0, 255).astype(np.uint8))
    return exposed
