"""The cores of this machine that a test run may use, and the one of each worker."""

import os

_CORES = "GRADCAM_TEST_CORES"

ALL_CORES = [int(core) for core in os.environ.get(_CORES, "").split(",") if core] or sorted(
    os.sched_getaffinity(0)
)
"""All of them; whoever starts a process may give it these."""


def take_one(worker: int) -> None:
    """Keeps this process, and what it starts, on one core.

    Threads of several workers that wait for each other within a layer, on cores that others use,
    would make all of them several times slower.

    Args:
        worker: The number of the worker.
    """
    os.environ[_CORES] = ",".join(map(str, ALL_CORES))
    os.sched_setaffinity(0, {ALL_CORES[worker % len(ALL_CORES)]})
