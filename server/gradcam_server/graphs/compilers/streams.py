"""Streams: batches that a CPU computes side by side, each on a part of its threads.

All threads of a batch wait for each other in every layer, and beside any other work (decoding,
rendering, another process) the slowest thread sets the pace of all. Streams of few threads wait
less, but one image alone takes longer in a stream. So a graph has both: the whole CPU for few
images, and streams once more images wait.

The number of streams is measured once for each model, by the first of its graphs, and remembered.
The whole CPU may answer requests meanwhile: what is timed runs between its batches.
"""

import hashlib
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import product
from typing import Protocol, runtime_checkable

import numpy as np

from gradcam_server.domain.options import AUTO, ComputeStreams
from gradcam_server.errors import quote
from gradcam_server.graphs.compilers.timing_cache import TimingCache
from gradcam_server.graphs.executable import (
    Array,
    Division,
    Executable,
    Executables,
    RunAlone,
    at_once,
    check_alike,
)
from gradcam_server.graphs.threads import compute_threads
from gradcam_server.graphs.timing import side_by_side_s

logger = logging.getLogger(__name__)

Times = Mapping[tuple[int, int], float]
"""Seconds in which each of N streams runs a batch, by N and batch size; 1 is the whole CPU."""

# The candidates: streams of so many threads.
_THREADS_OF_EACH = (1, 2, 4)
_MIN_ROUNDS, _MAX_ROUNDS = 3, 8
# Runs of a batch size in a round, at most.
_MAX_RUNS = 8
# What is measured in all, about, and the longest run, for which a request may have to wait.
_MAX_S = 5.0
_MAX_RUN_S = 0.5
# Of candidates that are about equally fast, the one with the most streams is chosen: its threads
# wait the least for each other, so it keeps its speed beside other work.
_TOLERANCE = 0.05

# The work beside the measurement takes about a quarter of a core, as decoding and rendering do.
_BUSY_BYTES = bytes(2 << 20)
_PAUSE_S = 0.008


@runtime_checkable
class Divisible(Protocol):
    """A model that runs on the whole CPU or in streams, with batches of any size."""

    @property
    def whole(self) -> Executable:
        """Runs a batch on all threads."""
        ...

    def divide(self, streams: int) -> Executables:
        """Returns an executable for each stream; for 0, as many as the library advises."""
        ...


class StreamTuner:
    """Chooses the streams of a model. Its methods may be called from several threads.

    Args:
        model: The model's name, for the log.
        wanted: The number of streams; 0 for as many as the library advises, ``AUTO`` for the
            fastest.
        timing_cache: Keeps the measured times across processes.
    """

    def __init__(
        self, model: str, wanted: ComputeStreams, timing_cache: TimingCache | None = None
    ) -> None:
        self._model, self._wanted, self._timing_cache = model, wanted, timing_cache
        self._lock = threading.Lock()
        self._chosen: tuple[int, Times] | None = None
        self._measured = ""  # the graph that was

    def divide(
        self,
        name: str,
        model: Divisible,
        cost_s: Mapping[int, float],
        make_batch: Callable[[int], Sequence[Array]],
        run_alone: RunAlone = at_once,
    ) -> Division:
        """Compiles the streams of a graph; the first graph decides how many.

        If they cannot be compiled or give other answers, there are none, and a warning says why.

        Args:
            name: The name of the graph and all that its times depend on, for the cache.
            model: The graph.
            cost_s: Seconds that a batch of each size takes on the whole CPU.
            make_batch: Makes inputs for a batch size.
            run_alone: Runs each step that is timed, and each that uses the whole CPU's executable.

        Raises:
            concurrent.futures.CancelledError: ``run_alone`` runs nothing more.
        """
        with self._lock:
            try:
                if self._chosen is None:
                    self._chosen = self._choose(name, model, cost_s, make_batch, run_alone)
                    self._measured = name
                count, times = self._chosen
                if count == 1:
                    return Division()
                executables = model.divide(count)
                _check(model.whole, executables, make_batch(min(cost_s)), run_alone)
            except CancelledError:
                raise
            except Exception as error:  # noqa: BLE001 - the whole CPU is always there
                logger.warning("%s has no streams: %s", self._model, quote(error))
                self._chosen = 1, {}
                return Division()
        is_measured = name == self._measured
        sizes = sorted(size for streams, size in times if streams == count)
        # Of another graph only is known how much slower a stream is than the whole CPU.
        whole_s = cost_s if is_measured else {size: times[1, size] for size in sizes}
        factors = [times[count, size] / whole_s[size] for size in sizes]
        return Division(
            executables,
            {size: float(np.interp(size, sizes, factors)) * took for size, took in cost_s.items()},
            is_measured,
        )

    def _choose(
        self,
        name: str,
        model: Divisible,
        cost_s: Mapping[int, float],
        make_batch: Callable[[int], Sequence[Array]],
        run_alone: RunAlone,
    ) -> tuple[int, Times]:
        """Returns the number of streams, and the times of batches in them and on the whole CPU."""
        threads = compute_threads()
        counts = _candidates(self._wanted, threads)
        if not counts:
            return 1, {}
        key = repr(("streams by turns", name, counts, threads, sorted(cost_s)))
        times = _read(self._timing_cache.get(key)) if self._timing_cache else {}
        is_cached = bool(times)
        if not is_cached:
            times = measure(model, counts, cost_s, make_batch, run_alone)
            if self._timing_cache:
                found = {f"{count}x{size}": took for (count, size), took in times.items()}
                self._timing_cache.put(key, found)
        count = choose(times, must_divide=self._wanted != AUTO)
        rates = {streams: rate(times, streams) for streams in sorted({n for n, _ in times})}
        logger.info(
            "Streams of %s once images wait: %d, each with %d of %d threads%s; images/s by "
            "streams: %s",
            *(self._model, count, max(threads // count, 1), threads),
            " (measured before)" if is_cached else "",
            ", ".join(f"{streams}: {speed:.1f}" for streams, speed in rates.items()),
        )
        return count, times


def measure(
    model: Divisible,
    counts: Sequence[int],
    cost_s: Mapping[int, float],
    make_batch: Callable[[int], Sequence[Array]],
    run_alone: RunAlone = at_once,
) -> dict[tuple[int, int], float]:
    """Times the whole CPU and its streams in turns, all streams at the same time.

    So other load of the machine falls on all alike. As in ``seconds_by_size``, all sizes compute
    about as many images in a round: the quickest of a few short runs would escape that load, and
    large batches would seem to cost more than they do. Larger sizes are left out if they take too
    long.

    Args:
        model: The model.
        counts: Numbers of streams.
        cost_s: Seconds that a batch of each size takes on the whole CPU.
        make_batch: Makes inputs for a batch size.
        run_alone: Runs each timed run: a request waits for one of them at most.

    Returns:
        ``Times``.
    """
    times: dict[tuple[int, int], float] = {}
    batches = {size: make_batch(size) for size in sorted(cost_s)}
    smallest = min(batches)
    for wanted in counts:
        streams = model.divide(wanted)
        candidates: list[tuple[int, Executables]] = [(1, [model.whole]), (len(streams), streams)]
        side_by_side_s(streams, batches[smallest])  # the first run prepares
        sizes, rounds = _plan(cost_s, len(streams), _MAX_S / len(counts))
        for _, size, (count, executables) in product(range(rounds), sizes, candidates):
            runs = _runs(size, sizes)
            run = partial(_beside_work_s, executables, batches[size])
            took = sum(run_alone(run) for _ in range(runs)) / runs
            times[count, size] = min(took, times.get((count, size), took))
    return times


def _plan(cost_s: Mapping[int, float], streams: int, max_s: float) -> tuple[list[int], int]:
    """Returns the batch sizes to measure, at least the smallest, and the number of rounds."""
    sizes: list[int] = []
    for size in sorted(cost_s):
        run_s = cost_s[size] * streams
        longer_s = _round_s([*sizes, size], cost_s, streams)
        if sizes and (_MIN_ROUNDS * longer_s > max_s or run_s > _MAX_RUN_S):
            break
        sizes.append(size)
    rounds = int(max_s / _round_s(sizes, cost_s, streams))
    return sizes, min(max(rounds, _MIN_ROUNDS), _MAX_ROUNDS)


def _round_s(sizes: Sequence[int], cost_s: Mapping[int, float], streams: int) -> float:
    """Returns the seconds of a round, in which the streams compute as much as the CPU each."""
    return sum(_runs(size, sizes) * cost_s[size] * (1 + streams) for size in sizes)


def _runs(size: int, sizes: Sequence[int]) -> int:
    """Returns how often a size runs in a round."""
    return min(max(sizes) // size, _MAX_RUNS)


def _beside_work_s(executables: Executables, batch: Sequence[Array]) -> float:
    """Returns the seconds of ``side_by_side_s`` beside work that needs no graph."""
    with working_beside():
        return side_by_side_s(executables, batch)


def rate(times: Times, streams: int) -> float:
    """Returns the images per second of all streams together, at their best batch size."""
    return max(n * size / took for (n, size), took in times.items() if n == streams)


def choose(times: Times, must_divide: bool = False) -> int:
    """Chooses the number of streams: the most of those that are about as fast as the fastest.

    Args:
        times: The times.
        must_divide: Whether the whole CPU is no choice, if there is another.
    """
    rates = {streams: rate(times, streams) for streams, _ in times}
    if must_divide and len(rates) > 1:
        del rates[1]
    fastest = max(rates.values())
    return max(streams for streams, speed in rates.items() if speed >= (1 - _TOLERANCE) * fastest)


def _check(
    whole: Executable, streams: Executables, batch: Sequence[Array], run_alone: RunAlone
) -> None:
    """Compares the answers of the streams with the whole CPU's. Their first runs prepare them.

    Raises:
        ValueError: The answers differ.
    """
    expected = run_alone(partial(whole, *batch))
    with ThreadPoolExecutor(len(streams)) as threads:
        for answers in threads.map(lambda stream: stream(*batch), streams):
            check_alike(expected, answers)


def _candidates(wanted: ComputeStreams, threads: int) -> tuple[int, ...]:
    """Returns the numbers of streams to measure, the whole CPU not counted."""
    if wanted != AUTO:
        return () if wanted == 1 else (wanted,)
    counts = (threads // of_each for of_each in _THREADS_OF_EACH)
    return tuple(count for count in dict.fromkeys(counts) if count > 1)


def _read(cached: Mapping[str, float] | None) -> dict[tuple[int, int], float]:
    found = {}
    for name, took in (cached or {}).items():
        streams, _, size = name.partition("x")
        found[int(streams), int(size)] = took
    return found


@contextmanager
def working_beside() -> Iterator[None]:
    """Keeps a thread busy for a part of the time, without Python's lock, as OpenCV decodes."""
    done = threading.Event()

    def work() -> None:
        while not done.wait(_PAUSE_S):
            hashlib.sha256(_BUSY_BYTES).digest()

    worker = threading.Thread(target=work, name="work-beside", daemon=True)
    worker.start()
    try:
        yield
    finally:
        done.set()
        worker.join()
