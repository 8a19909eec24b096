"""How many threads compute: one number for TensorFlow, OpenVINO and whatever else does.

The front end's threads (``--worker-threads``) decode and render, each with one thread of OpenCV's.
"""

import os

_count: int | None = None


def set_compute_threads(count: int | None) -> None:
    """Sets it for this process; None is the number of cores that it may use."""
    global _count
    _count = count


def compute_threads() -> int:
    """Returns it."""
    return _count or len(os.sched_getaffinity(0))
