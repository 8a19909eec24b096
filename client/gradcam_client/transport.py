"""What both clients tell gRPC, and what they check before."""

import math
import os
from collections.abc import Sequence
from typing import Any, TypeAlias

import grpc
import numpy as np
from grpc_health.v1 import health_pb2

from gradcam_client.errors import DeadlineExceededError, GradCamError, UnavailableError
from gradcam_client.retry import RetryPolicy

ChannelOptions: TypeAlias = Sequence[tuple[str, Any]]

DEFAULT_TARGET = "localhost:50051"
DEFAULT_TIMEOUT_S = 60.0
DEFAULT_MAX_IN_FLIGHT = 32
DEFAULT_MAX_MESSAGE_BYTES = 64 * 2**20
DEFAULT_RETRY = RetryPolicy()

HEALTH_TIMEOUT_S = 5.0
READY_POLL_S = 0.2
SERVING = "SERVING"
# How long a stream waits for what ought to end at once.
END_S = 1.0


def merge_options(
    max_message_bytes: int, retry: RetryPolicy, extra: ChannelOptions
) -> list[tuple[str, Any]]:
    """Returns the options of a channel; the extra ones win."""
    ours = {
        # Two layers of retries would multiply.
        "grpc.enable_retries": 0,
        "grpc.max_send_message_length": max_message_bytes,
        "grpc.max_receive_message_length": max_message_bytes,
        # By default a channel that lost its server refuses calls for up to two minutes
        # before it connects again, however often we try.
        "grpc.initial_reconnect_backoff_ms": round(retry.initial_backoff_s * 1000),
        "grpc.max_reconnect_backoff_ms": round(retry.max_backoff_s * 1000),
    }
    return list({**ours, **dict(extra)}.items())


def check_timeout(timeout_s: float) -> float:
    """Returns a timeout in seconds.

    Raises:
        ValueError: It is not positive and finite.
    """
    if not 0 < timeout_s < math.inf:
        raise ValueError(f"timeout_s must be positive and finite, not {timeout_s}")
    return timeout_s


def check_images(images: object) -> None:
    """Catches a single image where many are wanted: all of its kinds can be iterated.

    Raises:
        TypeError: It is a single image.
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
    """Returns the error of a wait that took too long."""
    message = f"the server is not ready after {timeout_s:g} s: {last}"
    return DeadlineExceededError(grpc.StatusCode.DEADLINE_EXCEEDED, message)
