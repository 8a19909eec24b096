"""From the server's errors to gRPC codes and error details."""

import asyncio
import logging
from typing import Any

import grpc
from google.protobuf import any_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from gradcam_server.errors import (
    DeadlineError,
    EngineLostError,
    ForbiddenError,
    InvalidRequestError,
    LimitError,
    NotFoundError,
    NotReadyError,
    QueueFullError,
    ReloadError,
    RetryableError,
    TooLargeError,
    UnauthenticatedError,
)

logger = logging.getLogger(__name__)

_MAX_MESSAGE_BYTES = 1200

CODES: dict[type[Exception], grpc.StatusCode] = {
    InvalidRequestError: grpc.StatusCode.INVALID_ARGUMENT,
    NotFoundError: grpc.StatusCode.NOT_FOUND,
    QueueFullError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    TooLargeError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    DeadlineError: grpc.StatusCode.DEADLINE_EXCEEDED,
    NotReadyError: grpc.StatusCode.UNAVAILABLE,
    EngineLostError: grpc.StatusCode.UNAVAILABLE,
    UnauthenticatedError: grpc.StatusCode.UNAUTHENTICATED,
    ForbiddenError: grpc.StatusCode.PERMISSION_DENIED,
    LimitError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    ReloadError: grpc.StatusCode.FAILED_PRECONDITION,
}


def to_status(error: Exception) -> status_pb2.Status:
    """Makes the status of an error. An error that is not in ``CODES`` is logged, and INTERNAL."""
    code = CODES.get(type(error))
    if code is None:
        logger.error("Internal error", exc_info=error)
        return _status(grpc.StatusCode.INTERNAL, "internal error; the server's log has the details")
    message = _clip(str(error))
    return _status(code, message, *_details(error, message))


def status_code(status: status_pb2.Status) -> grpc.StatusCode:
    """Returns the gRPC code of a status."""
    return next(code for code in grpc.StatusCode if code.value[0] == status.code)


async def abort(context: Any, status: status_pb2.Status) -> None:
    """Ends a call with a status and its details."""
    details = ("grpc-status-details-bin", status.SerializeToString())
    try:
        await context.abort(status_code(status), status.message, (details,))
    except grpc.aio.AbortError:
        raise
    except Exception as error:  # gRPC's class for it is private
        # The client is gone: no fault of the server, and nobody waits for the status.
        logger.debug("A status could not be sent: %r", error)
        raise asyncio.CancelledError from error


def _clip(message: str) -> str:
    """Shortens a text that may quote the request: clients refuse more than 8 KiB of trailers."""
    short = message.encode("utf-8", "replace")[:_MAX_MESSAGE_BYTES].decode("utf-8", "ignore")
    return short if short == message else short + " ..."


def _details(error: Exception, message: str) -> list[Message]:
    if isinstance(error, RetryableError):
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromMilliseconds(round(error.retry_after_s * 1000))
        return [retry]
    if isinstance(error, InvalidRequestError | NotFoundError):
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=error.field, description=message
        )
        return [error_details_pb2.BadRequest(field_violations=[violation])]
    return []


def _status(code: grpc.StatusCode, message: str, *details: Message) -> status_pb2.Status:
    packed = []
    for detail in details:
        packed.append(any_pb2.Any())
        packed[-1].Pack(detail)
    return status_pb2.Status(code=code.value[0], message=message, details=packed)
