"""The HTTP port, over real sockets."""

import http.client
import io
import logging
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from gradcam_server.errors import StartupError
from gradcam_server.telemetry.logs import TextFormatter
from gradcam_server.telemetry.metrics import Metrics
from gradcam_server.transport.http.probes import MAX_CONNECTIONS, HttpServer


class Running:
    """A server, and the reasons that its probes report."""

    def __init__(self, exchange_s: float = 5.0) -> None:
        self.metrics, self.reason, self.fault = Metrics(), "warming up", ""
        self.server = HttpServer(
            *("127.0.0.1", 0, self.metrics.exposition),
            *(lambda: self.fault or None, lambda: self.reason or None, exchange_s),
        )
        self.server.start()

    def get(self, path: str, method: str = "GET") -> tuple[int, str, http.client.HTTPMessage]:
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=30)
        try:
            connection.request(method, path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode(), answer.headers
        finally:
            connection.close()

    def connect(self, sent: bytes = b"") -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", self.server.port), timeout=30)
        connection.sendall(sent)
        return connection


@pytest.fixture
def running() -> Iterator[Running]:
    one = Running()
    yield one
    one.server.close()


def test_prometheus_can_read_the_metrics(running: Running) -> None:
    """The text and its content type follow the header Accept."""
    running.metrics.compiled(7)
    status, text, headers = running.get("/metrics")
    assert status == 200
    assert "gradcam_compilations_total 7.0" in text
    assert headers["Content-Type"].startswith("text/plain; version=")


def test_it_is_alive_before_it_is_ready(running: Running) -> None:
    """A liveness probe must not kill a server that warms up; a readiness probe has the reason."""
    assert running.get("/healthz")[:2] == (200, "ok\n")
    assert running.get("/readyz")[:2] == (503, "warming up\n")
    running.reason = ""
    assert running.get("/readyz?verbose")[:2] == (200, "ready\n")


def test_a_process_that_cannot_heal_itself_is_not_alive(running: Running) -> None:
    """The answer has the reason, whether or not the server is ready."""
    running.fault = "an engine that is lost would not be started again"
    assert running.get("/healthz")[:2] == (503, f"{running.fault}\n")
    running.reason = ""
    assert running.get("/healthz")[0] == 503
    running.fault = ""
    assert running.get("/healthz")[:2] == (200, "ok\n")


def test_only_what_there_is_can_be_read(running: Running) -> None:
    """Other paths are 404, and other methods than GET and HEAD are 405."""
    assert running.get("/")[0] == 404
    assert running.get("/metrics/../etc/passwd")[0] == 404
    for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
        status, _, headers = running.get("/metrics", method)
        assert (status, headers["Allow"]) == (405, "GET, HEAD")


def test_head_has_no_body(running: Running) -> None:
    """Probes may ask for the status alone."""
    status, text, headers = running.get("/healthz", "HEAD")
    assert (status, text, headers["Content-Length"]) == (200, "", "3")


def test_half_open_clients_do_not_block_others(running: Running) -> None:
    """Clients that are silent, or stop in the middle, do not delay other clients."""
    silent = [running.connect() for _ in range(10)]
    stuck = [running.connect(b"GET /metrics HT") for _ in range(10)]
    assert running.get("/healthz")[0] == 200
    for one in (*silent, *stuck):
        one.close()


def test_a_client_that_drips_is_cut_off() -> None:
    """The time limit is for the whole exchange: single bytes do not extend it."""
    running = Running(exchange_s=0.3)
    connection = running.connect(b"GET /healthz HTTP/1.1\r\nX: ")
    ended = threading.Event()

    def drip() -> None:
        while not ended.wait(0.05):
            try:
                connection.sendall(b"x")
            except OSError:
                return

    dripping = threading.Thread(target=drip)
    dripping.start()
    try:
        # Returns at the end; its own timeout would fail the test.
        assert connection.recv(1000) == b""
    except ConnectionResetError:
        pass
    finally:
        ended.set()
        dripping.join()
        connection.close()
        running.server.close()


def test_the_number_of_connections_is_bounded() -> None:
    """A connection over the limit is closed at once; timed-out connections free their slots."""
    running = Running(exchange_s=2.0)
    held = [running.connect() for _ in range(MAX_CONNECTIONS)]
    with running.connect() as refused:
        assert refused.recv(10) == b""
    for one in held:
        assert one.recv(10) == b""  # at the end of its time
        one.close()
    deadline = time.monotonic() + 30
    while True:
        try:
            assert running.get("/healthz")[0] == 200
            break
        except (http.client.RemoteDisconnected, ConnectionResetError):
            assert time.monotonic() < deadline
    running.server.close()


def test_a_fault_is_an_answer_too(caplog: pytest.LogCaptureFixture) -> None:
    """The answer is 500 without the error's text, which is logged."""

    def fail(_: str) -> tuple[bytes, str]:
        raise RuntimeError("secret")

    server = HttpServer("127.0.0.1", 0, fail, lambda: None, lambda: None)
    server.start()
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    with caplog.at_level(logging.ERROR):
        connection.request("GET", "/metrics")
        answer = connection.getresponse()
        assert (answer.status, answer.read()) == (500, b"error\n")
    connection.close()
    server.close()
    assert "secret" in caplog.text


@pytest.mark.parametrize(
    "sent",
    [
        b"GET /\x1b[2J\x9b31m HTTP/1.1\r\n\r\n",
        b"GET /metrics?\x1b]0;title\x07 HTTP/1.1\r\n\r\n",
        b"\x1b[2J / HTTP/1.1\r\n\r\n",
        b"GET / \x1b[2J HTTP/1.1\r\n\r\n",
    ],
    ids=["path", "query", "method", "words"],
)
def test_a_request_does_not_command_the_terminal_of_a_log(running: Running, sent: bytes) -> None:
    """At debug level requests are logged, with the control characters of callers escaped."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(TextFormatter())
    logger = logging.getLogger("gradcam_server.transport.http.probes")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    try:
        with running.connect(sent) as connection:
            while connection.recv(1000):
                pass
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    assert r"\x1b" in stream.getvalue()
    assert all(line.isprintable() for line in stream.getvalue().splitlines())


def test_a_port_in_use_is_said(running: Running) -> None:
    """The error names the address."""
    second = HttpServer(
        "127.0.0.1", running.server.port, running.metrics.exposition, lambda: None, lambda: None
    )
    with pytest.raises(StartupError, match=f"127.0.0.1:{running.server.port}"):
        second.start()


def test_a_closed_server_frees_its_port() -> None:
    """The port can be bound again at once, and closing twice is harmless."""
    first = Running()
    port = first.server.port
    assert first.get("/healthz")[0] == 200
    first.server.close()
    first.server.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5)
    second = HttpServer("127.0.0.1", port, first.metrics.exposition, lambda: None, lambda: None)
    second.start()
    second.close()


def test_ipv6_addresses_work() -> None:
    """With or without the brackets of gRPC's addresses."""
    if not socket.has_ipv6:
        pytest.skip("no IPv6")
    server = HttpServer("[::1]", 0, Metrics().exposition, lambda: None, lambda: None)
    try:
        server.start()
    except StartupError:
        pytest.skip("no IPv6 here")
    connection = http.client.HTTPConnection("::1", server.port, timeout=30)
    connection.request("GET", "/healthz")
    assert connection.getresponse().status == 200
    connection.close()
    server.close()
