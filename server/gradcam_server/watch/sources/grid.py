"""Chooses the frames of a video that are nearest to a grid of times."""

import math
from collections.abc import Iterable, Iterator
from typing import TypeVar

_T = TypeVar("_T")

# A time stamp that is a rounded fraction counts as on the grid.
_TOLERANCE = 1e-6


def nearest_to_grid(frames: Iterable[tuple[float, _T]], fps: float) -> Iterator[tuple[float, _T]]:
    """Yields the frames that are nearest to the times 0, 1/fps, 2/fps and so on.

    Args:
        frames: Time in seconds and frame, in the order of time; gaps may vary.
        fps: The grid's frames per second.

    Yields:
        Each chosen frame once, in order. So a video of fewer frames per second than ``fps`` keeps
        all of its frames, and no frame is repeated.
    """
    begin = -1  # the last point of the grid that belongs to an earlier frame
    held: tuple[float, _T] | None = None
    for frame in frames:
        if held is not None:
            end = _point((held[0] + frame[0]) / 2, fps)
            if end > begin:
                yield held
                begin = end
        held = frame
    if held is not None and _point(held[0], fps) > begin:
        yield held


def _point(time_s: float, fps: float) -> int:
    """Returns the last point of the grid that is not after a time."""
    return math.floor(time_s * fps + _TOLERANCE)
