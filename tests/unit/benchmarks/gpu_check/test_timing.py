"""Calls are timed as they are made: in turns, alone, or several in flight."""

import threading
import time
from collections.abc import Callable

import pytest

from gpu_check.timing import alone_ms, pipelined_rate, rates_by_turns


class Device:
    """Runs batches one after the other, each in ``seconds``; calls return at once."""

    def __init__(self, seconds: float) -> None:
        self._seconds, self._lock = seconds, threading.Lock()
        self.in_flight = self.max_in_flight = self.waited = 0

    def dispatch(self) -> Callable[[], object]:
        with self._lock:
            self.in_flight += 1
            self.max_in_flight = max(self.max_in_flight, self.in_flight)

        def wait() -> None:
            time.sleep(self._seconds)
            with self._lock:
                self.in_flight -= 1
                self.waited += 1

        return wait


def test_every_round_has_a_rate_of_each() -> None:
    """The nth rates are of one round, and a slower call has a lower rate."""
    calls = {
        "quick": (lambda: time.sleep(0.001), lambda _: None),
        "slow": (lambda: time.sleep(0.02), lambda _: None),
    }
    rates = rates_by_turns(calls, 8, rounds=3, seconds=0.02)
    assert {name: len(values) for name, values in rates.items()} == {"quick": 3, "slow": 3}
    assert min(rates["quick"]) > max(rates["slow"])


def test_a_call_alone_is_timed_with_its_wait() -> None:
    """A call that returns at once takes as long as what waits for it; the time ends the calls."""
    made: list[int] = []
    found = alone_ms(lambda: made.append(1), lambda _: time.sleep(0.01), 20, 0.0)
    assert found >= 10
    assert len(made) == 2  # one to warm up


@pytest.mark.parametrize("depth", [1, 3])
def test_no_more_batches_are_in_flight_than_allowed(depth: int) -> None:
    """All slots are used, no more, and every batch is waited for."""
    device = Device(0.002)
    rate = pipelined_rate(device.dispatch, 4, depth, 0.1)
    assert rate > 0
    assert device.max_in_flight == depth
    assert device.in_flight == 0


@pytest.mark.parametrize("in_wait", [False, True])
def test_an_error_of_either_thread_ends_the_measurement(in_wait: bool) -> None:
    """A batch that fails raises, whether its dispatch or its outputs fail; nothing hangs."""

    def fail() -> None:
        raise ValueError("as asked")

    def dispatch() -> Callable[[], object]:
        if not in_wait:
            fail()
        return fail

    with pytest.raises(ValueError, match="as asked"):
        pipelined_rate(dispatch, 1, 2, 5.0)
