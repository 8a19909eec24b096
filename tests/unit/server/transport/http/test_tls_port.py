"""TLS of the HTTP port, over real sockets."""

import socket
import ssl
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from gradcam_server.errors import StartupError
from support.certificates import Authority, Pair
from support.http_port import HttpFrontEnd, read_all

LIST = b"GET /v1/models HTTP/1.0\r\n\r\n"
HEALTH = b"GET /healthz HTTP/1.0\r\n\r\n"


class Tls:
    """A server with TLS, its authority and its files."""

    def __init__(self, folder: Path, client_ca: bytes = b"") -> None:
        self.folder, self.authority = folder, Authority("ours")
        certificate, key = self.authority.issue("one").write(folder, "server")
        options: dict[str, Any] = {"tls_certificate": str(certificate), "tls_key": str(key)}
        if client_ca:
            (folder / "clients.pem").write_bytes(client_ca)
            options["tls_client_ca"] = str(folder / "clients.pem")
        self.server = HttpFrontEnd(**options)

    def ask(self, sent: bytes, client: Pair | None = None, authority: bytes = b"") -> bytes:
        """Sends a request over a new connection that checks the server's certificate."""
        context = ssl.create_default_context(
            cadata=(authority or self.authority.certificate).decode()
        )
        if client is not None:
            context.load_cert_chain(*client.write(self.folder, "client"))
        with (
            socket.create_connection(("127.0.0.1", self.server.port), 30) as connection,
            context.wrap_socket(connection, server_hostname="localhost") as secure,
        ):
            self.served = secure.getpeercert()
            secure.sendall(sent)
            return read_all(secure)


@pytest.fixture
def tls(tmp_path: Path) -> Iterator[Tls]:
    tls = Tls(tmp_path)
    yield tls
    tls.server.close()


def test_the_whole_port_speaks_tls(tls: Tls) -> None:
    """With the certificate of the gRPC port; a client that trusts another authority leaves."""
    assert tls.ask(LIST).startswith(b"HTTP/1.1 200 ")
    assert tls.ask(HEALTH).startswith(b"HTTP/1.1 200 ")
    with pytest.raises(ssl.SSLCertVerificationError):
        tls.ask(HEALTH, authority=Authority("another").certificate)


def test_a_plain_client_harms_nobody(tls: Tls, caplog: pytest.LogCaptureFixture) -> None:
    """Its connection ends without an answer and without a traceback."""
    with tls.server.connect(HEALTH) as connection:
        assert read_all(connection)[:5] != b"HTTP/"
    assert tls.ask(HEALTH).startswith(b"HTTP/1.1 200 ")
    assert not [one for one in caplog.records if one.levelno >= 30]


def test_certificates_are_replaced_while_it_serves(tls: Tls) -> None:
    """New connections have the new certificate; half a change keeps the old."""
    tls.ask(HEALTH)
    first = tls.served
    fresh = tls.authority.issue("two")
    (tls.folder / "server.pem").write_bytes(fresh.certificate)  # its key comes later
    assert tls.ask(HEALTH).startswith(b"HTTP/1.1 200 ")
    assert tls.served == first
    fresh.write(tls.folder, "server")
    assert tls.ask(HEALTH).startswith(b"HTTP/1.1 200 ")
    assert tls.served != first


def test_clients_need_a_certificate_but_probes_do_not(tmp_path: Path) -> None:
    """Mutual TLS: the API is for known clients; a kubelet has no certificate."""
    clients = Authority("clients")
    tls = Tls(tmp_path, clients.certificate)
    try:
        assert tls.ask(HEALTH).startswith(b"HTTP/1.1 200 ")
        refused = tls.ask(LIST)
        assert refused.startswith(b"HTTP/1.1 403 ")
        assert b'"PERMISSION_DENIED"' in refused
        assert tls.ask(LIST, clients.issue("known")).startswith(b"HTTP/1.1 200 ")
        with suppress(ssl.SSLError, ConnectionError):  # by TLS, before HTTP
            assert tls.ask(LIST, Authority("strangers").issue("stranger")) == b""
    finally:
        tls.server.close()


def test_bad_files_stop_the_start(tmp_path: Path) -> None:
    """As those of the gRPC port do."""
    (tmp_path / "no.pem").write_text("nonsense")
    file = str(tmp_path / "no.pem")
    with pytest.raises(StartupError, match="--tls-certificate"):
        HttpFrontEnd(tls_certificate=file, tls_key=file)
