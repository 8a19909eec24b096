"""The gRPC status of each error."""

import logging

import grpc
import pytest
from google.rpc import error_details_pb2

from gradcam_client.errors import from_status
from gradcam_server import errors
from gradcam_server.transport.status import CODES, status_code, to_status


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.InvalidRequestError("targets", "no"), grpc.StatusCode.INVALID_ARGUMENT),
        (errors.NotFoundError("model", "no"), grpc.StatusCode.NOT_FOUND),
        (errors.QueueFullError("full", 0.2), grpc.StatusCode.RESOURCE_EXHAUSTED),
        (errors.LimitError("too many", 0.2), grpc.StatusCode.RESOURCE_EXHAUSTED),
        (errors.UnauthenticatedError("who?"), grpc.StatusCode.UNAUTHENTICATED),
        (errors.ForbiddenError("no"), grpc.StatusCode.PERMISSION_DENIED),
        (errors.ReloadError("no"), grpc.StatusCode.FAILED_PRECONDITION),
        (errors.NotReadyError("warming", 2.0), grpc.StatusCode.UNAVAILABLE),
        (errors.EngineLostError("lost", 2.0), grpc.StatusCode.UNAVAILABLE),
        (errors.DeadlineError("late"), grpc.StatusCode.DEADLINE_EXCEEDED),
        (ZeroDivisionError("secret"), grpc.StatusCode.INTERNAL),
    ],
)
def test_each_error_has_its_code(error: Exception, code: grpc.StatusCode) -> None:
    """The client gets the code of the table."""
    assert status_code(to_status(error)) is code
    assert from_status(to_status(error)).code is code


def test_every_error_for_callers_is_in_the_table() -> None:
    """A new error cannot fall through to INTERNAL unnoticed."""
    bases = {errors.ExplanationServerError, errors.RetryableError, errors.StartupError}
    for kind in vars(errors).values():
        if isinstance(kind, type) and issubclass(kind, errors.ExplanationServerError):
            assert kind in bases or kind in CODES, kind


def test_retryable_errors_say_when() -> None:
    """RetryInfo arrives at the client."""
    assert from_status(to_status(errors.QueueFullError("full", 0.25))).retry_after_s == 0.25


def test_bad_requests_name_their_field() -> None:
    """BadRequest arrives, with the text."""
    status = to_status(errors.InvalidRequestError("top_k", "top_k is 9"))
    detail = error_details_pb2.BadRequest()
    assert status.details[0].Unpack(detail)
    assert detail.field_violations[0].field == "top_k"
    assert detail.field_violations[0].description == "top_k is 9"


@pytest.mark.parametrize("letter", ["a", "é", "\N{SNOWMAN}", "\N{CAT FACE}", "\ud800", "%"])
def test_long_texts_fit_into_trailers(letter: str) -> None:
    """Texts may quote the request; with more than 8 KiB a client would see another error."""
    status = to_status(errors.NotFoundError("model", f"unknown {letter * 100_000}"))
    assert status.message.startswith("unknown ")
    assert status.message.endswith(" ...")
    percent_encoded, base64 = 3 * len(status.message.encode()), 4 / 3 * status.ByteSize()
    assert percent_encoded + base64 < 7900
    assert to_status(errors.NotFoundError("model", "short")).message == "short"


def test_the_text_of_a_fault_of_ours_is_logged_not_sent(caplog: pytest.LogCaptureFixture) -> None:
    """Internal errors reveal nothing."""
    with caplog.at_level(logging.ERROR):
        status = to_status(RuntimeError("secret path /srv/model"))
    assert "secret" not in str(status)
    assert "secret" in caplog.text
