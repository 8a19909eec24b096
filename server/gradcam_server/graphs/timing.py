"""Times executables. Free of TensorFlow."""

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter

import numpy as np

from gradcam_server.domain.graph_io import NO_CLASS, GraphKey
from gradcam_server.graphs.executable import Array, Executable

# A shorter run is repeated.
_SHORT_S = 0.01
# Runs of a batch size in one turn, at most.
_MAX_RUNS = 8


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


def side_by_side_s(executables: Sequence[Executable], batch: Sequence[Array]) -> float:
    """Returns the seconds in which all executables run a batch at the same time, once each.

    Short runs are repeated: starting threads must not count.
    """
    with ThreadPoolExecutor(len(executables)) as threads:

        def run(times: int) -> float:
            def work(executable: Executable) -> None:
                for _ in range(times):
                    seconds_of(executable, batch)

            began = perf_counter()
            list(threads.map(work, executables))
            return (perf_counter() - began) / times

        took = run(1)
        return took if took > _SHORT_S else run(math.ceil(_SHORT_S / max(took, _SHORT_S / 100)))


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


def seconds_by_size(
    executables: Mapping[int, Executable],
    make_batch: Callable[[int], Sequence[Array]],
    turns: int = 2,
) -> dict[int, float]:
    """Times batch sizes against each other, after a run of each to warm up.

    Other work of the machine always falls on a long run, while the quickest of a few short runs
    escapes it: then large batches would seem to cost more for each image than they do. So the sizes
    take turns, and in each turn compute about as many images.

    Args:
        executables: Executables by batch size.
        make_batch: Makes inputs for a batch size.
        turns: The number of turns of each size.

    Returns:
        The seconds of a run of each size, the mean of its quickest turn.
    """
    largest = max(executables)
    best = dict.fromkeys(executables, math.inf)
    for turn in range(turns):
        for size, executable in executables.items():
            batch = make_batch(size)
            if not turn:
                seconds_of(executable, batch)
            runs = min(largest // size, _MAX_RUNS)
            took = sum(seconds_of(executable, batch) for _ in range(runs)) / runs
            best[size] = min(best[size], took)
    return best
