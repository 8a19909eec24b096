"""Which addresses may be listened on in plain text."""

import logging

import pytest

from gradcam_server.config import ServeConfig
from gradcam_server.errors import StartupError
from gradcam_server.security.listening import check_listening, connection_options, is_loopback

CERTIFICATE = {"tls_certificate": "server.pem", "tls_key": "server.key"}
OPEN = ("0.0.0.0", "[::]", "::", "", "0", "192.0.2.1", "[2001:db8::1]", "unix:socket", "no.invalid")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "localhost", "[::1]", "::1"])
def test_loopback_needs_no_permission(host: str) -> None:
    """Only this machine can reach it."""
    assert is_loopback(host)
    check_listening(ServeConfig(host=host))
    check_listening(ServeConfig(http_host=host, http_port=0))


@pytest.mark.parametrize("host", OPEN)
def test_plain_text_elsewhere_must_be_asked_for(
    host: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Refused with both ways out; allowed, it is logged as a warning."""
    assert not is_loopback(host)
    with pytest.raises(StartupError, match="--tls-certificate and --tls-key, or --allow-insecure"):
        check_listening(ServeConfig(host=host))
    check_listening(ServeConfig(host=host, **CERTIFICATE))  # type: ignore[arg-type]
    with caplog.at_level(logging.WARNING):
        check_listening(ServeConfig(host=host, allow_insecure=True))
    assert "is served in plain text" in caplog.text


def test_the_http_port_is_plain_text_with_tls_too() -> None:
    """Metrics elsewhere need the permission, if there is such a port."""
    check_listening(ServeConfig(http_host="0.0.0.0"))
    with pytest.raises(StartupError, match="--http-host 0.0.0.0 .* needs --allow-insecure"):
        check_listening(ServeConfig(http_host="0.0.0.0", http_port=9, **CERTIFICATE))  # type: ignore[arg-type]
    check_listening(ServeConfig(http_host="0.0.0.0", http_port=9, allow_insecure=True))


def test_connections_have_limits() -> None:
    """Streams as set, an age only if set, and few pings."""
    options = dict(connection_options(ServeConfig(max_connection_streams=7)))
    assert options["grpc.max_concurrent_streams"] == 7
    assert "grpc.max_connection_age_ms" not in options
    aged = dict(connection_options(ServeConfig(max_connection_age_s=1.5)))
    assert aged["grpc.max_connection_age_ms"] == 1500
    # gradcam_client pings every two minutes at most.
    assert options["grpc.http2.min_ping_interval_without_data_ms"] <= 60_000
