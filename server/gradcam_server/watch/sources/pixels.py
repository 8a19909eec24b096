"""From a decoded frame of PyAV to upright RGB pixels."""

import struct
from typing import Any, NamedTuple

import numpy as np
from av.sidedata.sidedata import Type as SideDataType
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter

from gradcam_server.watch.frames import Pixels

_MATRIX = struct.Struct("=9i")


class _Orientation(NamedTuple):
    """How a picture is turned: transposed first, then mirrored."""

    is_transposed: bool = False
    flips_x: bool = False
    flips_y: bool = False


class PixelConverter:
    """Converts the frames of one opening of a video to RGB, and turns them as it says.

    Frames would have a converter each, with threads of its own. And who asks a frame for its
    display matrix keeps it alive until the garbage collector comes, with all of its pixels; so
    only the first frame of each size and rotation is asked.
    """

    def __init__(self) -> None:
        self._reformatter = VideoReformatter()
        self._of: tuple[int, int, int] | None = None
        self._orientation = _Orientation()

    def upright(self, frame: VideoFrame) -> Pixels:
        """Converts a frame.

        Args:
            frame: A decoded frame of any pixel format.

        Returns:
            uint8 RGB (height, width, 3), contiguous. Rotations by multiples of 90 degrees and
            mirrored frames are upright; other angles, which no camera writes, stay as they are.
        """
        image = self._reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray()
        of = frame.width, frame.height, frame.rotation
        if of != self._of:
            self._of, self._orientation = of, _orientation(frame)
        is_transposed, flips_x, flips_y = self._orientation
        if is_transposed:
            image = image.transpose(1, 0, 2)
        image = image[:: -1 if flips_y else 1, :: -1 if flips_x else 1]
        return np.ascontiguousarray(image, np.uint8)


def _orientation(frame: VideoFrame) -> _Orientation:
    side_data: Any = frame.side_data  # PyAV's stubs know one key only
    matrix = side_data.get(SideDataType.DISPLAYMATRIX)
    if matrix is None:
        return _Orientation()
    a, b, _, c, d, *_ = _MATRIX.unpack(bytes(matrix)[: _MATRIX.size])
    # The point (x, y) goes to (a x + c y, b x + d y).
    if abs(b) + abs(c) > abs(a) + abs(d):
        return _Orientation(True, c < 0, b < 0)
    return _Orientation(False, a < 0, d < 0)
