"""Draws the heat over a frame, and its caption.

The colours and the placing of the map are the client's, and so those of the server's overlays;
OpenCV applies them, because a video has many frames. A video's pictures are drawn into memory that
is used again: the system takes longer to hand out new memory for a large picture than OpenCV to
draw it.
"""

import math
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import DTypeLike, NDArray

from gradcam_client.colormaps import table
from gradcam_client.drawing import enlarge
from gradcam_client.extents import Extent
from gradcam_client.requests import ColormapName
from gradcam_server.watch.frames import FrameResult, Pixels
from gradcam_server.watch.outputs.caption import write_caption
from gradcam_server.watch.outputs.explained import explanation_of

_ROUNDING_PX = 0.01


@dataclass(frozen=True)
class Style:
    """How heat is drawn.

    Attributes:
        colormap: The colours.
        alpha: The weight of the colours over the frame, 0 to 1.
    """

    colormap: ColormapName = "jet"
    alpha: float = 0.4


class Painter:
    """Draws results, one after another, into memory of its own. One thread uses it at a time.

    Args:
        style: How the heat is drawn.
    """

    def __init__(self, style: Style | None = None) -> None:
        style = style or Style()
        self._alpha, self._colors = style.alpha, table(style.colormap)
        self._heat, self._levels, self._colored = _Memory(), _Memory(), _Memory()
        self._drawn = _Memory()

    def draw(self, result: FrameResult) -> Pixels:
        """Draws a result.

        Args:
            result: The result; the heat is left out if it has none.

        Returns:
            The frame with heat and caption, uint8 RGB, of the frame's shape. The next call
            overwrites it.
        """
        image = result.frame.image
        drawn = self._drawn.array(image.shape, np.uint8)
        if result.heat is None:
            np.copyto(drawn, image)
        else:
            cv2.addWeighted(
                image, 1 - self._alpha, self._colors_of(result), self._alpha, 0, dst=drawn
            )
        write_caption(drawn, result)
        return drawn

    def _colors_of(self, result: FrameResult) -> Pixels:
        """Returns the colours of a result's heat, placed on its frame."""
        height, width = result.frame.image.shape[:2]
        levels = self._levels.array((height, width), np.uint8)
        cv2.convertScaleAbs(self._placed(result), alpha=255, dst=levels)
        colored = self._colored.array((height, width, 3), np.uint8)
        # The table is RGB, as the frame is, so nothing is converted to OpenCV's BGR and back.
        cv2.applyColorMap(levels, self._colors[:, None], dst=colored)
        return colored

    def _placed(self, result: FrameResult) -> NDArray[np.float32]:
        """Returns the heat of each pixel of the frame, 0 to 1."""
        assert result.heat is not None
        height, width = result.frame.image.shape[:2]
        heat = np.clip(np.nan_to_num(result.heat, posinf=0), 0, 1).astype(np.float32)
        covered = _covered(result)
        if not _is_whole(covered, height, width):
            return enlarge(heat, covered, height, width)
        placed = self._heat.array((height, width), np.float32)
        # The same interpolation as that of ``enlarge``, for a map of the whole frame.
        cv2.resize(heat, (width, height), dst=placed, interpolation=cv2.INTER_LINEAR)
        return placed


class _Memory:
    """Memory for one array at a time, of any shape. It grows to the largest one."""

    def __init__(self) -> None:
        self._bytes = np.empty(0, np.uint8)

    def array(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        size = math.prod(shape) * np.dtype(dtype).itemsize
        if len(self._bytes) < size:
            self._bytes = np.empty(size, np.uint8)
        return self._bytes[:size].view(dtype).reshape(shape)


def draw(result: FrameResult, style: Style | None = None) -> Pixels:
    """Draws one result, as ``Painter.draw``, into a new array."""
    return Painter(style).draw(result)


def _covered(result: FrameResult) -> Extent:
    """Returns the part of the frame that the map covers, in pixels."""
    height, width = result.frame.image.shape[:2]
    explanation = explanation_of(result)
    covered = explanation.image_extent if explanation is not None else None
    if covered is None or result.explanation is None:
        return Extent(0, 0, height, width)
    # A reused answer may be of a frame of another size.
    return covered.scaled(
        height / result.explanation.image_height, width / result.explanation.image_width
    )


def _is_whole(covered: Extent, height: int, width: int) -> bool:
    """Whether a part of a frame is all of it, but for rounding."""
    edges = (covered.top, covered.left, covered.height - height, covered.width - width)
    return max(map(abs, edges)) < _ROUNDING_PX
