"""Tokens, TLS, request ids and traces, with either client."""

import os
import pickle
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from gradcam_client import (
    Client,
    GradCamError,
    NotFoundError,
    PermissionDeniedError,
    RetryPolicy,
    UnauthenticatedError,
    UnavailableError,
    tls_credentials,
    token_from_file,
)
from unit.client.both import Connect
from unit.client.fake_server import FakeServer, make_status, serving

CODE = grpc.StatusCode


# Tokens.


def test_tokens_arrive(connect: Connect, server: FakeServer) -> None:
    """Calls and streams carry the token; without one there is no header."""
    with connect(server.target, token="secret") as client:
        client.explain(b"7")
        client.explain_stream([b"7"])
    with connect(server.target) as client:
        client.explain(b"7")
    sent = [metadata.get("authorization") for metadata in server.metadata]
    assert sent == ["Bearer secret", "Bearer secret", None]


def test_each_attempt_asks_for_the_token(
    connect: Connect, server: FakeServer, retry: RetryPolicy
) -> None:
    """The second attempt sends a token that was renewed after the first."""
    tokens: Iterator[str] = iter(["old", "new"])
    server.script.append(server.fail(CODE.UNAVAILABLE))
    with connect(server.target, retry=retry, token=lambda: next(tokens)) as client:
        client.explain(b"7")
    sent = [metadata["authorization"] for metadata in server.metadata]
    assert sent == ["Bearer old", "Bearer new"]


def test_a_token_rotates_with_its_file(
    connect: Connect, server: FakeServer, tmp_path: Path
) -> None:
    """A file that changes, in place or by a rename, changes the token of the next call."""
    path, fresh = tmp_path / "token", tmp_path / "fresh"
    path.write_text("first\n")
    with connect(server.target, token=token_from_file(path)) as client:
        client.explain(b"7")
        path.write_text("second")
        client.explain(b"7")
        fresh.write_text("third!")
        os.replace(fresh, path)  # noqa: PTH105
        client.explain(b"7")
        client.explain(b"7")
    sent = [metadata["authorization"] for metadata in server.metadata]
    assert sent == [f"Bearer {token}" for token in ("first", "second", "third!", "third!")]


def test_a_token_file_is_read_at_once(tmp_path: Path) -> None:
    """A missing or empty file is an error when it is named, not at the first call."""
    with pytest.raises(FileNotFoundError):
        token_from_file(tmp_path / "missing")
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(ValueError, match="empty"):
        token_from_file(tmp_path / "empty")


@pytest.mark.parametrize(
    "target",
    [
        "example.org:50051",
        "10.0.0.1:50051",
        ["localhost:1", "10.0.0.1:1"],
        "localhost:1,example.org:2",
        "dns:///example.org:1",
        "ipv4:127.0.0.1:1,10.0.0.1:1",
        "dns://10.0.0.1/localhost:1",
        "localhost.example.org:1",
    ],
)
def test_a_token_is_not_sent_in_plain_text(connect: Connect, target: str | list[str]) -> None:
    """Without TLS a token that would leave the machine is refused, unless that is wanted."""
    with pytest.raises(ValueError, match="tls_credentials"), connect(target, token="secret"):
        pass
    with connect(target, token="secret", allow_insecure_token=True):
        pass
    with connect(target, token="secret", credentials=grpc.ssl_channel_credentials()):
        pass


@pytest.mark.parametrize(
    "target",
    ["localhost:1", "127.0.0.9:1", "[::1]:1", "unix:/tmp/x", "ipv4:127.0.0.1:1", "localhost"],
)
def test_a_token_may_stay_on_the_machine(connect: Connect, target: str) -> None:
    """Loopback addresses need no TLS."""
    with connect(target, token="secret"):
        pass


def test_a_given_channel_is_not_trusted_with_a_token(connect: Connect) -> None:
    """A token over the caller's channel needs allow_insecure_token: its encryption is unknown."""
    with (
        grpc.insecure_channel("localhost:1") as channel,
        pytest.raises(ValueError, match="given channel"),
        connect(channel=channel, token="secret"),
    ):
        pass


@pytest.mark.parametrize("token", ["", "two words", "line\nbreak", "clé-secret"])
def test_a_token_that_cannot_be_sent_is_refused(connect: Connect, token: str) -> None:
    """The error says what is wrong and does not show the token."""
    with pytest.raises(ValueError, match="printable ASCII") as raised, connect(token=token):
        pass
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (CODE.UNAUTHENTICATED, UnauthenticatedError),
        (CODE.PERMISSION_DENIED, PermissionDeniedError),
    ],
)
def test_a_token_that_is_refused_is_sent_once(
    connect: Connect, server: FakeServer, code: grpc.StatusCode, kind: type[GradCamError]
) -> None:
    """A refusal of the token is not retried."""
    server.script.append(server.fail(code, "no"))
    with connect(server.target) as client, pytest.raises(kind, match="no"):
        client.explain(b"7")
    assert len(server.requests) == 1


# Request ids.


def test_a_request_id_reaches_server_and_error(
    connect: Connect, server: FakeServer, retry: RetryPolicy
) -> None:
    """The same id is in all attempts' metadata and in the error."""
    server.script.extend([server.fail(CODE.UNAVAILABLE), server.fail(CODE.NOT_FOUND)])
    with connect(server.target, retry=retry) as client, pytest.raises(NotFoundError) as raised:
        client.explain(b"7", request_id="job-42")
    assert raised.value.request_id == "job-42"
    assert [metadata["x-request-id"] for metadata in server.metadata] == ["job-42"] * 2


def test_each_call_has_an_id(connect: Connect, server: FakeServer) -> None:
    """Without a request id, each call gets a new id."""
    server.script.append(server.fail(CODE.NOT_FOUND))
    with connect(server.target) as client:
        with pytest.raises(NotFoundError) as raised:
            client.explain(b"7")
        client.explain(b"7")
    first, second = (metadata["x-request-id"] for metadata in server.metadata)
    assert raised.value.request_id == first != second
    assert len(first) == 32


def test_errors_of_a_stream_name_it(
    connect: Connect, server: FakeServer, retry: RetryPolicy
) -> None:
    """Images that fail by an answer or by a break carry the stream's id."""
    bad = make_status(CODE.INVALID_ARGUMENT, "bad")
    server.streams.append(server.answer_with({1: [bad]}))
    server.streams.extend([server.break_after(0)] * 4)
    with connect(server.target, retry=retry) as client:
        for _ in range(2):
            outcomes = client.explain_stream([b"1"], request_id="batch-7")
            assert isinstance(outcomes[0].error, GradCamError)
            assert outcomes[0].error.request_id == "batch-7"
    assert {metadata["x-request-id"] for metadata in server.metadata} == {"batch-7"}


@pytest.mark.parametrize("request_id", ["", "a b", "x" * 129, "ü"])
def test_an_id_that_cannot_be_sent_is_refused(
    connect: Connect, server: FakeServer, request_id: str
) -> None:
    """A wrong request id is named before anything is sent."""
    with connect(server.target) as client:
        with pytest.raises(ValueError, match="request_id"):
            client.explain(b"7", request_id=request_id)
        with pytest.raises(ValueError, match="request_id"):
            client.explain_stream([b"7"], request_id=request_id)
    assert server.requests == []


def test_calls_belong_to_the_callers_trace(connect: Connect, server: FakeServer) -> None:
    """Calls and streams carry the trace that is current where they are made."""
    trace = pytest.importorskip("opentelemetry.trace")
    context = trace.SpanContext(0xABC, 0xDEF, is_remote=False)
    with connect(server.target) as client:
        with trace.use_span(trace.NonRecordingSpan(context)):
            client.explain(b"7")
            client.explain_stream([b"7"])
        client.explain(b"7")
    parents = [metadata.get("traceparent", "") for metadata in server.metadata]
    assert [f"{0xABC:032x}-{0xDEF:016x}" in parent for parent in parents] == [True, True, False]


# TLS.


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for localhost, and another for clients."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    folder = tmp_path_factory.mktemp("pki")
    for name in ("server", "client"):
        command = (
            f"openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 "
            f"-keyout {name}.key -out {name}.pem -subj /CN=localhost "
            f"-addext subjectAltName=DNS:localhost"
        )
        subprocess.run(command.split(), cwd=folder, check=True, capture_output=True)
    return folder


@pytest.fixture
def secure(pki: Path) -> Iterator[FakeServer]:
    """A server that requires certificates of its clients."""
    key, certificate, clients = (
        (pki / name).read_bytes() for name in ("server.key", "server.pem", "client.pem")
    )
    credentials = grpc.ssl_server_credentials(
        [(key, certificate)], root_certificates=clients, require_client_auth=True
    )
    with serving("localhost:0", credentials) as fake:
        yield fake


def test_mutual_tls(connect: Connect, secure: FakeServer, pki: Path, retry: RetryPolicy) -> None:
    """A client with a certificate is served, one without is not."""
    root = pki / "server.pem"
    mine: dict[str, Any] = {"certificate": pki / "client.pem", "key": pki / "client.key"}
    with connect(secure.target, credentials=tls_credentials(root, **mine), token="t") as client:
        assert client.explain(b"7").top.index == 7
    with (
        connect(secure.target, credentials=tls_credentials(root), retry=retry) as client,
        pytest.raises(UnavailableError),
    ):
        client.explain(b"7")


def test_a_pickled_client_reads_its_files_again(
    secure: FakeServer, pki: Path, tmp_path: Path
) -> None:
    """It carries the paths of its certificates and token, neither the key nor the token."""
    (tmp_path / "token").write_text("secret-token")
    tls = tls_credentials(pki / "server.pem", pki / "client.pem", pki / "client.key")
    token = token_from_file(tmp_path / "token")
    with Client(secure.target, credentials=tls, token=token) as client:
        sent = pickle.dumps(client)
    for secret in ((pki / "client.key").read_bytes().split()[5], b"secret-token"):
        assert secret not in sent
    with pickle.loads(sent) as again:
        assert again.explain(b"7").top.index == 7
    assert secure.metadata[-1]["authorization"] == "Bearer secret-token"


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        (lambda pki: {"root": pki / "missing.pem"}, FileNotFoundError, "missing.pem"),
        (lambda pki: {"root": pki / "server.key"}, ValueError, "root must be .* CERTIFICATE"),
        (lambda pki: {"certificate": pki / "client.pem"}, ValueError, "both certificate and key"),
        (
            lambda pki: {"certificate": pki / "client.pem", "key": pki / "client.pem"},
            ValueError,
            "key must be .* PRIVATE KEY",
        ),
    ],
)
def test_wrong_files_are_named(
    pki: Path, arguments: Callable[[Path], dict[str, Path]], kind: type[Exception], words: str
) -> None:
    """Broken PEM files are an error at once, not a failed handshake much later."""
    with pytest.raises(kind, match=words):
        tls_credentials(**arguments(pki))


def test_an_encrypted_key_is_named(tmp_path: Path) -> None:
    """A key with a passphrase cannot be used; the error names the remedy."""
    (tmp_path / "key").write_text("-----BEGIN ENCRYPTED PRIVATE KEY-----\n")
    (tmp_path / "pem").write_text("-----BEGIN CERTIFICATE-----\n")
    with pytest.raises(ValueError, match="openssl pkey"):
        tls_credentials(certificate=tmp_path / "pem", key=tmp_path / "key")
