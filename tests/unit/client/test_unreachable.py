"""Errors of servers that cannot be reached; the proxies are real sockets that refuse."""

import re
import socket
import threading
from collections.abc import Iterator

import pytest

from gradcam_client import RetryPolicy, UnavailableError
from gradcam_client.unreachable import explain
from unit.client.both import Connect
from unit.client.conftest import PROXY_VARIABLES
from unit.client.fake_server import FakeServer

ONCE = RetryPolicy(max_attempts=1)


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PROXY_VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def free_port() -> Iterator[int]:
    """A port that is reserved and at which nothing listens."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


@pytest.fixture
def refusing_proxy() -> Iterator[str]:
    """A proxy that refuses every request."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def refuse() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(1000)
                    connection.sendall(b"HTTP/1.1 403 Forbidden\r\n\r\n")

        thread = threading.Thread(target=refuse, daemon=True)
        thread.start()
        yield f"127.0.0.1:{listening.getsockname()[1]}"
        listening.shutdown(socket.SHUT_RDWR)
        thread.join(5)


@pytest.mark.parametrize("variable", ["http_proxy", "https_proxy", "grpc_proxy"])
def test_no_proxy_leads_to_this_machine(
    connect: Connect,
    server: FakeServer,
    free_port: int,
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
) -> None:
    """A proxy in the environment does not affect calls to a local server."""
    monkeypatch.setenv(variable, f"http://127.0.0.1:{free_port}")
    port = server.target.rpartition(":")[2]
    for target in (server.target, f"localhost:{port}", f"ipv4:{server.target}"):
        with connect(target, retry=ONCE) as client:
            assert client.health() == "SERVING"
            assert client.explain(b"7").top.index == 7
            assert len(client.explain_stream([b"1", b"2"])) == 2


@pytest.mark.parametrize("variable", ["http_proxy", "grpc_proxy"])
def test_a_proxy_that_refuses_is_named(
    connect: Connect, refusing_proxy: str, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    """The error names its variable and the remedy, but not its password."""
    monkeypatch.setenv(variable, f"http://user:secret@{refusing_proxy}")
    with connect("gradcam.example.org:50051", retry=ONCE) as client:
        with pytest.raises(UnavailableError) as raised:
            client.explain(b"7")
        (outcome,) = client.explain_stream([b"7"])
    for error in (raised.value, outcome.error):
        message = str(error)
        assert message.startswith("gradcam.example.org:50051 is not reached through the proxy ")
        assert f"{refusing_proxy}, which the environment variable {variable} names" in message
        assert "403" in message
        assert "no_proxy=gradcam.example.org" in message
        assert "secret" not in message


def test_a_proxy_that_is_down_is_named(
    connect: Connect, free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error of the proxy names the proxy, not the server."""
    monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{free_port}")
    expected = f"proxy 127.0.0.1:{free_port}, which the environment variable https_proxy .*refused"
    with (
        connect("10.9.8.7:50051", retry=ONCE) as client,
        pytest.raises(UnavailableError, match=expected),
    ):
        client.explain(b"7")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "ipv4:127.0.0.1"])
def test_a_refused_connection_says_where_and_how_to_start(
    connect: Connect, free_port: int, host: str
) -> None:
    """The error shows the caller's address, not gRPC's notation."""
    target = f"{host}:{free_port}"
    expected = f"^nothing listens at {target}; start a server there .gradcam serve."
    with connect(target, retry=ONCE) as client:
        with pytest.raises(UnavailableError, match=expected) as raised:
            client.explain(b"7")
        (outcome,) = client.explain_stream([b"7"])
    assert str(outcome.error) == str(raised.value)
    assert outcome.error.request_id


def test_a_socket_that_is_not_there_is_named(connect: Connect) -> None:
    """The error shows the path of a Unix socket."""
    with (
        connect("unix:/nowhere/socket", retry=ONCE) as client,
        pytest.raises(UnavailableError, match="^nothing listens at unix:/nowhere/socket"),
    ):
        client.explain(b"7")


@pytest.mark.parametrize("target", ["two words:1", "localhost:50051/path", "a_:b:1"])
def test_what_is_no_address_is_named(connect: Connect, target: str) -> None:
    """The error shows the right form of an address."""
    with (
        connect([target], retry=ONCE) as client,
        pytest.raises(UnavailableError, match=f"^'{target}' is not HOST:PORT$"),
    ):
        client.explain(b"7")


@pytest.mark.parametrize("scheme", ["http", "https", "HTTP", "grpc"])
def test_a_link_is_no_target(connect: Connect, scheme: str) -> None:
    """A link is refused before anything is sent; the error says how to use TLS."""
    target = f"{scheme}://localhost:50051"
    with pytest.raises(ValueError, match=f'"host:port" without {scheme}://'), connect(target):
        pass


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("connect: Connection refused (111)", "nothing listens at host, port 443.*HOST:PORT"),
        ("Domain name not found", "the name in host is not known"),
        ("connect: Network is unreachable", "host cannot be reached"),
        ("Trying to connect an http1.x server (HTTP status 404)", "speaks HTTP/1, not gRPC"),
    ],
)
def test_other_reasons_are_told_apart(text: str, message: str) -> None:
    """Each text of gRPC gets its own remedy."""
    said = explain(f"failed to connect to all addresses; last error: UNKNOWN: {text}", "host")
    assert said is not None
    assert re.search(message, said)


@pytest.mark.parametrize("text", ["the queue is full", "warming up", "", "Socket closed"])
def test_what_a_server_says_is_left_alone(text: str) -> None:
    """Only gRPC's own texts are replaced."""
    assert explain(text, "host:1") is None
