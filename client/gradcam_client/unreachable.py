"""Rewrites gRPC's text of a failed connection so that it names the address and the remedy."""

import re

from gradcam_client.addresses import has_port, hosts, proxy_of
from gradcam_client.errors import GradCamError, UnavailableError

# gRPC's texts for a connection that failed; a server's own texts do not match.
_NO_CONNECTION = re.compile(
    r"failed to connect to all addresses|connections to all backends failing|errors resolving "
    r"|DNS resolution failed"
)
_REASONS = (
    (r"Connection refused|No such file or directory", "nothing listens at {target}{hint}"),
    (
        r"Domain name not found|not known",
        "the name in {target} is not known; the address of a server is HOST:PORT",
    ),
    (r"Misformatted domain name|Failed to parse port", "{target!r} is not HOST:PORT"),
    (r"unreachable|No route to host|[Tt]imed? ?out", "{target} cannot be reached from here"),
    (
        r"http1\.x server",
        "what listens at {target} speaks HTTP/1, not gRPC; is this the port of "
        "gradcam serve, and not its --http-port?",
    ),
)
_START = "; start a server there (gradcam serve), or name another address (HOST:PORT)"
_NO_PORT = ", port 443, gRPC's default; the address of a server is HOST:PORT"


def explained(error: GradCamError, target: str) -> GradCamError:
    """Returns the error with a text that says why a server is not reached, or the error itself.

    Args:
        error: The error of a call.
        target: The gRPC target of the call; empty if unknown.
    """
    message = explain(error.message, target) if isinstance(error, UnavailableError) else None
    if message is None:
        return error
    return type(error)(error.code, message, error.retry_after_s, error.field)


def explain(text: str, target: str) -> str | None:
    """Returns a plain text for gRPC's text of a failed connection, or None for other texts.

    Args:
        text: The details of a call that ended with UNAVAILABLE.
        target: The gRPC target of the call; empty if unknown.
    """
    if not target or not _NO_CONNECTION.match(text):
        return None
    proxy = proxy_of(target)
    if proxy is not None:
        reason = text.rpartition(": ")[2].strip("]")
        host = next(hosts(target))
        return (
            f"{target} is not reached through the proxy {proxy.address}, which the environment "
            f"variable {proxy.variable} names ({reason}); no_proxy={host} goes around it"
        )
    for sign, words in _REASONS:
        if re.search(sign, text):
            hint = _START if has_port(target) else _NO_PORT
            return words.format(target=target, hint=hint)
    return None
