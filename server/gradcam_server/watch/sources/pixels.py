"""From a decoded frame of PyAV to upright RGB pixels."""

import struct
import threading
from typing import Any

import numpy as np
from av.sidedata.sidedata import Type as SideDataType
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter

from gradcam_server.watch.frames import Pixels

_MATRIX = struct.Struct("=9i")
_local = threading.local()


def upright_pixels(frame: VideoFrame) -> Pixels:
    """Converts a frame to RGB and turns it as its display matrix says.

    Args:
        frame: A decoded frame of any pixel format.

    Returns:
        uint8 RGB (height, width, 3), contiguous. Rotations by multiples of 90 degrees and mirrored
        frames are upright; other angles, which no camera writes, stay as they are.
    """
    image = _reformatter().reformat(frame, format="rgb24", threads=1).to_ndarray()
    a, b, c, d = _matrix(frame)
    # The point (x, y) goes to (a x + c y, b x + d y).
    if abs(b) + abs(c) > abs(a) + abs(d):
        image = image.transpose(1, 0, 2)
        flips_x, flips_y = c < 0, b < 0
    else:
        flips_x, flips_y = a < 0, d < 0
    image = image[:: -1 if flips_y else 1, :: -1 if flips_x else 1]
    return np.ascontiguousarray(image, np.uint8)


def _reformatter() -> VideoReformatter:
    """Returns the converter of this thread. Frames have one each by default, with threads."""
    if not hasattr(_local, "reformatter"):
        _local.reformatter = VideoReformatter()
    reformatter: VideoReformatter = _local.reformatter
    return reformatter


def _matrix(frame: VideoFrame) -> tuple[int, int, int, int]:
    side_data: Any = frame.side_data  # PyAV's stubs know one key only
    matrix = side_data.get(SideDataType.DISPLAYMATRIX)
    if matrix is None:
        return 1, 0, 0, 1
    values = _MATRIX.unpack(bytes(matrix)[: _MATRIX.size])
    return values[0], values[1], values[3], values[4]
