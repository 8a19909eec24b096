"""Errors as problem details (RFC 9457).

gRPC's code, the field and the time to retry are those of the gRPC service (transport/status.py):
one table more, from the code to a status of HTTP.
"""

import json
import math
import re
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import grpc
from google.rpc import error_details_pb2, status_pb2
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from gradcam_server.errors import ExplanationServerError
from gradcam_server.transport.status import status_code, to_status

CONTENT_TYPE = "application/problem+json"

STATUS_MEANINGS: dict[HTTPStatus, str] = {
    HTTPStatus.BAD_REQUEST: "The request is wrong: see field and remedy.",
    HTTPStatus.UNAUTHORIZED: "The token is missing or unknown.",
    HTTPStatus.FORBIDDEN: "The client may not do this.",
    HTTPStatus.NOT_FOUND: "There is no such path, model or layer.",
    HTTPStatus.METHOD_NOT_ALLOWED: "The path has another method: see Allow.",
    HTTPStatus.NOT_ACCEPTABLE: "There is no such form of the answer.",
    HTTPStatus.REQUEST_TIMEOUT: "The body did not arrive in time.",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "The body is over the size limit.",
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE: "The body is of an unknown type.",
    HTTPStatus.TOO_MANY_REQUESTS: "The queue is full, or a limit is reached: see Retry-After.",
    HTTPStatus.INTERNAL_SERVER_ERROR: "A fault of the server; its log has the details.",
    HTTPStatus.SERVICE_UNAVAILABLE: "The server starts, restarts or stops: see Retry-After.",
    HTTPStatus.GATEWAY_TIMEOUT: "The answer was not ready at the deadline of the request.",
}
"""All statuses of errors."""

_STATUSES: dict[grpc.StatusCode, HTTPStatus] = {
    grpc.StatusCode.INVALID_ARGUMENT: HTTPStatus.BAD_REQUEST,
    grpc.StatusCode.UNAUTHENTICATED: HTTPStatus.UNAUTHORIZED,
    grpc.StatusCode.PERMISSION_DENIED: HTTPStatus.FORBIDDEN,
    grpc.StatusCode.NOT_FOUND: HTTPStatus.NOT_FOUND,
    grpc.StatusCode.RESOURCE_EXHAUSTED: HTTPStatus.TOO_MANY_REQUESTS,
    grpc.StatusCode.FAILED_PRECONDITION: HTTPStatus.BAD_REQUEST,
    grpc.StatusCode.UNIMPLEMENTED: HTTPStatus.NOT_IMPLEMENTED,
    grpc.StatusCode.UNAVAILABLE: HTTPStatus.SERVICE_UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED: HTTPStatus.GATEWAY_TIMEOUT,
}
# Errors that have no code of gRPC, because gRPC itself has no such thing as their cause.
_CODES: dict[int, grpc.StatusCode] = {
    HTTPStatus.NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    HTTPStatus.METHOD_NOT_ALLOWED: grpc.StatusCode.UNIMPLEMENTED,
    HTTPStatus.FORBIDDEN: grpc.StatusCode.PERMISSION_DENIED,
}
_CHALLENGE = {"WWW-Authenticate": "Bearer"}
# "what was wrong: what would be right", or with a semicolon; texts of the request are in quotes.
_REMEDY = re.compile(r"(?:'[^']*'|[^';:]|[':](?! ))*[;:] (.+)", re.DOTALL)


class CallFailedError(grpc.aio.AbortError):
    """A call ended with a status that is not OK.

    Attributes:
        status: The status, with its details.
        fields: Names of fields in this request, by their names in the proto file.
        http_status: The status of HTTP; None if the code decides.
    """

    def __init__(
        self,
        status: status_pb2.Status,
        fields: Mapping[str, str] | None = None,
        http_status: HTTPStatus | None = None,
    ) -> None:
        super().__init__(status.message)
        self.status, self.fields, self.http_status = status, fields or {}, http_status


class ProblemError(Exception):
    """A request that the HTTP port itself refuses.

    Args:
        status: The status of HTTP.
        detail: What was wrong.
        remedy: What would be right.
        field: The header, parameter or field that is wrong.
        headers: Headers of the answer.
    """

    def __init__(
        self,
        status: HTTPStatus,
        detail: str,
        remedy: str = "",
        field: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status, self.remedy, self.field = status, remedy, field
        self.headers = headers or {}


def to_problem(error: Exception) -> Response:
    """Writes an error as problem details."""
    match error:
        case ProblemError():
            code = _CODES.get(error.status, grpc.StatusCode.INVALID_ARGUMENT)
            return _respond(
                *(error.status, str(error), code),
                *(error.headers, {"field": error.field, "remedy": error.remedy}),
            )
        case CallFailedError():
            return _from_status(error.status, error.fields, error.http_status)
        case HTTPException():
            return _from_starlette(error)
    return _from_status(to_status(error))


async def answer_error(_: Request, error: Exception) -> Response:
    """Answers a request that failed, as Starlette's handler of exceptions."""
    return to_problem(error)


HANDLERS = dict.fromkeys(
    (CallFailedError, ProblemError, ExplanationServerError, HTTPException, Exception), answer_error
)


def _from_status(
    status: status_pb2.Status,
    fields: Mapping[str, str] | None = None,
    http_status: HTTPStatus | None = None,
) -> Response:
    code = status_code(status)
    members: dict[str, Any] = {}
    headers: dict[str, str] = {}
    bad, retry = error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
    for packed in status.details:
        if packed.Unpack(bad) and bad.field_violations:
            field = bad.field_violations[0].field
            members["field"] = (fields or {}).get(field, field)
        if packed.Unpack(retry):
            retry_after_s = retry.retry_delay.ToMilliseconds() / 1000
            members["retry_after_s"] = retry_after_s
            headers["Retry-After"] = str(math.ceil(retry_after_s))
    if http_status is None:
        http_status = _STATUSES.get(code, HTTPStatus.INTERNAL_SERVER_ERROR)
        if code is grpc.StatusCode.RESOURCE_EXHAUSTED and "retry_after_s" not in members:
            http_status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    if code is grpc.StatusCode.UNAUTHENTICATED:
        headers |= _CHALLENGE
    if "retry_after_s" in members:
        members["remedy"] = f"try again in {members['retry_after_s']:g} s"
    elif code is grpc.StatusCode.DEADLINE_EXCEEDED:
        members["remedy"] = "allow more time, or try again when the server has less to do"
    elif found := _REMEDY.fullmatch(status.message):
        members["remedy"] = found[1]
    return _respond(http_status, status.message, code, headers, members)


def _from_starlette(error: HTTPException) -> Response:
    headers = dict(error.headers or {})
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        detail, remedy = "this path has no such method", f"use {headers.get('Allow', 'another')}"
    elif error.status_code == HTTPStatus.NOT_FOUND:
        detail, remedy = "there is no such path", "GET /openapi.json lists the paths"
    else:
        detail, remedy = error.detail, ""
    code = _CODES.get(error.status_code, grpc.StatusCode.INVALID_ARGUMENT)
    return _respond(error.status_code, detail, code, headers, {"remedy": remedy})


def _respond(
    status: int,
    detail: str,
    code: grpc.StatusCode,
    headers: Mapping[str, str],
    members: Mapping[str, Any],
) -> Response:
    title = HTTPStatus(status).phrase
    problem = {"type": "about:blank", "title": title, "status": int(status), "detail": detail}
    problem |= {"code": code.name}
    problem |= {name: value for name, value in members.items() if value != ""}
    content = json.dumps(problem, ensure_ascii=False).encode("utf-8", "replace")
    return Response(content, status, {**headers, "Content-Type": CONTENT_TYPE})
