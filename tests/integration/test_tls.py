"""TLS of the real server process."""

import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from gradcam.v1 import explanation_service_pb2 as pb
from gradcam.v1 import explanation_service_pb2_grpc as pb_grpc
from support.calls import TIMEOUT_S, connect
from support.certificates import Authority, replace
from support.server import RunningServer, quick


class Tls:
    """A server with TLS that need not be warm, its authority and its files."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder, self.authority = folder, Authority("ours")
        self.certificate, self.key = self.authority.issue("one").write(folder, "server")
        files = ("--tls-certificate", str(self.certificate), "--tls-key", str(self.key))
        self.running = RunningServer(*quick(), *files, *options)

    @property
    def address(self) -> str:
        return self.running.address

    def ask(self, credentials: grpc.ChannelCredentials | None = None) -> str:
        """Asks for health over a new connection; returns the code's name."""
        credentials = credentials or trusting(self.authority)
        with connect(self.address, credentials) as channel:
            return ask(channel)


def ask(channel: Any) -> str:
    health: Any = health_pb2_grpc.HealthStub(channel)
    try:
        health.Check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S)
    except grpc.RpcError as error:
        return str(error.code().name)
    return "OK"


def trusting(authority: Authority, client: Any = None) -> grpc.ChannelCredentials:
    """Credentials of a client, with a certificate or without."""
    if client is None:
        return grpc.ssl_channel_credentials(authority.certificate)
    return grpc.ssl_channel_credentials(authority.certificate, client.key, client.certificate)


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tls]:
    server = Tls(tmp_path_factory.mktemp("tls"))
    try:
        yield server
        assert "Traceback" not in server.running.text, server.running.text
        assert server.running.stop() == 0
    finally:
        server.running.kill()


def test_tls_is_spoken_and_the_authority_checked(tls: Tls) -> None:
    """A client that trusts the server's authority connects; others do not."""
    assert tls.ask() == "OK"
    assert tls.ask(trusting(Authority("another"))) == "UNAVAILABLE"
    assert tls.ask() == "OK"


def test_a_plain_client_fails_cleanly(tls: Tls) -> None:
    """The client gets UNAVAILABLE; others are not affected, and the log has no traceback."""
    with connect(tls.address) as channel:
        assert ask(channel) == "UNAVAILABLE"
    assert tls.ask() == "OK"


def test_an_image_is_explained_over_tls(tls: Tls, cat_jpeg: bytes) -> None:
    """An image is explained over TLS."""
    tls.running.wait_for("Serving efficientnet-lite0", 180)
    with connect(tls.address, trusting(tls.authority)) as channel:
        stub = pb_grpc.ExplanationServiceStub(channel)
        answer = stub.ExplainImage(pb.ExplainImageRequest(encoded_image=cat_jpeg))
    assert answer.predictions[0].class_index == 285


def served_certificate(address: str) -> str:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    host, port = address.split(":")
    with (
        socket.create_connection((host, int(port)), TIMEOUT_S) as connection,
        context.wrap_socket(connection) as secure,
    ):
        der = secure.getpeercert(binary_form=True)
    assert der
    return ssl.DER_cert_to_PEM_cert(der)


def test_certificates_are_replaced_under_load_without_a_failed_request(tls: Tls) -> None:
    """New connections all the time; each certificate counts as soon as both its files are there.

    A broken one in between changes nothing.
    """
    stop, codes = threading.Event(), Counter[str]()

    def hammer() -> None:
        while not stop.is_set():
            codes[tls.ask()] += 1

    threads = [threading.Thread(target=hammer) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for count in range(5):
            pair = tls.authority.issue(f"number {count}")
            replace(tls.certificate, b"nonsense")
            time.sleep(0.2)
            replace(tls.certificate, pair.certificate)
            time.sleep(0.2)
            replace(tls.key, pair.key)
            assert served_certificate(tls.address) == pair.certificate.decode()
            time.sleep(0.2)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert set(codes) == {"OK"}, codes
    assert codes["OK"] > 20
    assert "The old certificates stay" in tls.running.text
    assert "PRIVATE KEY" not in tls.running.text


def test_half_open_connections_do_not_block_others(tls: Tls) -> None:
    """Silent connections do not block others, and the server closes them."""
    host, port = tls.address.split(":")
    with ExitStack() as half_open:
        sockets = []
        for number in range(400):
            connection = socket.create_connection((host, int(port)), TIMEOUT_S)
            sockets.append(half_open.enter_context(connection))
            connection.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01" if number % 2 else b"")
        assert [tls.ask() for _ in range(10)] == ["OK"] * 10
        for one in sockets:
            with one.makefile("rb") as stream:
                stream.read()  # ends when the server hangs up, or fails after TIMEOUT_S


@pytest.fixture(scope="module")
def mutual(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Tls, Authority, Path]]:
    folder, clients = tmp_path_factory.mktemp("mutual"), Authority("clients")
    ca = folder / "clients.pem"
    ca.write_bytes(clients.certificate)
    server = Tls(folder, "--tls-client-ca", str(ca), "--max-connection-age-s", "2")
    try:
        yield server, clients, ca
        assert "Traceback" not in server.running.text, server.running.text
        assert server.running.stop() == 0
    finally:
        server.running.kill()


def test_mutual_tls_refuses_clients_without_a_known_certificate(
    mutual: tuple[Tls, Authority, Path],
) -> None:
    """No certificate, another authority's, and one of the server's own authority are refused."""
    server, clients, _ = mutual
    assert server.ask(trusting(server.authority, clients.issue("alice"))) == "OK"
    for client in (None, Authority("eve").issue("alice"), server.authority.issue("alice")):
        assert server.ask(trusting(server.authority, client)) == "UNAVAILABLE"


def test_authorities_of_clients_are_replaced_and_old_connections_end(
    mutual: tuple[Tls, Authority, Path],
) -> None:
    """New connections are checked at once, open ones when they are --max-connection-age-s old."""
    server, clients, ca = mutual
    new = Authority("new clients")
    before = trusting(server.authority, clients.issue("alice"))
    after = trusting(server.authority, new.issue("alice"))
    with connect(server.address, before) as channel:
        assert ask(channel) == "OK"
        replace(ca, new.certificate)
        assert (server.ask(before), server.ask(after)) == ("UNAVAILABLE", "OK")
        deadline = time.monotonic() + 60
        while (code := ask(channel)) == "OK":
            assert time.monotonic() < deadline, "the old connection goes on"
            time.sleep(0.1)
        assert code == "UNAVAILABLE"
    replace(ca, clients.certificate)
