"""How many threads compute: one number for TensorFlow, OpenVINO and whatever else does.

OpenVINO can also compute several batches side by side, each in a *stream* of its own with a part
of these threads: no thread then waits for another within a layer.

The front end's threads (``--worker-threads``) decode and render, each with one thread of OpenCV's.
"""

import os

_count: int | None = None
_streams = 1


def set_compute_threads(count: int | None, streams: int = 1) -> None:
    """Sets them for this process.

    Args:
        count: Threads; None is the number of cores that it may use.
        streams: Streams; 0 leaves the choice to OpenVINO.
    """
    global _count, _streams
    _count, _streams = count, streams


def compute_threads() -> int:
    """Returns how many threads compute."""
    return _count or len(os.sched_getaffinity(0))


def compute_streams() -> int:
    """Returns how many streams there are to be; 0 leaves the choice to OpenVINO."""
    return _streams
