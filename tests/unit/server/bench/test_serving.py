"""The serving suite, with made-up servers."""

import subprocess
import sys
import time

import psutil
import pytest

from gradcam_server.bench.bare import Calibration
from gradcam_server.bench.load import Generators
from gradcam_server.bench.serving import Plan, Subject, count_turns, measure
from support.made_up import MadeUp


def test_efficiency_is_over_the_bare_graph_of_the_same_round() -> None:
    """If the machine slows down between rounds, the efficiency and its spread stay the same."""
    speeds = iter([100.0, 50.0, 25.0])
    subject = Subject("one", {("jpeg", "unary"): MadeUp(0.02)})
    plan = Plan(concurrency=(1,), rates=(20.0,), seconds=0.4, settle_s=0.1, rounds=3)
    turns: list[str] = []
    with Generators() as generators:
        rows = measure(
            *([subject], plan, generators),
            bare=lambda: next(speeds),
            calibration=Calibration({4: 0.01}, {4: 0.02}, 4, "xla", (224, 224)),
            on_turn=turns.append,
        )
    closed, opened, server, bare = rows
    assert len(turns) == count_turns([subject], plan, with_bare=True) == 9
    assert (closed["users"], opened["requests_per_s"]) == (1, 20.0)
    assert closed["efficiency"]["count"] == 3
    expected = closed["images_per_s"]["median"] / 50
    assert closed["efficiency"]["median"] == pytest.approx(expected, rel=0.5)
    assert bare["images_per_s"]["median"] == 50.0
    assert closed["mean_batch_size"] == 2
    assert closed["failures"] == opened["failures"] == {}
    # The process of a remote server is not measured.
    assert server["memory_mib"] is server["idle_cores"] is closed["cpu"]["server_ms"] is None


def test_a_server_that_is_gone_does_not_end_the_run() -> None:
    """It is reported as unreachable, and the others are measured."""
    gone = Subject("gone", {("jpeg", "unary"): MadeUp(0.01, gone=True)})
    alive = Subject("alive", {("jpeg", "unary"): MadeUp(0.01)})
    plan = Plan(concurrency=(2,), rates=(), seconds=0.2, settle_s=0.0, rounds=2)
    with Generators(2) as generators:
        rows = measure([gone, alive], plan, generators)
    loads = {row["server"]: row for row in rows if row["kind"] == "load"}
    assert loads["gone"]["failures"] == {"unreachable": 2}
    assert loads["gone"]["images_per_s"]["median"] == 0
    assert loads["alive"]["failures"] == {}
    assert loads["alive"]["images_per_s"]["median"] > 0


def test_a_server_that_never_rests_is_stopped_in_the_turns_of_others() -> None:
    """It is suspended in the turns of others, and runs in its own turns and afterwards."""
    restless = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        process = psutil.Process(restless.pid)
        subjects = [
            Subject("restless", {("jpeg", "unary"): MadeUp(0.01)}, restless.pid),
            Subject("quiet", {("jpeg", "unary"): MadeUp(0.01)}),
        ]
        plan = Plan(concurrency=(1,), rates=(), seconds=0.3, settle_s=0.0, rounds=1)
        with Generators() as generators:
            rows = measure(
                *(subjects, plan, generators),
                bare=lambda: float(comes_to(process, stopped=True)),
                calibration=Calibration({4: 0.01}, {4: 0.02}, 4, "xla", (224, 224)),
            )
        assert rows[-1]["images_per_s"]["median"] == 1.0
        assert comes_to(process, stopped=False)
    finally:
        restless.kill()
        restless.wait()


def comes_to(process: psutil.Process, *, stopped: bool) -> bool:
    """Waits until a process is stopped, or is not; returns whether that happened."""
    deadline = time.monotonic() + 10
    while (process.status() == psutil.STATUS_STOPPED) is not stopped:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.001)
    return True
