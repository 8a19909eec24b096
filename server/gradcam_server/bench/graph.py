"""The graph suite: ways from images to logits and Grad-CAM maps, one beside the other.

Each candidate is in a process of its own. At each batch size all are prepared, checked against
the reference and then timed in turns; one whose answer is wrong is reported and not timed.
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

_EXACT_LOGITS = 1e-3
_EXACT_MAPS = 1e-2
_CLOSE_CORRELATION = 0.9
_CLOSE_CLASSES = 0.8


@dataclass(frozen=True)
class Answer:
    """What a candidate finds in a batch.

    Attributes:
        logits: float32, shape (B, classes).
        maps: Grad-CAM of each image's best class at the default layer, before the ReLU,
            float32, shape (B, h, w).
    """

    logits: NDArray[np.float32]
    maps: NDArray[np.float32]


Run = Callable[[NDArray[np.uint8]], Answer]
"""From uint8 RGB of the model's input size, shape (B, H, W, 3)."""


class Subject(Protocol):
    """A way to the answer, in its process."""

    def build(self, batch_size: int) -> Run:
        """Compiles, or what else it needs, for one batch size."""
        ...


@dataclass(frozen=True)
class Candidate:
    """A subject to be made.

    Attributes:
        name: Its name.
        make: Makes it in its own process; a function or class of a module.
        arguments: Its arguments.
        device: ``cpu`` or ``gpu``.
        exact: Whether it computes in float32, and must agree to rounding; else it must agree
            as a quantised model does.
        max_batch_size: The largest batch size that is worth its time.
        environment: Variables of its process.
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
    """How far an answer is from the reference.

    Attributes:
        logits_error: Greatest difference, over the greatest logit.
        map_error: Greatest difference of the maps of images with the same class, over the
            greatest value of the image's map.
        map_correlation: Least correlation of their maps.
        same_class: Share of the images with the same best class.
        passed: Whether it may be timed.
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
        shapes = [getattr(one, name).shape for one in (answer, reference)]
        if shapes[0] != shapes[1]:
            raise ValueError(f"{name} of shape {shapes[0]}, not {shapes[1]}")
    scale = float(np.abs(reference.logits).max())
    logits_error = float(np.abs(answer.logits - reference.logits).max()) / scale
    best, true = answer.logits.argmax(axis=1), reference.logits.argmax(axis=1)
    rows = np.arange(len(best))
    same = best == true
    # Of two classes that are equal to rounding, either is right.
    gap = (reference.logits[rows, true] - reference.logits[rows, best]) / scale
    tied = gap <= 2 * _EXACT_LOGITS
    map_error = correlation = 0.0
    if same.any():
        ours, theirs = answer.maps[same], reference.maps[same]
        ranges = np.abs(theirs).max(axis=(1, 2)) + np.finfo(np.float32).tiny
        map_error = float((np.abs(ours - theirs).max(axis=(1, 2)) / ranges).max())
        pairs = zip(ours, theirs, strict=True)
        correlation = min(float(np.corrcoef(a.ravel(), b.ravel())[0, 1]) for a, b in pairs)
    share = float(same.mean())
    passed = (
        logits_error <= _EXACT_LOGITS and map_error <= _EXACT_MAPS and bool((same | tied).all())
        if exact
        else correlation >= _CLOSE_CORRELATION and share >= _CLOSE_CLASSES
    )
    return Check(logits_error, map_error, correlation, share, passed)


class Timed:
    """A subject in its own process; for a ``Worker``.

    Args:
        make: Makes the subject.
        arguments: Its arguments.
        input_size: (height, width) of the images.
    """

    def __init__(
        self, make: Callable[..., Subject], arguments: Any, input_size: tuple[int, int]
    ) -> None:
        self._subject = make(*arguments)
        self._input_size = input_size

    def prepare(self, batch_size: int) -> tuple[float, Answer]:
        """Compiles for a batch size; returns the seconds it took with the first run, and it."""
        self._run = None
        gc.collect()  # the last batch size goes before the next one comes
        self._images = pictures(batch_size, self._input_size)
        started = time.perf_counter()
        run = self._run = self._subject.build(batch_size)
        answer = run(self._images)
        return time.perf_counter() - started, answer

    def seconds(self, repeats: int) -> float:
        """Returns the median time of a batch, after one that does not count."""
        assert self._run
        times = []
        for _ in range(repeats + 1):
            started = time.perf_counter()
            self._run(self._images)
            times.append(time.perf_counter() - started)
        return float(np.median(times[1:]))

    def peak_bytes(self) -> int:
        """Returns the most memory that the process ever had."""
        return peak_bytes()

    def device_bytes(self) -> int | None:
        """Returns the most memory of the accelerator, if the subject can tell."""
        tell = getattr(self._subject, "device_bytes", None)
        return None if tell is None else int(tell())


def pictures(count: int, input_size: tuple[int, int]) -> NDArray[np.uint8]:
    """Makes the images of a batch, the same in every process.

    Returns:
        uint8 RGB, shape (count, H, W, 3).
    """
    return np.stack([photograph(seed, input_size) for seed in range(count)])


class _Entry:
    """A candidate, its process and what was found."""

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
        candidates: The candidates; the first of a device is what ratios refer to.
        reference: What says which answers are right. It is not timed.
        batch_sizes: In ascending order.
        input_size: (height, width) of the images.
        rounds: How often each candidate has its turn.
        repeats: Batches of one turn; their median is its value.
        on_step: Told what comes.

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
    turns = {name: _turn(entry, repeats) for name, entry in timed.items()}
    found_s = interleave(
        turns, rounds, size, lambda name: on_step(f"timing {name}, batch size {size}")
    )
    for name, seconds in found_s.items():
        row, entry = rows[name], timed[name]
        base = next(one for one in found_s if rows[one]["device"] == row["device"])
        row["ms_per_image"] = asdict(Spread.of(np.array(seconds) / size * 1e3))
        row["ratio"] = asdict(Spread.of_ratios(seconds, found_s[base]))
        row["base"] = base
        assert entry.worker
        row["peak_mib"] = entry.worker.call("peak_bytes") / 2**20
        device = entry.worker.call("device_bytes")
        row["device_mib"] = device and device / 2**20
    return list(rows.values())


def _turn(entry: _Entry, repeats: int) -> Callable[[], float]:
    def turn() -> float:
        assert entry.worker
        return float(entry.worker.call("seconds", repeats))

    return turn
