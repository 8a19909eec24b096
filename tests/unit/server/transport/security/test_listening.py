"""The addresses that may be served in plain text, and the limits of connections."""

import asyncio
import logging
from collections.abc import Iterable

import grpc
import pytest

from gradcam_server.config.settings import ServeConfig
from gradcam_server.errors import StartupError
from gradcam_server.transport.security import listening
from gradcam_server.transport.security.listening import (
    check_listening,
    connection_options,
    is_loopback,
)

CERTIFICATE = {"tls_certificate": "server.pem", "tls_key": "server.key"}
OPEN = ("0.0.0.0", "[::]", "::", "", "0", "192.0.2.1", "[2001:db8::1]", "unix:socket", "no.invalid")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "localhost", "[::1]", "::1"])
def test_loopback_needs_no_permission(host: str) -> None:
    """Loopback may be served in plain text: only this machine can reach it."""
    assert is_loopback(host)
    check_listening(ServeConfig(host=host))
    check_listening(ServeConfig(http_host=host, http_port=0))


@pytest.mark.parametrize("host", OPEN)
def test_plain_text_elsewhere_must_be_asked_for(
    host: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The error has both remedies; with the permission, the log has a warning."""
    assert not is_loopback(host)
    with pytest.raises(StartupError, match="--tls-certificate and --tls-key, or --allow-insecure"):
        check_listening(ServeConfig(host=host))
    check_listening(ServeConfig(host=host, **CERTIFICATE))  # type: ignore[arg-type]
    with caplog.at_level(logging.WARNING):
        check_listening(ServeConfig(host=host, allow_insecure=True))
    assert "is served in plain text" in caplog.text


def test_the_http_port_speaks_tls_with_the_same_certificate() -> None:
    """Without it an HTTP port on other addresses needs the permission."""
    check_listening(ServeConfig(http_host="0.0.0.0"))
    check_listening(ServeConfig(http_host="0.0.0.0", http_port=9, **CERTIFICATE))  # type: ignore[arg-type]
    with pytest.raises(StartupError, match="--http-host 0.0.0.0 .* or --allow-insecure"):
        check_listening(ServeConfig(http_host="0.0.0.0", http_port=9))
    check_listening(ServeConfig(http_host="0.0.0.0", http_port=9, allow_insecure=True))


@pytest.mark.parametrize(
    "origin", ["example.org", "https://example.org/", "https://a b", "null", ""]
)
def test_an_origin_that_no_browser_sends_stops_the_start(origin: str) -> None:
    """It would never match, and nobody would know why."""
    with pytest.raises(StartupError, match="--http-cors-origin .* SCHEME://HOST"):
        check_listening(ServeConfig(http_cors_origin=(origin,)))
    check_listening(ServeConfig(http_cors_origin=("*", "https://example.org:8443")))


def test_a_page_without_a_port_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """The server starts, as an image may set the one and a user the other."""
    with caplog.at_level(logging.WARNING):
        check_listening(ServeConfig(ui=True, http_port=1))
        assert not caplog.text
        check_listening(ServeConfig(ui=True))
    assert "--ui has no effect without --http-port" in caplog.text


def test_connections_have_limits() -> None:
    """Streams and age follow the settings; pings are limited."""
    options = dict(connection_options(ServeConfig(max_connection_streams=7)))
    assert options["grpc.max_concurrent_streams"] == 7
    assert "grpc.max_connection_age_ms" not in options
    aged = dict(connection_options(ServeConfig(max_connection_age_s=1.5)))
    assert aged["grpc.max_connection_age_ms"] == 1500
    # gradcam_client pings every two minutes at most.
    assert options["grpc.http2.min_ping_interval_without_data_ms"] <= 60_000


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
PING = b"\0\0\x08\x06\0\0\0\0\0" + b"pingping"
PING_KIND, GOAWAY_KIND, ENHANCE_YOUR_CALM = 6, 7, 11


async def goaway_code(
    options: Iterable[tuple[str, int]], pings: int, pause_s: float = 0
) -> int | None:
    """Pings a server without a call; returns the code of its GOAWAY, or None."""
    server = grpc.aio.server(options=tuple(options))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(PREFACE)
        for _ in range(pings):
            writer.write(PING)
            kind = -1
            while kind != PING_KIND:  # until it is answered
                header = await reader.readexactly(9)
                payload, kind = await reader.readexactly(int.from_bytes(header[:3])), header[3]
                if kind == GOAWAY_KIND:
                    return int.from_bytes(payload[4:8])
            await asyncio.sleep(pause_s)
        return None
    finally:
        writer.close()
        await server.stop(0)


async def test_a_flood_of_pings_ends_its_connection() -> None:
    """Our limit on strikes ends it: without the limit, gRPC would answer every ping."""
    ours = connection_options(ServeConfig())
    assert await goaway_code(ours, 20) == ENHANCE_YOUR_CALM
    no_limit = {**dict(ours), "grpc.http2.max_ping_strikes": 0}
    assert await goaway_code(no_limit.items(), 20) is None


async def test_patient_pings_keep_their_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also without calls: gRPC's default limits would end the connection of an idle client."""
    monkeypatch.setattr(listening, "MIN_PING_INTERVAL_S", 1)
    ours = connection_options(ServeConfig())
    code, default = await asyncio.gather(goaway_code(ours, 5, 1.2), goaway_code((), 5, 1.2))
    assert (code, default) == (None, ENHANCE_YOUR_CALM)
