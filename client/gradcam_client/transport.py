"""Channels, their options and the checks of arguments that both clients share."""

import json
import math
import os
import re
import uuid
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import grpc
import numpy as np
from grpc_health.v1 import health_pb2

from gradcam_client.addresses import is_loopback
from gradcam_client.errors import DeadlineExceededError, GradCamError, UnavailableError
from gradcam_client.retry import RetryPolicy

ChannelOptions: TypeAlias = Sequence[tuple[str, Any]]
Metadata: TypeAlias = tuple[tuple[str, str], ...]
Token: TypeAlias = str | Callable[[], str]
"""A bearer token, or a function that returns it and is called before each attempt."""

DEFAULT_TARGET = "localhost:50051"
DEFAULT_TIMEOUT_S = 60.0
DEFAULT_MAX_IN_FLIGHT = 32
DEFAULT_MAX_MESSAGE_BYTES = 64 * 2**20
DEFAULT_RETRY = RetryPolicy()

HEALTH_TIMEOUT_S = 5.0
READY_POLL_S = 0.2
SERVING = "SERVING"
# Pause between connection attempts to a lost server; each attempt costs one refused packet.
RECONNECT_S = 1.0
# Timeout of a connection attempt; gRPC's default is 20 s.
CONNECT_S = 5.0
# Pings are sent only during calls, often enough for routers that drop idle connections. A gRPC
# server with the default policy allows a ping every five minutes while it sends nothing, and ends
# the connection at the fourth ping too many: that is a silent call of eight minutes.
KEEPALIVE_S = 120.0
KEEPALIVE_TIMEOUT_S = 20.0
# How long a stream waits for threads, tasks and calls that end at once in normal operation.
END_S = 1.0


# Schemes of targets that may resolve to several servers.
_RESOLVED = ("dns:", "ipv4:", "ipv6:")
_SCHEME = re.compile(
    r"(dns|ipv[46]|unix|unix-abstract|vsock|xds):|[a-z][a-z0-9+.-]*://", re.IGNORECASE
)
_LINK = re.compile(r"(https?|grpcs?|tcp)://", re.IGNORECASE)
# The health check leaves out servers that report NOT_SERVING, for instance while they drain.
_ROUND_ROBIN = json.dumps(
    {"loadBalancingConfig": [{"round_robin": {}}], "healthCheckConfig": {"serviceName": ""}}
)


def split_target(target: str | Sequence[str]) -> tuple[str, ...]:
    """Returns the gRPC targets of a string, of a sequence, or of a list such as "a:1,b:2".

    Raises:
        ValueError: There is no target, or a target is empty or a link.
    """
    if isinstance(target, str):
        target = [target] if _SCHEME.match(target) else target.split(",")
    targets = tuple(dict.fromkeys(address.strip() for address in target))
    for address in targets:
        if link := _LINK.match(address):
            tls = "; for TLS pass credentials, or --tls" if link[0] == "https://" else ""
            raise ValueError(
                f'target must be "host:port" without {link[0]}, not {address[:80]!r}{tls}'
            )
    if not all(targets) or not targets:
        raise ValueError(f'target must be "host:port" or several of these, not {target!r}')
    return targets


def merge_options(
    max_message_bytes: int, retry: RetryPolicy, extra: ChannelOptions
) -> dict[str, Any]:
    """Returns the options of a channel; the extra options override the client's."""
    ours = {
        # Retries of gRPC would multiply with those of the client.
        "grpc.enable_retries": 0,
        "grpc.max_send_message_length": max_message_bytes,
        "grpc.max_receive_message_length": max_message_bytes,
        # By default a channel that lost its server refuses calls for up to two minutes before it
        # connects again, however often the client retries.
        "grpc.initial_reconnect_backoff_ms": _ms(min(retry.initial_backoff_s, RECONNECT_S)),
        "grpc.max_reconnect_backoff_ms": _ms(RECONNECT_S),
        "grpc.min_reconnect_backoff_ms": _ms(CONNECT_S),
        # Detects a peer that vanished without closing the connection.
        "grpc.keepalive_time_ms": _ms(KEEPALIVE_S),
        "grpc.keepalive_timeout_ms": _ms(KEEPALIVE_TIMEOUT_S),
        "grpc.keepalive_permit_without_calls": 0,
    }
    return {**ours, **dict(extra)}


def _ms(seconds: float) -> int:
    return round(seconds * 1000)


def open_channels(
    grpc_or_aio: Any,
    targets: Sequence[str],
    channels: int,
    credentials: grpc.ChannelCredentials | None,
    options: dict[str, Any],
) -> list[tuple[int, str, Any]]:
    """Opens a number of channels to each target, each with its own connection.

    Returns:
        (number of the target, target, channel) of each channel: the first channel to each target,
        then the second, and so on.
    """
    if channels > 1:  # else gRPC shares a connection between equal channels
        options = {"grpc.use_local_subchannel_pool": 1, **options}
    opened = []
    for number, target in [*enumerate(targets)] * channels:
        may_be_several = target.startswith(_RESOLVED)
        balanced = {"grpc.service_config": _ROUND_ROBIN, **options} if may_be_several else options
        channel = open_channel(grpc_or_aio, target, credentials, [*balanced.items()])
        opened.append((number, target, channel))
    return opened


def open_channel(
    grpc_or_aio: Any,
    target: str,
    credentials: grpc.ChannelCredentials | None,
    options: ChannelOptions = (),
) -> Any:
    """Opens a channel; to this machine, it ignores the proxy that the environment may name.

    Args:
        grpc_or_aio: The module ``grpc`` or ``grpc.aio``.
        target: The gRPC target.
        credentials: For TLS; None is plain text.
        options: The options of the channel.

    Returns:
        A channel of that module.
    """
    if is_loopback(target):
        options = [("grpc.enable_http_proxy", 0), *options]
    if credentials is None:
        return grpc_or_aio.insecure_channel(target, options)
    return grpc_or_aio.secure_channel(target, credentials, options)


def check_channels(channels: int) -> int:
    """Returns the number of channels to each server.

    Raises:
        ValueError: The number is not positive.
    """
    if channels < 1:
        raise ValueError(f"channels must be at least 1, not {channels}")
    return channels


def bearer(token: str) -> str:
    """Returns the value of the authorization header.

    Raises:
        ValueError: The token is not a valid header value. The text does not contain the token.
    """
    if not re.fullmatch(r"[!-~]+", token):
        raise ValueError("a token must be printable ASCII without spaces, and not empty")
    return f"Bearer {token}"


def make_request_id(request_id: str | None) -> str:
    """Returns the id, or a new id for None.

    Raises:
        ValueError: The id is not a valid header value.
    """
    if request_id is None:
        return uuid.uuid4().hex
    if not re.fullmatch(r"[!-~]{1,128}", request_id):
        raise ValueError(
            f"request_id must be 1 to 128 printable ASCII characters without spaces, "
            f"not {request_id!r}"
        )
    return request_id


def check_timeout(timeout_s: float, name: str = "timeout_s") -> float:
    """Returns a timeout in seconds.

    Raises:
        ValueError: The timeout is not positive and finite.
    """
    if not 0 < timeout_s < math.inf:
        raise ValueError(f"{name} must be positive and finite, not {timeout_s}")
    return timeout_s


def check_images(images: object) -> None:
    """Refuses a single image in place of an iterable of images: paths and arrays are iterable.

    Raises:
        TypeError: ``images`` is a single image.
    """
    is_pixels = isinstance(images, np.ndarray) and images.ndim < 4
    if is_pixels or isinstance(images, str | bytes | os.PathLike):
        raise TypeError("explain_stream takes an iterable of images; explain takes one image")


def serving_status(response: health_pb2.HealthCheckResponse) -> str:
    """Returns the name of a health status, such as "SERVING"."""
    return health_pb2.HealthCheckResponse.ServingStatus.Name(response.status)


def still_starting(error: GradCamError) -> bool:
    """Whether a failed health check may succeed later."""
    return isinstance(error, UnavailableError | DeadlineExceededError)


def not_ready(timeout_s: float, last: str) -> DeadlineExceededError:
    """Returns the error of a server that is not ready in time."""
    message = f"the server is not ready after {timeout_s:g} s: {last}"
    return DeadlineExceededError(grpc.StatusCode.DEADLINE_EXCEEDED, message)
