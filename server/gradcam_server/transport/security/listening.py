"""The addresses that may be served in plain text, and the limits of connections."""

import ipaddress
import logging
import re
import socket

from gradcam_server.config.settings import ServeConfig
from gradcam_server.errors import StartupError

logger = logging.getLogger(__name__)

MIN_PING_INTERVAL_S = 10
MAX_PING_STRIKES = 2
HANDSHAKE_TIMEOUT_S = 10
KEEPALIVE_S = 60
KEEPALIVE_TIMEOUT_S = 20
MAX_METADATA_BYTES = 16 * 1024

_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/?#\s]+")


def check_listening(config: ServeConfig) -> None:
    """Checks that only loopback is served in plain text, unless the settings allow more.

    Raises:
        StartupError: Other machines could read and send everything, or an origin of pages that may
            call the HTTP API is none.
    """
    _check_http(config)
    if config.tls_certificate is not None:
        return
    listeners = [("host", config.host)]
    if config.http_port is not None:
        listeners.append(("http-host", config.http_host))
    for name, host in listeners:
        if is_loopback(host):
            continue
        if not config.allow_insecure:
            raise StartupError(
                f"--{name} {host} is not loopback and would be served in plain text; it needs "
                "--tls-certificate and --tls-key, or --allow-insecure (behind a proxy that speaks "
                "TLS, or in a network that you trust)"
            )
        logger.warning(
            "%s is served in plain text: anybody on the network path can read and send everything",
            host,
        )


def _check_http(config: ServeConfig) -> None:
    if config.ui and config.http_port is None:
        logger.warning("--ui has no effect without --http-port")
    for origin in config.http_cors_origin:
        if origin != "*" and not _ORIGIN.fullmatch(origin):
            raise StartupError(
                f"--http-cors-origin {origin}: an origin is SCHEME://HOST[:PORT], without a path, "
                "such as https://example.org; * is all"
            )


def check_port_is_free(host: str, port: int) -> None:
    """Checks that no other server listens on a port, which gRPC would share with it.

    Raises:
        StartupError: Another server listens, or the address is not of this machine.
    """
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return  # gRPC reports the error
    for family, kind, protocol, _, address in found:
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(address)
            except OSError as error:
                raise StartupError(
                    f"cannot listen on {host}:{port}: is the port in use?"
                ) from error


def is_loopback(host: str) -> bool:
    """Returns whether an address, or each address of a name, is of loopback."""
    try:
        # An empty host means every address, but getaddrinfo would call it loopback.
        found = socket.getaddrinfo(host.strip("[]"), None) if host else []
    except (OSError, UnicodeError):
        return False
    addresses = [ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in found]
    return bool(addresses) and all(address.is_loopback for address in addresses)


def connection_options(config: ServeConfig) -> tuple[tuple[str, int], ...]:
    """Returns the gRPC options that keep one connection from harming other connections."""
    age_ms = round(config.max_connection_age_s * 1000)
    return (
        ("grpc.max_concurrent_streams", config.max_connection_streams),
        ("grpc.max_metadata_size", MAX_METADATA_BYTES // 2),
        ("grpc.absolute_max_metadata_size", MAX_METADATA_BYTES),
        ("grpc.server_handshake_timeout_ms", HANDSHAKE_TIMEOUT_S * 1000),
        # Notices a peer that is gone without closing its connection.
        ("grpc.keepalive_time_ms", KEEPALIVE_S * 1000),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_S * 1000),
        # A peer that pings more often gets GOAWAY.
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", MIN_PING_INTERVAL_S * 1000),
        ("grpc.http2.max_ping_strikes", MAX_PING_STRIKES),
        *((("grpc.max_connection_age_ms", age_ms),) if age_ms else ()),
    )
