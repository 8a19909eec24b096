"""The number of threads that compute, for TensorFlow, OpenVINO and JAX alike.

OpenVINO can also compute several batches side by side, each in a *stream* of its own with a part
of these threads, so that no thread waits for another within a layer (``streams``).

The front end's threads (``--worker-threads``) decode and render, each with one OpenCV thread.
"""

import os

from gradcam_server.domain.options import AUTO, ComputeStreams

_count: int | None = None


def set_compute_threads(count: int | None) -> None:
    """Sets the threads of this process; None for as many as the process may use cores."""
    global _count
    _count = count


def compute_threads() -> int:
    """Returns the number of threads that compute."""
    return _count or len(os.sched_getaffinity(0))


def has_all_cores() -> bool:
    """Returns whether the threads are as many as the cores that this process may use.

    Fewer threads must not be tied to cores: every process ties its threads to the first cores, so
    several processes, each with a part of the machine, would share these and leave the others idle.
    """
    return compute_threads() >= len(os.sched_getaffinity(0))


def max_streams(wanted: ComputeStreams) -> int:
    """Returns the largest number of streams that a graph may have."""
    return wanted if wanted != AUTO and wanted else compute_threads()
