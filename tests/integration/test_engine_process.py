"""The engine in its own process: killed, hung, replaced, under a real server."""

import os
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from gradcam_client import (
    Client,
    DeadlineExceededError,
    ImageExplanation,
    OverloadedError,
    RetryPolicy,
    UnavailableError,
)
from support.exported_model import exported_model
from support.server import RunningServer, quick

ONCE = RetryPolicy(max_attempts=1)
TOP = {"cat": 285, "espresso": 967}


@pytest.fixture
def server() -> Iterator[RunningServer]:
    running = RunningServer(*quick(), "--watchdog-s", "3", "--http-port", "0")
    try:
        yield running.wait_ready()
        assert "Traceback" not in running.text, running.text
    finally:
        running.kill()


def shared_memories(server: RunningServer) -> int:
    """Returns the number of memory mappings that the front end shares with engines."""
    maps = Path(f"/proc/{server.pid}/maps").read_text("ascii")
    return maps.count("/memfd:gradcam-images")


def test_an_engine_that_is_killed_loses_no_request_that_is_retried(
    server: RunningServer, images: Path
) -> None:
    """After kill -9 under load, every unary and streamed request gets its own answer."""
    photos = {name: (images / f"{name}.jpg").read_bytes() for name in TOP}
    names = [list(TOP)[number % 2] for number in range(600)]
    (old,) = server.engines()

    def kill() -> None:
        time.sleep(0.7)
        old.kill()

    killer = threading.Thread(target=kill)
    killer.start()
    with Client(server.address, timeout_s=120) as client, ThreadPoolExecutor(16) as pool:
        unary = [pool.submit(client.explain, photos[name]) for name in names[:300]]
        streamed = list(client.explain_stream(photos[name] for name in names[300:]))
        answers: list[ImageExplanation] = [one.result() for one in unary]
        answers += [one.unwrap() for one in streamed]
    killer.join()
    assert [answer.top.index for answer in answers] == [TOP[name] for name in names]
    assert "killed by SIGKILL" in server.text
    assert "The engine is back" in server.text
    (new,) = server.engines()
    assert new.pid != old.pid
    assert shared_memories(server) == 1  # the old engine's mapping is gone
    print(f"{len(answers)} answers, all right, over one kill -9")


def test_a_lost_engine_flips_health_and_says_when_to_come_again(
    server: RunningServer, cat_jpeg: bytes
) -> None:
    """Without retries the error is UNAVAILABLE with RetryInfo, until the engine is back."""
    with Client(server.address, retry=ONCE) as client:
        (engine,) = server.engines()
        engine.kill()
        engine.wait()
        with pytest.raises(UnavailableError) as caught:
            client.explain(cat_jpeg)
        assert caught.value.retry_after_s is not None
        assert caught.value.retry_after_s > 0.5
        assert client.health() == "NOT_SERVING"
        client.wait_ready(60)
        assert client.explain(cat_jpeg).top.index == 285


def test_an_engine_that_hangs_is_killed(server: RunningServer, cat_jpeg: bytes) -> None:
    """The watchdog kills a silent engine; the next engine answers the waiting requests."""
    (engine,) = server.engines()
    # On a busy machine an engine takes longer to start than the one before it did.
    patient = RetryPolicy(max_attempts=10)
    with Client(server.address, timeout_s=90, retry=patient) as client:
        os.kill(engine.pid, signal.SIGSTOP)
        assert client.explain(cat_jpeg).top.index == 285
    assert "nothing was heard of it" in server.text


def test_a_server_that_is_out_of_descriptors_heals_when_there_are_some_again(
    server: RunningServer, cat_jpeg: bytes
) -> None:
    """A reload fails and the old engine continues; a lost engine is restarted until it starts."""
    process = psutil.Process(server.pid)
    limits = process.rlimit(psutil.RLIMIT_NOFILE)
    with Client(server.address, timeout_s=60) as client:
        assert client.explain(cat_jpeg).top.index == 285
        process.rlimit(psutil.RLIMIT_NOFILE, (3, limits[1]))
        try:
            server.send_signal(signal.SIGHUP)
            server.wait_for("the old models go on: no file descriptors left (EMFILE)")
            assert client.explain(cat_jpeg).top.index == 285
            (engine,) = server.engines()
            engine.kill()
            server.wait_for("The engine cannot be started: no file descriptors left (EMFILE)")
            assert client.health() == "NOT_SERVING"
        finally:
            process.rlimit(psutil.RLIMIT_NOFILE, limits)
        client.wait_ready(60)
        assert client.explain(cat_jpeg).top.index == 285


def test_what_is_too_late_takes_no_device_time(server: RunningServer, cat_jpeg: bytes) -> None:
    """Requests whose deadlines pass while the engine is stopped never get into a batch.

    The last of them may be refused at once, because of the work before them.
    """
    (engine,) = server.engines()

    def compute(client: Client) -> None:
        with pytest.raises((DeadlineExceededError, OverloadedError)):
            client.explain(cat_jpeg, timeout_s=0.4)

    with Client(server.address, retry=ONCE) as client, ThreadPoolExecutor(8) as pool:
        client.explain(cat_jpeg)
        before = server.metric("gradcam_batched_images_total")
        engine.suspend()
        late = [pool.submit(compute, client) for _ in range(8)]
        for one in late:
            one.result()
        engine.resume()
        assert client.explain(cat_jpeg).top.index == 285
        assert server.metric("gradcam_batched_images_total") == before + 1


def test_a_reload_under_load_drops_no_request(server: RunningServer, cat_jpeg: bytes) -> None:
    """SIGHUP replaces the engine; no request fails or waits for the new one."""
    (old,) = server.engines()
    stop = threading.Event()
    outcomes: Counter[str] = Counter()

    def ask() -> None:
        with Client(server.address, retry=ONCE) as client:
            while not stop.is_set():
                try:
                    found = str(client.explain(cat_jpeg).top.index)
                except Exception as error:  # noqa: BLE001 - counted
                    found = repr(error)
                outcomes[found] += 1

    def is_replaced() -> bool:
        return "Reloaded" in server.text and old not in server.engines()

    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(ask) for _ in range(4)]
        server.send_signal(signal.SIGHUP)
        deadline = time.monotonic() + 60
        while not is_replaced() and time.monotonic() < deadline:
            time.sleep(0.1)
        stop.set()
        for one in asking:
            one.result()
    assert is_replaced()
    assert shared_memories(server) == 1
    assert set(outcomes) == {"285"}
    assert len(server.engines()) == 1
    print(f"{outcomes.total()} answers during a reload, all right")


def test_a_reload_that_fails_keeps_the_old_models(tmp_path: Path, cat_jpeg: bytes) -> None:
    """The log has the reason, and requests are answered as before; after a repair it succeeds."""
    file = tmp_path / "gradcam.toml"
    export = f"path = '{exported_model()}'\n"
    file.write_text(f"[[models]]\nname = 'efficientnet-lite0'\n{export}")
    server = RunningServer("--config", str(file), "--batch-sizes", "1,4")
    try:
        server.wait_ready()
        with Client(server.address, retry=ONCE) as client:
            file.write_text("[[models]]\nname = 'mine'\npath = 'nowhere.keras'")
            server.send_signal(signal.SIGHUP)
            server.wait_for("Reloading failed, the old models go on")
            assert re.search("Reloading failed.*nowhere.keras", server.text)
            assert client.explain(cat_jpeg).model == "efficientnet-lite0"
            file.write_text(
                f"[[models]]\nname = 'mine'\nversion = '2'\n{export}"
                "[[models]]\nname = 'mine'\nversion = '1'\npath = 'efficientnet-lite0'\n"
                "weights = 'random'"
            )
            server.send_signal(signal.SIGHUP)
            server.wait_for("INFO gradcam_server.serving.reloading: Reloaded")
            newest = client.explain(cat_jpeg)
            assert (newest.model, newest.model_version, newest.top.index) == ("mine", "2", 285)
            older = client.explain(cat_jpeg, model="mine", model_version="1")
            assert (older.model_version, older.top.index != 285) == ("1", True)
            assert [one.version for one in client.list_models()] == ["2", "1"]
    finally:
        server.kill()


def test_the_engine_never_outlives_the_server() -> None:
    """After kill -9 of the server no engine remains, whether it was warming up or serving."""
    for wait in (False, True):
        server = RunningServer(*quick())
        try:
            if wait:
                server.wait_ready()
            else:
                server.wait_for("warming up")
                time.sleep(1)
            children = server.engines()
            assert len(children) == 1
        finally:
            server.kill()
        gone, alive = psutil.wait_procs(children, timeout=20)
        assert (len(gone), alive) == (1, [])
