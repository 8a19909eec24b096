"""The metrics and probes of the HTTP port, over real sockets."""

import logging
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial

import pytest

from gradcam_server.errors import StartupError
from gradcam_server.transport.http import protocol
from gradcam_server.transport.http.protocol import ConnectionLimits
from support.http_port import HttpFrontEnd, read_all

PROBE = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture
def server() -> Iterator[HttpFrontEnd]:
    with HttpFrontEnd(ready=False) as server:
        yield server


def test_prometheus_can_read_the_metrics(server: HttpFrontEnd) -> None:
    """The text and its content type follow the header Accept."""
    server.metrics.compiled(7)
    answer = server.get("/metrics")
    assert answer.status == 200
    assert b"gradcam_compilations_total 7.0" in answer.body
    assert answer.headers["content-type"].startswith("text/plain; version=")
    openmetrics = server.get("/metrics", Accept="application/openmetrics-text")
    assert openmetrics.headers["content-type"].startswith("application/openmetrics-text")


def test_it_is_alive_before_it_is_ready(server: HttpFrontEnd) -> None:
    """A liveness probe must not kill a server that warms up; a readiness probe has the reason."""
    server.why_not_ready = "warming up"
    alive = server.get("/healthz")
    assert (alive.status, alive.body) == (200, b"ok\n")
    ready = server.get("/readyz")
    assert (ready.status, ready.body) == (503, b"warming up\n")
    server.why_not_ready = None
    ready = server.get("/readyz?verbose")
    assert (ready.status, ready.body) == (200, b"ready\n")


def test_a_process_that_cannot_heal_itself_is_not_alive(server: HttpFrontEnd) -> None:
    """The answer has the reason, whether or not the server is ready."""
    server.fault = "an engine that is lost would not be started again"
    answer = server.get("/healthz")
    assert (answer.status, answer.body.decode()) == (503, f"{server.fault}\n")
    server.fault = None
    assert server.get("/healthz").status == 200


def test_only_what_there_is_can_be_read(server: HttpFrontEnd) -> None:
    """Other paths are 404, and other methods than GET and HEAD are 405 with Allow."""
    for path in ("/", "/metrics/../etc/passwd", "/%2e%2e/etc/passwd", "//etc/passwd", "/ui/app.js"):
        assert server.get(path).problem[0] == 404, path
    for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
        answer = server.request(method, "/metrics")
        assert answer.problem[0] == 405
        assert set(answer.headers["allow"].split(", ")) == {"GET", "HEAD"}


def test_head_has_no_body(server: HttpFrontEnd) -> None:
    """Probes may ask for the status alone."""
    answer = server.request("HEAD", "/healthz")
    assert (answer.status, answer.body, answer.headers["content-length"]) == (200, b"", "3")


def test_half_open_clients_do_not_block_others(server: HttpFrontEnd) -> None:
    """Clients that are silent, or stop in the middle, do not delay other clients."""
    silent = [server.connect() for _ in range(10)]
    stuck = [server.connect(b"GET /metrics HT") for _ in range(10)]
    assert server.get("/healthz").status == 200
    for one in (*silent, *stuck):
        one.close()


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"GET /healthz HTTP/1.1\r\nX: ",
        b"GET /heal",
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\nGET /a",
    ],
    ids=["silent", "in a header", "in the path", "in the second request"],
)
def test_a_client_that_drips_headers_is_cut_off(
    sent: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time limit is for all headers: single bytes do not extend it."""
    monkeypatch.setattr(protocol, "ConnectionLimits", partial(ConnectionLimits, head_s=0.3))
    with HttpFrontEnd(ready=False) as server, server.connect(sent) as connection:
        ended = threading.Event()

        def drip() -> None:
            while not ended.wait(0.05) and sent:
                try:
                    connection.sendall(b"x")
                except OSError:
                    return

        dripping = threading.Thread(target=drip)
        dripping.start()
        started = time.monotonic()
        read_all(connection)  # until the server closes it; the socket's timeout would fail
        ended.set()
        dripping.join()
        assert time.monotonic() - started < 20


def ask(connection: socket.socket, request: bytes = PROBE) -> None:
    connection.sendall(request)
    answer = b""
    while not answer.endswith(b"ok\n"):
        received = connection.recv(1000)
        assert received
        answer += received


def test_a_new_connection_replaces_the_longest_idle() -> None:
    """Idle connections cannot lock probes out; a connection at work is not replaced."""
    with HttpFrontEnd(ready=False, http_max_connections=3) as server, ExitStack() as stack:
        held = [stack.enter_context(server.connect()) for _ in range(3)]
        for index in (1, 2, 0):  # but for its work, the second would be idle for the longest time
            ask(held[index])
        held[1].sendall(PROBE[:9])  # at work, once the server answers what comes later
        ask(held[0])
        assert server.get("/healthz").status == 200
        assert read_all(held[2]) == b""
        ask(held[1], PROBE[9:])


def test_connections_at_work_are_not_replaced() -> None:
    """A connection over the limit is closed at once if all others are at work."""
    with HttpFrontEnd(ready=False, http_max_connections=2) as server, ExitStack() as stack:
        held = [stack.enter_context(server.connect()) for _ in range(2)]
        for one in held:
            ask(one)
        for one in held:  # the server reads this before it greets whoever comes later
            one.sendall(PROBE[:9])
        with server.connect() as refused:
            assert read_all(refused) == b""
        for one in held:
            ask(one, PROBE[9:])


def test_a_fault_is_an_answer_too(caplog: pytest.LogCaptureFixture) -> None:
    """The answer is 500 without the error's text, which is logged."""

    def fail(accept: str = "") -> tuple[bytes, str]:
        raise RuntimeError("secret")

    with HttpFrontEnd(ready=False) as server, caplog.at_level(logging.ERROR):
        server.metrics.exposition = fail  # type: ignore[method-assign]
        answer = server.get("/metrics")
        assert answer.problem == (500, "INTERNAL", "")
        assert b"secret" not in answer.body
    assert "secret" in caplog.text


def test_a_port_in_use_is_said(server: HttpFrontEnd) -> None:
    """The error names the address."""
    with pytest.raises(StartupError, match=f"127.0.0.1:{server.port}"):
        HttpFrontEnd(http_port=server.port)


def test_a_closed_server_frees_its_port() -> None:
    """The port can be bound again at once, and closing twice is harmless."""
    with HttpFrontEnd(ready=False) as first:
        assert first.get("/healthz").status == 200
        first.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", first.port), timeout=5)
    HttpFrontEnd(ready=False, http_port=first.port).close()


def test_ipv6_addresses_work() -> None:
    """With or without the brackets of gRPC's addresses."""
    if not socket.has_ipv6:
        pytest.skip("no IPv6")
    try:
        server = HttpFrontEnd(ready=False, http_host="[::1]")
    except StartupError:
        pytest.skip("no IPv6 here")
    with server, socket.create_connection(("::1", server.port), timeout=30) as connection:
        connection.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
        assert b"200 OK" in read_all(connection)
