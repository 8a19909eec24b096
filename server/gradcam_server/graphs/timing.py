"""Times executables. Free of TensorFlow."""

import math
from collections.abc import Sequence
from time import perf_counter

import numpy as np

from gradcam_server.domain.graph_io import NO_CLASS, GraphKey
from gradcam_server.graphs.executable import Array, Executable


def noise_batch(
    key: GraphKey, input_size: tuple[int, int], class_count: int, batch_size: int
) -> list[Array]:
    """Makes a batch for a graph: images of noise, and any classes. The same for the same sizes."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (batch_size, *input_size, 3), np.uint8)
    classes = random.integers(0, class_count, (batch_size, key.max_targets), np.int32)
    return [images.astype(key.pixel_type), classes, np.full_like(classes, NO_CLASS)]


def seconds_of(executable: Executable, batch: Sequence[Array]) -> float:
    """Returns the seconds of one run, from arrays to arrays."""
    began = perf_counter()
    for output in executable(*batch):
        np.asarray(output)  # waits, if the device still computes
    return perf_counter() - began


def quickest_s(
    executable: Executable, batch: Sequence[Array], max_runs: int, max_s: float = math.inf
) -> float:
    """Returns the seconds of the quickest run, after a run to warm up.

    Args:
        executable: The executable.
        batch: Its inputs.
        max_runs: How many runs are timed.
        max_s: No further run begins after so many seconds.
    """
    seconds_of(executable, batch)
    seconds: list[float] = []
    while len(seconds) < max_runs and sum(seconds) < max_s:
        seconds.append(seconds_of(executable, batch))
    return min(seconds)
