"""A real server among clients that are slow, impatient, silent or killed.

Each test prints its counts. FAULT_REQUESTS is the length of the storm: make faults REQUESTS=10000.
"""

import os
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import psutil
import pytest

from faults.cases import Case, make_cases
from faults.clients import BEGUN, RIGHT, WRONG
from faults.storm import KILLED, outcomes, storm
from gradcam.v1 import explanation_service_pb2 as pb
from gradcam.v1 import explanation_service_pb2_grpc as pb_grpc
from gradcam_client import (
    Client,
    ImageArray,
    ImageExplanation,
    OverloadedError,
    RetryPolicy,
    build_request,
)
from support.server import TRACED, RunningServer, quick
from support.unread import frame, greeting, headers

REQUESTS = int(os.environ.get("FAULT_REQUESTS", "800"))
SLOTS = 8
ONCE = RetryPolicy(max_attempts=1)
SETTLE_S = 60
LATE_THREADS = 4


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    running = RunningServer(*TRACED)
    try:
        yield running.wait_ready()
        assert "Traceback" not in running.text, running.text
        assert running.stop() == 0
        # No client is left: a request that still counts was forgotten.
        assert "Draining 0 requests" in running.text
    finally:
        running.kill()


@pytest.fixture(scope="module")
def cases(server: RunningServer) -> list[Case]:
    return make_cases(server.address)


@pytest.fixture
def small_queue() -> Iterator[RunningServer]:
    running = RunningServer(*quick(), "--max-queue-length", str(SLOTS + 1), "--watchdog-s", "120")
    try:
        yield running.wait_ready()
        assert "Traceback" not in running.text, running.text
    finally:
        running.kill()


def processes(server: RunningServer) -> tuple[psutil.Process, psutil.Process]:
    """Returns the front end and the engine."""
    front_end = psutil.Process(server.pid)
    (engine,) = front_end.children()
    return front_end, engine


def held(server: RunningServer) -> list[int]:
    """Returns the numbers of file descriptors and threads of both processes."""
    pair = processes(server)
    return [one.num_fds() for one in pair] + [one.num_threads() for one in pair]


def is_as(before: list[int], server: RunningServer) -> bool:
    """Returns whether a server holds no more than before, except late threads of its pools."""
    limits = zip(before, (0, 0, LATE_THREADS, LATE_THREADS), strict=True)
    return all(now <= then + late for now, (then, late) in zip(held(server), limits, strict=True))


def wait_until(holds: Callable[[], bool]) -> bool:
    """Waits until a condition holds, for ``SETTLE_S`` at most; returns whether it does."""
    deadline = time.monotonic() + SETTLE_S
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.1)
    return holds()


def check(server: RunningServer, cases: Sequence[Case], *, alone: bool = True) -> None:
    """Checks the answer to every case over a new connection, alone in its batch if ``alone``."""
    options = (("grpc.use_local_subchannel_pool", 1),)
    with grpc.insecure_channel(server.address, options) as channel:
        stub = pb_grpc.ExplanationServiceStub(channel)
        for case in cases:
            call = stub.ExplainImage.future(case.request, timeout=60)
            assert call.code().name == case.code, case.name
            if case.code == "OK":
                assert case.accepts(call.result()), case.name
                assert call.result().stats.batch_size == 1 or not alone, case.name


def check_together(server: RunningServer, cases: Sequence[Case]) -> None:
    """Checks every case from two clients at once."""
    with ThreadPoolExecutor(2) as clients:
        list(clients.map(lambda _: check(server, cases, alone=False), range(2)))


@pytest.mark.timeout(3600)
def test_no_client_harms_another(
    server: RunningServer, cases: list[Case], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Among killed, cancelled, late and broken-off clients every other answer is right."""
    storm(server.address, cases, 200, tmp_path)  # then all threads and buffers exist
    before = held(server)
    counts = storm(server.address, cases, REQUESTS, tmp_path)
    with capfd.disabled():
        print(f"\nA storm of {counts[BEGUN]} requests:")
        for what, count in counts.most_common():
            print(f"{count:8} {what}")
    assert not [what for what in counts if what.startswith(WRONG)]
    assert outcomes(counts) == counts[BEGUN] >= REQUESTS
    for way in (RIGHT, f"{RIGHT} INVALID_ARGUMENT", "timed out", "cancelled", "broken off", KILLED):
        assert counts[way], way
    check(server, cases)
    is_back = wait_until(lambda: is_as(before, server))
    with capfd.disabled():
        print(f"file descriptors and threads before {before}, after {held(server)}")
    assert is_back


def test_a_full_queue_refuses_exactly_the_surplus(
    small_queue: RunningServer, cat_jpeg: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    """While the engine is stopped 8 calls of a caller wait, which leaves a slot for others.

    All further calls are refused; a stream waits.
    """
    _, engine = processes(small_queue)
    for surplus in (0, 1, 30, 5):
        refused: list[OverloadedError] = []
        with Client(small_queue.address, retry=ONCE) as client, ThreadPoolExecutor(64) as pool:
            client.explain(cat_jpeg)

            def ask(_: int) -> ImageExplanation | OverloadedError:
                try:
                    return client.explain(cat_jpeg)
                except OverloadedError as error:
                    refused.append(error)  # noqa: B023
                    return error

            os.kill(engine.pid, signal.SIGSTOP)
            try:
                unary = [pool.submit(ask, number) for number in range(SLOTS + surplus)]
                wait_until(lambda: len(refused) >= surplus)  # noqa: B023
                time.sleep(0.5)  # time for a wrong refusal
                streamed = pool.submit(lambda: list(client.explain_stream([cat_jpeg] * 20)))
                time.sleep(0.5)
                assert len(refused) == surplus
                assert sum(one.done() for one in unary) == surplus
            finally:
                os.kill(engine.pid, signal.SIGCONT)
            answers = [one.result() for one in unary]
            answered = [one for one in answers if isinstance(one, ImageExplanation)]
            assert [one.top.index for one in answered] == [285] * SLOTS
            assert [one.unwrap().top.index for one in streamed.result()] == [285] * 20
        assert all(one.retry_after_s for one in refused)
        with capfd.disabled():
            print(
                f"\n{SLOTS + surplus} calls for {SLOTS} slots: {len(refused)} refused with "
                f"RetryInfo, {len(answered)} answered; 20 of a stream waited"
            )


def test_a_client_that_does_not_read_harms_only_itself(
    server: RunningServer, cases: list[Case], capfd: pytest.CaptureFixture[str]
) -> None:
    """The server stops reading its requests; others are answered; it gets all once it reads."""
    total, size = 600, 256
    rng = np.random.default_rng(0)
    request = build_request(
        rng.integers(0, 256, (size, size, 3), np.uint8), heatmaps=[ImageArray()], predictions=0
    )
    taken = 0

    def messages() -> Iterator[pb.StreamExplainImagesRequest]:
        nonlocal taken
        for number in range(total):
            taken += 1
            yield pb.StreamExplainImagesRequest(correlation_id=str(number), request=request)

    front_end, _ = processes(server)
    with grpc.insecure_channel(server.address) as channel:
        call = pb_grpc.ExplanationServiceStub(channel).StreamExplainImages(messages())
        seen = -1
        while seen != taken:  # until the server reads no more; on a busy machine that takes a while
            seen = taken
            check(server, cases, alone=False)
            time.sleep(2)
        stalled_at, resident = taken, front_end.memory_info().rss
        assert stalled_at < total
        answers = Counter(answer.correlation_id for answer in call if answer.HasField("response"))
    assert answers == Counter(str(number) for number in range(total))
    with capfd.disabled():
        print(
            f"\nA client that does not read: {stalled_at} of {total} requests were taken "
            f"(front end: {resident / 2**20:.0f} MiB), all others' {len(cases)} answers right; "
            f"then it read {answers.total()} answers"
        )


def test_half_open_connections_harm_nobody(
    server: RunningServer, cases: list[Case], capfd: pytest.CaptureFixture[str]
) -> None:
    """Peers are silent, stop within a frame or a message, or never end a call.

    The server closes the connections of peers that have not sent the HTTP/2 greeting.
    """
    check_together(server, cases)  # then the server has all its threads
    before = held(server)
    host, port = server.address.rsplit(":", 1)
    kinds = _half_open(cases[0])
    counts: Counter[str] = Counter()
    sockets = []
    for number in range(200):
        name, start = kinds[number % len(kinds)]
        connection = socket.create_connection((host, int(port)), timeout=10)
        connection.sendall(start)
        sockets.append(connection)
        counts[name] += 1
    check_together(server, cases)
    held_open = held(server)
    for number in range(2):  # silent, and within the greeting
        sockets[number].settimeout(60)
        while sockets[number].recv(1024):
            pass
    for number, connection in enumerate(sockets):
        if number % 2:  # a reset, as by a peer's machine that has restarted
            linger = np.array([1, 0], np.int32).tobytes()
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        connection.close()
    assert wait_until(lambda: is_as(before, server)), (before, held(server))
    check(server, cases)
    with capfd.disabled():
        print(f"\nHalf-open connections: {dict(counts)}, while all others' answers were right;")
        print(f"file descriptors, threads: {before}, with them {held_open}, after {held(server)}")


def _half_open(case: Case) -> list[tuple[str, bytes]]:
    """Returns the bytes that peers send before they are silent: HTTP/2 by hand."""

    def call(method: str) -> bytes:
        return greeting() + headers(f"/gradcam.v1.ExplanationService/{method}")

    message = b"\x00" + len(case.message).to_bytes(4, "big") + case.message
    return [
        ("silent", b""),
        ("within the greeting", greeting()[:10]),
        ("greeted", greeting()),
        ("within a header", call("ExplainImage")[:-20]),
        ("a call without a message", call("ExplainImage")),
        ("within a message", call("ExplainImage") + frame(0, 0, 1, message[:1000])),
        ("an endless stream", call("StreamExplainImages")),
        ("not HTTP/2", b"GET / HTTP/1.1\r\n"),
    ]
