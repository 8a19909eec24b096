"""Times calls that return before the device has computed: rates in rounds, and calls alone."""

import queue
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from gradcam_server.bench.interleave import interleave
from gradcam_server.bench.statistics import Spread

Call = Callable[[], Any]
"""Starts a computation; returns its outputs, which may be computed later."""

Wait = Callable[[Any], object]
"""Waits for the outputs of a call, and for all calls before it."""


class Batches(Protocol):
    """Starts a batch and returns a function that waits for it, as ``CompiledGraph.dispatch``."""

    def __call__(self) -> Callable[[], object]:
        """Starts a batch."""
        ...


def rates_by_turns(
    calls: Mapping[str, tuple[Call, Wait]], per_call: int, rounds: int, seconds: float
) -> dict[str, list[float]]:
    """Measures the throughputs of several computations in turns.

    Args:
        calls: The computations by name. Each is called once before, to warm up.
        per_call: Images of a call.
        rounds: The number of rounds.
        seconds: Duration of a turn; at least one call is made.

    Returns:
        Images per second by name, one value for each round: the nth values are of one round.
    """
    counts = {}
    for name, (call, wait) in calls.items():
        wait(call())
        alone_s = min(_alone_s(call, wait) for _ in range(2))
        counts[name] = max(1, int(seconds / alone_s))

    def turn(name: str) -> Callable[[], float]:
        call, wait = calls[name]

        def run() -> float:
            began = time.perf_counter()
            for _ in range(counts[name]):
                outputs = call()
            wait(outputs)
            return counts[name] * per_call / (time.perf_counter() - began)

        return run

    return interleave({name: turn(name) for name in calls}, rounds)


def alone_ms(call: Call, wait: Wait, count: int, seconds: float) -> float:
    """Returns the median milliseconds of calls that each wait for the call before.

    Args:
        call: The computation; the first call is not counted.
        wait: Waits for it.
        count: The number of calls.
        seconds: After this time no further call is made, but one is.
    """
    wait(call())
    end, taken = time.perf_counter() + seconds, [_alone_s(call, wait)]
    while len(taken) < count and time.perf_counter() < end:
        taken.append(_alone_s(call, wait))
    return Spread.of(taken).median * 1e3


def pipelined_rate(dispatch: Batches, per_batch: int, depth: int, seconds: float) -> float:
    """Measures batches as the engine runs them: one thread dispatches, and another waits.

    Args:
        dispatch: Starts a batch.
        per_batch: Images of a batch.
        depth: Most batches that are in flight at a time.
        seconds: The duration; a batch that has begun is waited for.

    Returns:
        Images per second.
    """
    slots = threading.Semaphore(depth)
    waiting: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
    failed: list[BaseException] = []
    began = time.perf_counter()

    def send() -> None:
        try:
            while time.perf_counter() - began < seconds and not failed:
                slots.acquire()
                waiting.put(dispatch())
        except BaseException as error:  # noqa: BLE001 - raised by the other thread
            failed.append(error)
        finally:
            waiting.put(None)

    sender = threading.Thread(target=send)
    sender.start()
    count = 0
    try:
        while (wait := waiting.get()) is not None:
            wait()
            slots.release()
            count += 1
    except BaseException as error:
        failed.append(error)
        slots.release()
        raise
    finally:
        sender.join()
    if failed:
        raise failed[0]
    return count * per_batch / (time.perf_counter() - began)


def _alone_s(call: Call, wait: Wait) -> float:
    began = time.perf_counter()
    wait(call())
    return time.perf_counter() - began
