"""Several front ends on one port with one engine behave like one front end."""

import http.client
import json
import os
import signal
import subprocess
import threading
import time
import urllib.parse
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from gradcam_client import Client, RetryPolicy, UnavailableError
from support.server import GRADCAM, RunningServer, quick

COUNT = 3
CONNECTIONS = 16
TOP = {"cat": 285, "espresso": 967}
ONCE = RetryPolicy(max_attempts=1)
OPTIONS = ("--frontends", str(COUNT), "--http-port", "0")


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    running = RunningServer(*quick(), *OPTIONS)
    try:
        yield running.wait_ready()
    finally:
        running.kill()


def others(server: RunningServer) -> list[psutil.Process]:
    """Returns the front-end processes beside the first."""
    children = psutil.Process(server.pid).children()
    alive = [one for one in children if one.status() != psutil.STATUS_ZOMBIE]
    return [one for one in alive if "gradcam_server.serving.front_ends.main" in one.cmdline()]


def wait_until(what: str, is_so: object, timeout_s: float = 60) -> None:
    """Waits until a condition holds."""
    assert callable(is_so)
    deadline = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def all_complete(server: RunningServer) -> bool:
    """Returns whether all front ends listen, by the server's own metrics."""
    return len(others(server)) == COUNT - 1 and server.metric("gradcam_front_ends") == COUNT


def connections(process: psutil.Process) -> int:
    """Returns the number of clients connected to a process."""
    return sum(one.status == psutil.CONN_ESTABLISHED for one in process.net_connections("tcp"))


def test_connections_are_spread_and_all_are_answered(server: RunningServer, images: Path) -> None:
    """Unary calls and streams over many connections get their own answers; metrics are summed."""
    photos = {name: (images / f"{name}.jpg").read_bytes() for name in TOP}
    names = [list(TOP)[number % 2] for number in range(160)]
    before = server.metric("gradcam_batched_images_total")
    counted = server.metric("gradcam_requests_total", code="OK")
    with (
        Client(server.address, channels=CONNECTIONS) as client,
        ThreadPoolExecutor(CONNECTIONS) as pool,
    ):
        answers = list(pool.map(client.explain, (photos[name] for name in names)))
        answers += [one.unwrap() for one in client.explain_stream(photos[name] for name in names)]
        spread = [connections(one) for one in others(server)]
    assert [answer.top.index for answer in answers] == [TOP[name] for name in names] * 2
    assert len(spread) == COUNT - 1
    assert all(spread), spread
    assert len(server.engines()) == 1
    assert server.metric("gradcam_batched_images_total") == before + 320
    # The others' counts are added; they write them before they answer.
    assert server.metric("gradcam_requests_total", code="OK") >= counted + 160
    for number in range(1, COUNT):
        name = "gradcam_front_end_resident_bytes"
        assert server.metric(name, front_end=str(number)) > 10 << 20


def test_every_front_end_serves_http(server: RunningServer, cat_jpeg: bytes) -> None:
    """Each explains images, and shows the metrics and the state of the whole server."""
    path = urllib.parse.urlsplit(server.http_address)
    held = [http.client.HTTPConnection(path.netloc, timeout=60) for _ in range(CONNECTIONS)]

    def ask(connection: http.client.HTTPConnection, method: str, path: str) -> bytes:
        connection.request(method, path, cat_jpeg if method == "POST" else None)
        answer = connection.getresponse()
        assert answer.status == 200
        return answer.read()

    before = server.metric("gradcam_requests_total", rpc="ExplainImage", code="OK")
    try:
        for one in held:
            found = json.loads(ask(one, "POST", "/v1/models/efficientnet-lite0:explain"))
            assert found["predictions"][0]["class_index"] == TOP["cat"]
        assert all(connections(one) for one in others(server))
        now = server.metric("gradcam_requests_total", rpc="ExplainImage", code="OK")
        assert now == before + CONNECTIONS
        for one in held:
            assert ask(one, "GET", "/readyz") == b"ready\n"
            counted = ask(one, "GET", "/metrics").decode()
            assert f"gradcam_front_ends {COUNT}.0" in counted
    finally:
        for one in held:
            one.close()


def test_a_front_end_that_is_killed_loses_no_request_that_is_retried(
    server: RunningServer, cat_jpeg: bytes
) -> None:
    """After kill -9 under load, the others answer its calls, and it is started again."""
    victim = others(server)[0]
    restarts = server.metric("gradcam_front_end_restarts_total")
    before = {one.pid for one in others(server)}
    with (
        Client(server.address, channels=CONNECTIONS, timeout_s=90) as client,
        ThreadPoolExecutor(CONNECTIONS) as pool,
    ):
        asked = [pool.submit(client.explain, cat_jpeg) for _ in range(200)]
        wait_until("answers", lambda: sum(one.done() for one in asked) > 20)
        victim.kill()
        assert {one.result().top.index for one in asked} == {285}
        wait_until("a new front end", lambda: all_complete(server))
        assert server.metric("gradcam_front_end_restarts_total") == restarts + 1
        assert victim.pid not in {one.pid for one in others(server)}
        assert len({one.pid for one in others(server)} & before) == COUNT - 2
        assert client.explain(cat_jpeg).top.index == 285
    assert len(server.engines()) == 1


def test_a_lost_engine_is_told_by_every_front_end(server: RunningServer, cat_jpeg: bytes) -> None:
    """All answer UNAVAILABLE with RetryInfo and NOT_SERVING, until all use the new engine."""
    clients = [
        Client(
            server.address,
            retry=ONCE,
            channel_options=[("grpc.use_local_subchannel_pool", 1)],
        )
        for _ in range(CONNECTIONS)
    ]
    try:
        for client in clients:
            assert client.explain(cat_jpeg).top.index == 285
        assert all(connections(one) for one in others(server))
        (engine,) = server.engines()
        engine.kill()
        engine.wait()
        for client in clients:
            with pytest.raises(UnavailableError) as caught:
                client.explain(cat_jpeg)
            assert caught.value.retry_after_s
            assert client.health() == "NOT_SERVING"
        for client in clients:
            client.wait_ready(60)
            assert client.explain(cat_jpeg).top.index == 285
    finally:
        for client in clients:
            client.close()


def test_a_reload_under_load_drops_no_request(server: RunningServer, cat_jpeg: bytes) -> None:
    """After SIGHUP all front ends use the new engine; no request fails."""
    (old,) = server.engines()
    stop = threading.Event()
    outcomes: Counter[str] = Counter()

    def ask(client: Client) -> None:
        while not stop.is_set():
            try:
                found = str(client.explain(cat_jpeg).top.index)
            except Exception as error:  # noqa: BLE001 - counted
                found = repr(error)
            outcomes[found] += 1

    with (
        Client(server.address, retry=ONCE, channels=8) as client,
        ThreadPoolExecutor(8) as pool,
    ):
        asking = [pool.submit(ask, client) for _ in range(8)]
        try:
            server.send_signal(signal.SIGHUP)
            wait_until(
                "a new engine", lambda: "Reloaded" in server.text and old not in server.engines()
            )
        finally:
            stop.set()
        for one in asking:
            one.result()
    assert set(outcomes) == {"285"}
    assert len(server.engines()) == 1


def test_a_second_server_on_the_port_is_refused(server: RunningServer) -> None:
    """Front ends share a port, but servers do not: a second server would get half the calls."""
    port = server.address.rpartition(":")[2]
    for options in (("--frontends", "2"), ()):
        ended = subprocess.run(
            [GRADCAM, "serve", *quick(), "--port", port, *options],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert ended.returncode == 1, ended.stderr
        assert "is the port in use?" in ended.stderr


# This test is last: it stops the server.
def test_a_drain_answers_what_is_in_work_on_all_and_leaves_no_process(
    server: RunningServer, cat_jpeg: bytes
) -> None:
    """SIGTERM to the whole group under load: every admitted request is answered, exit status 0."""
    wait_until("all front ends", lambda: all_complete(server))
    processes = [*others(server), *server.engines()]
    outcomes: Counter[str] = Counter()

    def ask(client: Client) -> None:
        while True:
            try:
                outcomes[str(client.explain(cat_jpeg).top.index)] += 1
            except UnavailableError as refused:
                outcomes[str(refused)] += 1
                return

    with (
        Client(server.address, retry=ONCE, channels=8) as client,
        ThreadPoolExecutor(8) as pool,
    ):
        asking = [pool.submit(ask, client) for _ in range(8)]
        wait_until("answers", lambda: outcomes["285"] > 30)
        for process in processes:
            os.kill(process.pid, signal.SIGTERM)
        assert server.stop() == 0, server.text
        for one in asking:
            one.result()
    print(outcomes)
    assert set(outcomes) <= {"285", "the server is shutting down"}
    gone, alive = psutil.wait_procs(processes, timeout=10)
    assert not alive
    assert len(gone) == COUNT
