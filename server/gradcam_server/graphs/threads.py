"""The number of threads that compute, for TensorFlow and OpenVINO alike.

OpenVINO can also compute several batches side by side, each in a *stream* of its own with a part
of these threads, so that no thread waits for another within a layer.

The front end's threads (``--worker-threads``) decode and render, each with one OpenCV thread.
"""

import os

_count: int | None = None
_streams = 1


def set_compute_threads(count: int | None, streams: int = 1) -> None:
    """Sets the threads and streams of this process.

    Args:
        count: Threads; None for as many as the process may use cores.
        streams: Streams; 0 leaves the number to OpenVINO.
    """
    global _count, _streams
    _count, _streams = count, streams


def compute_threads() -> int:
    """Returns the number of threads that compute."""
    return _count or len(os.sched_getaffinity(0))


def compute_streams() -> int:
    """Returns the number of streams that are wanted; 0 leaves the number to OpenVINO."""
    return _streams
