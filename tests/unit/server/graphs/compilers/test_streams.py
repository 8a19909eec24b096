"""The number of streams is measured once and remembered; the whole CPU is always there."""

import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from gradcam_server.domain.options import AUTO, ComputeStreams
from gradcam_server.graphs.compilers import streams
from gradcam_server.graphs.compilers.streams import StreamTuner, choose, measure, rate
from gradcam_server.graphs.compilers.timing_cache import TimingCache
from gradcam_server.graphs.executable import Array, Division, Executable, Executables
from gradcam_server.graphs.threads import set_compute_threads

COST_S = {1: 1.0, 4: 3.0}


def noise(size: int) -> Sequence[Array]:
    return [np.full((size, 2, 2, 3), 7, np.uint8)] * 3


@dataclass
class Model:
    """A model that counts what it is asked for.

    Attributes:
        advised: The number of streams for 0.
        answer: What its last stream answers; all others answer 1.
        error: Raised if it is divided.
        divided: The numbers of streams that were compiled.
    """

    advised: int = 3
    answer: float = 1.0
    error: Exception | None = None
    divided: list[int] = field(default_factory=list)

    @property
    def whole(self) -> Executable:
        return lambda *_: [np.ones(4, np.float32)]

    def divide(self, count: int) -> Executables:
        if self.error:
            raise self.error
        self.divided.append(count)
        right, last = (
            partial(lambda value, *_: [np.full(4, value, np.float32)], value)
            for value in (1.0, self.answer)
        )
        return [*[right] * ((count or self.advised) - 1), last]


@pytest.fixture(autouse=True)
def speeds(monkeypatch: pytest.MonkeyPatch) -> dict[int, float]:
    """Sets 8 threads and the speeds of N streams together, relative to the whole CPU."""
    set_compute_threads(8)
    found: dict[int, float] = {1: 1.0, 2: 1.1, 3: 1.0, 4: 1.3, 8: 1.2}

    def took(executables: Executables, batch: Sequence[Array]) -> float:
        count, size = len(executables), len(batch[0])
        return COST_S[size] * count / found[count]

    monkeypatch.setattr(streams, "side_by_side_s", took)
    monkeypatch.setattr(streams, "_MAX_S", 1000.0)
    monkeypatch.setattr(streams, "_MAX_RUN_S", 1000.0)
    return found


@pytest.fixture(autouse=True)
def _threads_as_before() -> object:
    yield
    set_compute_threads(None)


def divide(
    model: Model, wanted: ComputeStreams = AUTO, cache: TimingCache | None = None
) -> Division:
    return StreamTuner("m", wanted, cache).divide("graph", model, COST_S, noise)


def test_the_fastest_number_of_streams_is_chosen(caplog: pytest.LogCaptureFixture) -> None:
    """Of 8, 4 and 2 streams on 8 threads; a log line has the images per second of each."""
    model = Model()
    with caplog.at_level(logging.INFO):
        division = divide(model)
    assert len(division.executables) == 4
    assert model.divided == [8, 4, 2, 4]
    (line,) = caplog.messages
    assert line.startswith("Streams of m once images wait: 4, each with 2 of 8 threads; ")
    assert line.endswith("1: 1.3, 2: 1.5, 4: 1.7, 8: 1.6")
    assert division.cost_s == pytest.approx({1: 4 / 1.3, 4: 12 / 1.3})


def test_of_equally_fast_numbers_the_most_streams_are_chosen(speeds: dict[int, float]) -> None:
    """Their threads wait the least for each other beside other work of the machine."""
    speeds |= {1: 1.0, 2: 0.99, 4: 0.97, 8: 0.9}
    assert len(divide(Model()).executables) == 4


def test_the_whole_cpu_is_kept_where_streams_are_slower(speeds: dict[int, float]) -> None:
    """Then no model is compiled a second time to stay."""
    speeds |= {2: 0.9, 4: 0.8, 8: 0.7}
    model = Model()
    assert divide(model) == Division()
    assert model.divided == [8, 4, 2]


@pytest.mark.parametrize(
    ("threads", "counts"),
    [(1, []), (2, [2]), (3, [3]), (6, [6, 3]), (8, [8, 4, 2]), (64, [64, 32, 16])],
)
def test_candidates_have_one_two_or_four_threads(
    speeds: dict[int, float], threads: int, counts: list[int]
) -> None:
    """Few are measured, however many cores there are; on one core there is nothing to choose."""
    set_compute_threads(threads)
    speeds |= dict.fromkeys((2, 3, 4, 6, 8, 16, 32, 64), 0.5)
    model = Model()
    divide(model)
    assert model.divided == counts


@pytest.mark.parametrize(("wanted", "count"), [(2, 2), (8, 8), (0, 3)])
def test_a_number_of_the_settings_is_kept(
    speeds: dict[int, float], wanted: int, count: int
) -> None:
    """It is not compared with others, even if the whole CPU is faster; 0 asks the library."""
    speeds |= dict.fromkeys((2, 3, 8), 0.5)
    model = Model()
    assert len(divide(model, wanted).executables) == count
    assert set(model.divided) <= {wanted, count}


def test_one_stream_measures_nothing() -> None:
    """--compute-streams 1 is the whole CPU alone."""
    model = Model(error=RuntimeError("must not be asked"))
    assert divide(model, 1) == Division()


def test_times_are_remembered_across_processes(tmp_path: Path, speeds: dict[int, float]) -> None:
    """A later start compiles the chosen number alone; with other threads it measures again."""
    cache = TimingCache(tmp_path / "times.json")
    first = divide(Model(), AUTO, cache)
    speeds |= {4: 0.1}
    again = Model()
    second = divide(again, AUTO, cache)
    assert again.divided == [4]
    assert second.cost_s == first.cost_s
    set_compute_threads(4)
    other = Model()
    divide(other, AUTO, cache)
    assert other.divided[:2] == [4, 2]


def test_further_graphs_of_a_model_have_the_streams_of_the_first(
    speeds: dict[int, float],
) -> None:
    """A graph that is compiled while the server is busy is not measured beside that load."""
    tuner, second = StreamTuner("m", AUTO), Model()
    tuner.divide("first", Model(), COST_S, noise)
    speeds |= {2: 9.0}
    division = tuner.divide("second", second, {1: 2.0}, noise)
    assert second.divided == [4]
    assert division.cost_s == pytest.approx({1: 8 / 1.3})


@pytest.mark.parametrize(
    ("model", "reason"),
    [(Model(error=RuntimeError("no memory")), "no memory"), (Model(answer=2.0), "answers differ")],
)
@pytest.mark.parametrize("wanted", [AUTO, 2, 0])
def test_streams_that_fail_leave_the_whole_cpu(
    model: Model, reason: str, wanted: ComputeStreams, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever the library raises, or if its streams give other answers: a warning says why."""
    assert divide(model, wanted) == Division()
    assert reason in caplog.text


@pytest.mark.parametrize("max_s", [0.0, 50.0, 105.0])
def test_large_batches_are_left_out_if_they_take_too_long(
    monkeypatch: pytest.MonkeyPatch, max_s: float
) -> None:
    """The smallest size is always measured; the costs of the others are in proportion."""
    monkeypatch.setattr(streams, "_MAX_S", max_s)
    times = measure(Model(), [4], COST_S, noise)
    assert set(times) == {(1, 1), (4, 1), *([(1, 4), (4, 4)] if max_s == 105 else [])}
    monkeypatch.setattr(streams, "_MAX_S", 0.0)
    cost_s = divide(Model()).cost_s
    assert cost_s[4] / cost_s[1] == pytest.approx(COST_S[4] / COST_S[1])


def test_a_quiet_moment_makes_no_size_seem_cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every other moment the CPU is half as fast: a short run alone would escape that."""
    turn = 0

    def took(executables: Executables, batch: Sequence[Array]) -> float:
        nonlocal turn
        size, seconds = len(batch[0]), 0.0
        for _ in range(size):  # each image takes a moment
            turn += 1
            seconds += len(executables) * (1.0 + turn % 2)
        return seconds

    monkeypatch.setattr(streams, "side_by_side_s", took)
    times = measure(Model(), [4], {1: 1.0, 4: 4.0}, noise)
    assert times[4, 4] == pytest.approx(4 * times[4, 1])


def test_no_request_waits_long_for_a_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    """A size whose run takes longer than the limit is left out, but the smallest."""
    for limit, sizes in ((0.1, {1}), (11.9, {1}), (12.0, {1, 4})):
        monkeypatch.setattr(streams, "_MAX_RUN_S", limit)
        assert {size for _, size in measure(Model(), [4], COST_S, noise)} == sizes


def test_the_costs_of_the_graph_that_is_measured_are_those_measured() -> None:
    """However wrong the costs that an export brought; other graphs keep their proportions."""
    tuner, wrong = StreamTuner("m", AUTO), {1: 1.0, 4: 0.5, 8: 1.0}
    times = {1: 4 / 1.3, 4: 12 / 1.3}
    measured = tuner.divide("first", Model(), {1: 1.0, 4: 0.5}, noise)
    assert measured.cost_s == pytest.approx(times)
    assert measured.is_measured
    other = tuner.divide("second", Model(), wrong, noise)
    assert not other.is_measured
    assert other.cost_s == pytest.approx({size: 4 / 1.3 * wrong[size] for size in wrong})


def test_the_best_batch_size_counts() -> None:
    """Where batches are much cheaper than single images, the whole CPU may win with them."""
    times = {(1, 1): 1.0, (1, 8): 2.0, (2, 1): 1.0, (2, 8): 8.0}
    assert (rate(times, 1), rate(times, 2)) == (4.0, 2.0)
    assert choose(times) == 1
    assert choose(times, must_divide=True) == 2


def test_the_thread_beside_the_measurement_ends() -> None:
    """No work is left behind when the server begins to serve."""
    before = threading.active_count()
    measure(Model(), [2], COST_S, noise)
    assert threading.active_count() == before
