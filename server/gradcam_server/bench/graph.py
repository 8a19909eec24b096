"""The graph suite: compares implementations that compute logits and Grad-CAM maps of images.

Each candidate has a process of its own. At each batch size all candidates are prepared, checked
against the reference and timed in turns; a candidate with a wrong answer is reported, not timed.
"""

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from gradcam_server.bench.interleave import interleave
from gradcam_server.bench.payload import photograph
from gradcam_server.bench.statistics import Spread
from gradcam_server.bench.worker import Worker, WorkerError, peak_bytes

# For candidates that compute in float32, and for those with reduced precision.
_MAX_LOGITS_ERROR, _MAX_MAP_ERROR = 1e-3, 1e-2
_MIN_CORRELATION, _MIN_SAME_CLASS = 0.9, 0.8


@dataclass(frozen=True)
class Answer:
    """A candidate's answer for a batch.

    Attributes:
        logits: float32, shape (B, classes).
        maps: Grad-CAM of each image's best class at the default layer, before the ReLU,
            float32, shape (B, h, w).
    """

    logits: NDArray[np.float32]
    maps: NDArray[np.float32]


Run = Callable[[NDArray[np.uint8]], Answer]
"""Answers a batch of uint8 RGB images of the model's input size, shape (B, H, W, 3)."""


class Subject(Protocol):
    """An implementation, in its own process."""

    def build(self, batch_size: int) -> Run:
        """Prepares (compiles) for one batch size."""
        ...


@dataclass(frozen=True)
class Candidate:
    """A subject to measure.

    Attributes:
        name: Its name.
        make: Makes the subject in its own process; a function or class of a module.
        arguments: Arguments of ``make``.
        device: ``cpu`` or ``gpu``.
        exact: Whether it computes in float32, and must agree to rounding; otherwise it must agree
            as a quantised model does.
        max_batch_size: The largest batch size to measure.
        environment: Environment variables of its process.
    """

    name: str
    make: Callable[..., Subject]
    arguments: tuple[Any, ...] = ()
    device: str = "cpu"
    exact: bool = True
    max_batch_size: int = 64
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Check:
    """The difference of an answer from the reference.

    Attributes:
        logits_error: Maximum difference, over the maximum logit.
        map_error: Maximum difference of the maps of images with the same class, over the
            maximum of the image's map.
        map_correlation: Minimum correlation of these maps.
        same_class: Share of the images with the same best class, 0 to 1.
        passed: Whether the differences are small enough to time the candidate.
    """

    logits_error: float
    map_error: float
    map_correlation: float
    same_class: float
    passed: bool


def check(answer: Answer, reference: Answer, *, exact: bool) -> Check:
    """Compares an answer with the reference's.

    Raises:
        ValueError: The shapes differ.
    """
    for name in ("logits", "maps"):
        shapes = [getattr(arrays, name).shape for arrays in (answer, reference)]
        if shapes[0] != shapes[1]:
            raise ValueError(f"{name} of shape {shapes[0]}, not {shapes[1]}")
    scale = float(np.abs(reference.logits).max())
    logits_error = float(np.abs(answer.logits - reference.logits).max()) / scale
    best, true = answer.logits.argmax(axis=1), reference.logits.argmax(axis=1)
    rows = np.arange(len(best))
    same = best == true
    # If two classes are equal to rounding, either may be the best.
    gap = (reference.logits[rows, true] - reference.logits[rows, best]) / scale
    tied = gap <= 2 * _MAX_LOGITS_ERROR
    map_error = correlation = 0.0
    if same.any():
        ours, theirs = answer.maps[same], reference.maps[same]
        ranges = np.abs(theirs).max(axis=(1, 2)) + np.finfo(np.float32).tiny
        map_error = float((np.abs(ours - theirs).max(axis=(1, 2)) / ranges).max())
        pairs = zip(ours, theirs, strict=True)
        correlation = min(float(np.corrcoef(a.ravel(), b.ravel())[0, 1]) for a, b in pairs)
    share = float(same.mean())
    passed = (
        logits_error <= _MAX_LOGITS_ERROR
        and map_error <= _MAX_MAP_ERROR
        and bool((same | tied).all())
        if exact
        else correlation >= _MIN_CORRELATION and share >= _MIN_SAME_CLASS
    )
    return Check(logits_error, map_error, correlation, share, passed)


class Timed:
    """Times a subject in its own process; made in a ``Worker``.

    Args:
        make: Makes the subject.
        arguments: Arguments of ``make``.
        input_size: (height, width) of the images.
    """

    def __init__(
        self, make: Callable[..., Subject], arguments: Any, input_size: tuple[int, int]
    ) -> None:
        self._subject = make(*arguments)
        self._input_size = input_size

    def prepare(self, batch_size: int) -> tuple[float, Answer]:
        """Compiles for a batch size and runs once; returns the seconds of both, and the answer."""
        self._run = None
        gc.collect()  # frees the last batch size before the next is prepared
        self._images = pictures(batch_size, self._input_size)
        started = time.perf_counter()
        run = self._run = self._subject.build(batch_size)
        answer = run(self._images)
        return time.perf_counter() - started, answer

    def seconds(self, repeats: int) -> float:
        """Returns the median seconds of a batch, after one batch to warm up."""
        assert self._run
        times = []
        for _ in range(repeats + 1):
            started = time.perf_counter()
            self._run(self._images)
            times.append(time.perf_counter() - started)
        return float(np.median(times[1:]))

    def peak_bytes(self) -> int:
        """Returns the peak memory of the process."""
        return peak_bytes()

    def device_bytes(self) -> int | None:
        """Returns the peak memory of the accelerator; None if the subject does not say."""
        device_bytes = getattr(self._subject, "device_bytes", None)
        return None if device_bytes is None else int(device_bytes())


def pictures(count: int, input_size: tuple[int, int]) -> NDArray[np.uint8]:
    """Makes the images of a batch, the same in every process.

    Returns:
        uint8 RGB, shape (count, H, W, 3).
    """
    return np.stack([photograph(seed, input_size) for seed in range(count)])


class _Entry:
    """A candidate, its process and its failure."""

    def __init__(self, candidate: Candidate, input_size: tuple[int, int]) -> None:
        self.candidate = candidate
        self.failure = ""
        self.worker: Worker | None = None
        arguments = (candidate.make, candidate.arguments, input_size)
        try:
            self.worker = Worker(Timed, *arguments, environment=candidate.environment)
        except WorkerError as error:
            self.fail(error)

    def fail(self, error: WorkerError) -> None:
        self.failure = str(error).strip().splitlines()[-1]
        if self.worker:
            self.worker.close()
            self.worker = None


def measure(
    candidates: Sequence[Candidate],
    reference: Candidate,
    batch_sizes: Sequence[int],
    input_size: tuple[int, int],
    *,
    rounds: int,
    repeats: int = 2,
    on_step: Callable[[str], object] = lambda _: None,
) -> list[dict[str, Any]]:
    """Checks and times all candidates.

    Args:
        candidates: The candidates; ratios are over the first candidate of the same device.
        reference: The candidate whose answers are right. It is not timed.
        batch_sizes: The batch sizes.
        input_size: (height, width) of the images.
        rounds: Number of measurements of each candidate.
        repeats: Batches in one measurement, which is their median.
        on_step: Called with a description before each step.

    Returns:
        One row for each candidate and batch size.

    Raises:
        WorkerError: The reference failed.
    """
    entries = []
    rows = []
    truth = Worker(Timed, reference.make, reference.arguments, input_size)
    try:
        for candidate in candidates:
            on_step(f"starting {candidate.name}")
            entries.append(_Entry(candidate, input_size))
        for size in sorted(batch_sizes):
            _, right = truth.call("prepare", size)
            rows += _at(size, entries, right, rounds, repeats, on_step)
    finally:
        truth.close()
        for entry in entries:
            if entry.worker:
                entry.worker.close()
    return rows


def _at(
    size: int,
    entries: Sequence[_Entry],
    right: Answer,
    rounds: int,
    repeats: int,
    on_step: Callable[[str], object],
) -> list[dict[str, Any]]:
    rows, timed = {}, {}
    for entry in entries:
        candidate = entry.candidate
        if size > candidate.max_batch_size and not entry.failure:
            continue
        row: dict[str, Any] = {
            "subject": candidate.name,
            "device": candidate.device,
            "batch_size": size,
            "exact": candidate.exact,
        }
        rows[candidate.name] = row
        on_step(f"preparing {candidate.name}, batch size {size}")
        if entry.worker:
            try:
                row["prepare_s"], answer = entry.worker.call("prepare", size)
                found = check(answer, right, exact=candidate.exact)
                row["check"] = asdict(found)
                if found.passed:
                    timed[candidate.name] = entry
            except (WorkerError, ValueError) as error:
                entry.fail(WorkerError(str(error)))
        row["failure"] = entry.failure
    timers = {name: _timer(entry, repeats) for name, entry in timed.items()}
    found_s = interleave(
        timers, rounds, size, lambda name: on_step(f"timing {name}, batch size {size}")
    )
    for name, seconds in found_s.items():
        row, entry = rows[name], timed[name]
        base = next(other for other in found_s if rows[other]["device"] == row["device"])
        row["ms_per_image"] = asdict(Spread.of(np.array(seconds) / size * 1e3))
        row["ratio"] = asdict(Spread.of_ratios(seconds, found_s[base]))
        row["base"] = base
        assert entry.worker
        row["peak_mib"] = entry.worker.call("peak_bytes") / 2**20
        device = entry.worker.call("device_bytes")
        row["device_mib"] = device and device / 2**20
    return list(rows.values())


def _timer(entry: _Entry, repeats: int) -> Callable[[], float]:
    def seconds() -> float:
        assert entry.worker
        return float(entry.worker.call("seconds", repeats))

    return seconds
