"""The errors of a call.

    GradCamError                 code, message, retry_after_s, field, retryable, request_id
    |-- InvalidRequestError      INVALID_ARGUMENT, FAILED_PRECONDITION, OUT_OF_RANGE
    |-- NotFoundError            NOT_FOUND: no such model or layer
    |-- UnauthenticatedError     UNAUTHENTICATED: no token, or not a valid one
    |-- PermissionDeniedError    PERMISSION_DENIED: a valid token that does not allow it
    |-- MessageTooLargeError     RESOURCE_EXHAUSTED: a message over the size limit
    |-- OverloadedError          RESOURCE_EXHAUSTED: the queue is full; retryable
    |-- UnavailableError         UNAVAILABLE: no connection, warming up, draining; retryable
    |-- DeadlineExceededError    DEADLINE_EXCEEDED: no answer in time
    |-- CallCancelledError       CANCELLED: the channel was closed, or the server gave up
    `-- ServerError              any other code

Mistakes that are found before anything is sent are Python's own errors: ``OSError`` for a
file that cannot be read, ``TypeError`` and ``ValueError`` for a bad argument.
"""

from collections.abc import Iterable, Sequence
from contextlib import suppress

import grpc
from google.protobuf.any_pb2 import Any
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import BadRequest, RetryInfo
from google.rpc.status_pb2 import Status
from grpc_status import rpc_status


class GradCamError(Exception):
    """Base class of the errors of a call, or of one image of a stream.

    Attributes:
        code: The gRPC status code.
        message: The server's text of the error.
        retry_after_s: The pause before another attempt that the server asks for, in seconds
            from the answer, or None.
        field: The request field that is wrong, as in the proto file, or None.
        request_id: The call's name in the server's log; None if nothing was sent.
    """

    request_id: str | None = None

    def __init__(
        self,
        code: grpc.StatusCode,
        message: str,
        retry_after_s: float | None = None,
        field: str | None = None,
    ) -> None:
        # All attributes are args, so that the error can be copied and pickled.
        super().__init__(code, message, retry_after_s, field)
        self.code = code
        self.message = message
        self.retry_after_s = retry_after_s
        self.field = field

    def __str__(self) -> str:
        return self.message or self.code.name

    @property
    def retryable(self) -> bool:
        """Whether the same request may succeed later."""
        return False


class InvalidRequestError(GradCamError):
    """The request is invalid and can never succeed."""


class NotFoundError(GradCamError):
    """There is no such model, layer or health service."""


class UnauthenticatedError(GradCamError):
    """There is no token, or no valid token."""


class PermissionDeniedError(GradCamError):
    """The token is valid, but does not allow the call."""


class MessageTooLargeError(GradCamError):
    """The request or the answer exceeds the size limit of client or server."""


class OverloadedError(GradCamError):
    """The server's queue is full, or the rate of the token is used up."""

    @property
    def retryable(self) -> bool:
        """True: the queue empties."""
        return True


class UnavailableError(GradCamError):
    """There is no connection, or the server is warming up or draining."""

    @property
    def retryable(self) -> bool:
        """True: the server starts again, or the connection returns."""
        return True


class DeadlineExceededError(GradCamError):
    """No answer came in time."""


class CallCancelledError(GradCamError):
    """The call was cancelled, for instance because the client was closed."""


class ServerError(GradCamError):
    """The server failed; the request is not the cause."""


_CLASSES: dict[grpc.StatusCode, type[GradCamError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequestError,
    grpc.StatusCode.FAILED_PRECONDITION: InvalidRequestError,
    grpc.StatusCode.OUT_OF_RANGE: InvalidRequestError,
    grpc.StatusCode.NOT_FOUND: NotFoundError,
    grpc.StatusCode.UNAUTHENTICATED: UnauthenticatedError,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDeniedError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: OverloadedError,
    grpc.StatusCode.UNAVAILABLE: UnavailableError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceededError,
    grpc.StatusCode.CANCELLED: CallCancelledError,
}
_CODES = {code.value[0]: code for code in grpc.StatusCode if code is not grpc.StatusCode.OK}
# Every attempt, on any server, would end in the same error.
_SETTLED = (
    InvalidRequestError,
    NotFoundError,
    UnauthenticatedError,
    PermissionDeniedError,
    MessageTooLargeError,
)
# gRPC refuses large messages with the code of a full queue; only the text differs.
_TOO_LARGE = "larger than max"
# The text of calls that a gRPC server resets at shutdown before their handler begins; a call
# that the client cancels has another text.
_RESET = "CANCELLED"


def from_code(code: grpc.StatusCode, message: str, details: Iterable[Any] = ()) -> GradCamError:
    """Chooses the class of an error and reads its details.

    Args:
        code: The gRPC status code.
        message: The text.
        details: ``google.rpc.RetryInfo`` and ``google.rpc.BadRequest`` are read,
            others are ignored.
    """
    kind = _CLASSES.get(code, ServerError)
    if kind is OverloadedError and _TOO_LARGE in message:
        kind = MessageTooLargeError
    if kind is CallCancelledError and message == _RESET:
        kind = UnavailableError
    retry_after_s, field = None, None
    for detail in details:
        retry, bad_request = RetryInfo(), BadRequest()
        with suppress(DecodeError):
            if detail.Unpack(retry):
                delay = retry.retry_delay
                retry_after_s = max(0.0, delay.seconds + delay.nanos / 1e9)
            elif detail.Unpack(bad_request) and bad_request.field_violations:
                field = bad_request.field_violations[0].field
    return kind(code, message, retry_after_s, field)


def from_status(status: Status) -> GradCamError:
    """Converts the error that a stream carries in place of an answer."""
    code = _CODES.get(status.code, grpc.StatusCode.UNKNOWN)
    return from_code(code, status.message, status.details)


def from_rpc_error(error: grpc.RpcError) -> GradCamError:
    """Converts the error of a call of ``grpc`` or ``grpc.aio``."""
    try:
        status = rpc_status.from_call(error)  # type: ignore[arg-type]
    except (ValueError, DecodeError):  # contradicts the call's code, or cannot be decoded
        status = None
    details = status.details if status else ()
    return from_code(error.code(), error.details() or "", details)


def closed_error() -> CallCancelledError:
    """Returns the error of a call whose client is closed."""
    return CallCancelledError(
        grpc.StatusCode.CANCELLED, "the client is closed; make another one, or close it later"
    )


def decisive(errors: Sequence[GradCamError], *, are_all: bool) -> GradCamError | None:
    """Chooses the error of a call with several simultaneous attempts.

    Args:
        errors: The errors of the attempts that failed, in their order; may be empty.
        are_all: Whether all attempts have ended.

    Returns:
        An error that every attempt would end in; or, if all attempts have ended, the first error
        that is not retryable, or the last error; or None while an attempt may still succeed.
    """
    for error in errors:
        if isinstance(error, _SETTLED):
            return error
    if not are_all:
        return None
    return next((error for error in errors if not error.retryable), errors[-1])
