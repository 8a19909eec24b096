"""The error of each status."""

import copy
import pickle
from typing import Any

import grpc
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc.error_details_pb2 import BadRequest, DebugInfo, RetryInfo
from google.rpc.status_pb2 import Status

from gradcam_client import (
    CallCancelledError,
    DeadlineExceededError,
    GradCamError,
    InvalidRequestError,
    MessageTooLargeError,
    NotFoundError,
    OverloadedError,
    PermissionDeniedError,
    ServerError,
    UnauthenticatedError,
    UnavailableError,
)
from gradcam_client.errors import from_code, from_rpc_error, from_status

CODE = grpc.StatusCode


@pytest.mark.parametrize(
    ("code", "kind", "retryable"),
    [
        (CODE.INVALID_ARGUMENT, InvalidRequestError, False),
        (CODE.FAILED_PRECONDITION, InvalidRequestError, False),
        (CODE.OUT_OF_RANGE, InvalidRequestError, False),
        (CODE.NOT_FOUND, NotFoundError, False),
        (CODE.RESOURCE_EXHAUSTED, OverloadedError, True),
        (CODE.UNAVAILABLE, UnavailableError, True),
        (CODE.DEADLINE_EXCEEDED, DeadlineExceededError, False),
        (CODE.CANCELLED, CallCancelledError, False),
        (CODE.INTERNAL, ServerError, False),
        (CODE.UNAUTHENTICATED, UnauthenticatedError, False),
        (CODE.PERMISSION_DENIED, PermissionDeniedError, False),
        (CODE.UNKNOWN, ServerError, False),
    ],
)
def test_each_code_has_its_class(
    code: grpc.StatusCode, kind: type[GradCamError], retryable: bool
) -> None:
    """A code decides the class, and only a full queue and an absent server are retryable."""
    error = from_code(code, "why")
    assert type(error) is kind
    assert error.code is code
    assert error.retryable is retryable
    assert str(error) == "why"


def test_a_large_message_is_not_a_full_queue() -> None:
    """A message over gRPC's size limit has the code of a full queue but is never retried."""
    error = from_code(CODE.RESOURCE_EXHAUSTED, "SERVER: Received message larger than max (9 vs. 4)")
    assert type(error) is MessageTooLargeError
    assert not error.retryable


def test_details_are_read() -> None:
    """The retry delay and the first wrong field are attributes; other details are ignored."""
    retry = RetryInfo()
    retry.retry_delay.FromMilliseconds(1500)
    fields = [BadRequest.FieldViolation(field=name) for name in ("top_k", "layer")]
    status = Status(code=14, message="later")
    for detail in (DebugInfo(), retry, BadRequest(field_violations=fields)):
        status.details.add().Pack(detail)
    error = from_status(status)
    assert (error.retry_after_s, error.field) == (1.5, "top_k")


def test_malformed_details_do_not_hide_the_error() -> None:
    """Details that cannot be parsed leave the code and the message."""
    garbage = AnyMessage(type_url="type.googleapis.com/google.rpc.RetryInfo", value=b"\xff")
    error = from_code(CODE.UNAVAILABLE, "later", [garbage])
    assert (error.message, error.retry_after_s) == ("later", None)


@pytest.mark.parametrize("number", [0, 99])
def test_a_status_of_no_error_code_is_unknown(number: int) -> None:
    """A status with an unknown code is still an error."""
    assert from_status(Status(code=number)).code is CODE.UNKNOWN


def test_an_error_without_text_names_its_code() -> None:
    """No error is printed as an empty line."""
    assert str(from_code(CODE.INTERNAL, "")) == "INTERNAL"


def test_errors_travel_between_processes() -> None:
    """Errors can be pickled and copied."""
    error = InvalidRequestError(CODE.INVALID_ARGUMENT, "bad", None, "top_k")
    error.request_id = "r1"
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(twin) is InvalidRequestError
        assert (twin.code, twin.message, twin.field) == (error.code, "bad", "top_k")
        assert twin.request_id == "r1"


class _Call(grpc.RpcError):
    def __init__(self, trailing: tuple[tuple[str, bytes], ...]) -> None:
        self._trailing = trailing

    def code(self) -> grpc.StatusCode:
        return CODE.NOT_FOUND

    def details(self) -> str:
        return "no such model"

    def trailing_metadata(self) -> Any:
        return self._trailing


@pytest.mark.parametrize(
    "rich", [Status(code=13, message="contradicts").SerializeToString(), b"\xff"]
)
def test_inconsistent_rich_status_is_ignored(rich: bytes) -> None:
    """A rich status that contradicts the call, or cannot be decoded, does not mask its error."""
    error = from_rpc_error(_Call((("grpc-status-details-bin", rich),)))
    assert type(error) is NotFoundError
    assert error.message == "no such model"


def test_a_call_reset_by_a_server_that_shuts_down_is_retried() -> None:
    """A bare CANCELLED from a closing server counts as UNAVAILABLE: no work was done."""
    assert from_code(grpc.StatusCode.CANCELLED, "CANCELLED").retryable
    assert not from_code(grpc.StatusCode.CANCELLED, "Channel closed!").retryable
