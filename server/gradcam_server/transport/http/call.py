"""A request over HTTP as a call: what the services, the access control and the limits use of it."""

import asyncio
import math
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from http import HTTPStatus
from time import perf_counter
from typing import NoReturn

import grpc
from google.rpc import status_pb2
from starlette.requests import Request

from gradcam_server.config.settings import ServeConfig
from gradcam_server.errors import DeadlineError
from gradcam_server.pipeline.ledger import Claim
from gradcam_server.telemetry.logs import choose_request_id
from gradcam_server.transport.calls import CallRecord, Calls, Context, Metadata, call_deadline
from gradcam_server.transport.http.body import BodyLimits, read_body
from gradcam_server.transport.http.problems import CallFailedError, ProblemError
from gradcam_server.transport.http.protocol import connection_of
from gradcam_server.transport.security.access import Access
from gradcam_server.transport.security.caller import current_caller
from gradcam_server.transport.security.receiving import Receiving
from gradcam_server.transport.sending import when_sent

TIMEOUT = "x-request-timeout"
REQUEST_ID = "x-request-id"
# What access control, the log and traces read. Access control must see all of a repeated header.
_METADATA = {b"authorization", b"traceparent", b"tracestate", b"baggage"}
_MAX_TIMEOUT_S = 86_400.0


class HttpCall(Context):
    """A request over HTTP, as the services use it.

    Args:
        request: The request.

    Attributes:
        request: The request.
        request_id: The id that the client gave, or a new one.
        fields: Names of fields in this request, by their names in the proto file.
        http_status: The status of HTTP of its failure; None if the code decides.
    """

    def __init__(self, request: Request) -> None:
        self.request = request
        self.request_id = choose_request_id(request.headers.get(REQUEST_ID))
        self._metadata: Metadata = (
            *(
                (name.decode("latin-1"), value.decode("latin-1"))
                for name, value in request.scope["headers"]
                if name in _METADATA
            ),
            (REQUEST_ID, self.request_id),
        )
        self._code: grpc.StatusCode | None = None
        self._deadline: float | None = None
        self.fields: Mapping[str, str] = {}
        self.http_status: HTTPStatus | None = None

    def invocation_metadata(self) -> Metadata:
        return self._metadata

    def peer(self) -> str:
        client = self.request.client
        return f"http:{client.host}:{client.port}" if client else ""

    def time_remaining(self) -> float | None:
        return None if self._deadline is None else self._deadline - perf_counter()

    def read_timeout(self) -> None:
        """Reads the deadline from the headers.

        Raises:
            ProblemError: It is not a time.
        """
        timeout_s = _timeout_s(self.request.headers)
        self._deadline = None if timeout_s is None else perf_counter() + timeout_s

    def code(self) -> grpc.StatusCode | None:
        """Returns the code that the call ended with; None for OK."""
        return self._code

    async def abort(
        self, code: grpc.StatusCode, details: str = "", trailing_metadata: Metadata = ()
    ) -> NoReturn:
        self.failed(code)
        packed = dict(trailing_metadata).get("grpc-status-details-bin")
        if isinstance(packed, bytes):
            status = status_pb2.Status.FromString(packed)
        else:
            status = status_pb2.Status(code=code.value[0], message=details)
        raise CallFailedError(status, self.fields, self.http_status)

    def failed(self, code: grpc.StatusCode) -> None:
        """Notes the code that the call ends with."""
        self._code = code

    async def write(self, message: object) -> None:
        raise NotImplementedError  # streams are gRPC's


class AdmittedCall:
    """A call that access control has admitted.

    Args:
        call: The call.
        calls: Admits and records calls.
        limits: The limits of its body.
        receiving: Paces large bodies, as it paces large messages of gRPC.

    Attributes:
        request: The request.
    """

    def __init__(
        self, call: HttpCall, calls: Calls, limits: BodyLimits, receiving: Receiving
    ) -> None:
        self._call, self._calls, self._limits = call, calls, limits
        self.request, self._receiving = call.request, receiving

    def name_fields(self, names: Mapping[str, str]) -> None:
        """Errors name fields of the proto file by these names from now on."""
        self._call.fields = names

    @asynccontextmanager
    async def answering(self, rpc: str) -> AsyncIterator[tuple[CallRecord, Claim, float | None]]:
        """Lets the call in while the server is SERVING, counts it, and ends it at its deadline.

        The answer is made in the block, and sent by the same task.

        Args:
            rpc: Full name of gRPC's method that does the same; metrics count the call by it.

        Yields:
            What metrics record of the call; the memory that it holds; and its deadline, a time of
            ``perf_counter``, or None.

        Raises:
            CallFailedError: The server is not ready, or the block raised an error.
            DeadlineError: The deadline has passed.
        """
        call = self._call
        try:
            async with (
                asyncio.timeout(call.time_remaining()),
                self._calls.answering(call, rpc) as record,
            ):
                claim = self._calls.claim(call)
                when_sent(claim.release)
                yield record, claim, call_deadline(call)
        except TimeoutError:
            # As gRPC does, the transport ends the call: the services see a cancellation.
            call.failed(grpc.StatusCode.DEADLINE_EXCEEDED)
            raise DeadlineError(
                f"the answer was not ready in {self.request.headers[TIMEOUT]} s: "
                f"allow more time in {TIMEOUT}"
            ) from None

    async def body(self, cost: int = 1) -> bytes:
        """Reads the body, inside of ``answering``.

        Args:
            cost: How much longer the event loop works on it than on a file of this size.

        Raises:
            TooLargeError: It is too large.
            DeadlineError: It takes too long.
            QueueFullError: There is too little memory for it now.
        """
        caller = current_caller.get().key
        await self._receiving.turn(caller)
        transit = self._calls.claim(self._call)
        try:
            body = await read_body(self.request, self._limits, transit)
        except DeadlineError:
            self._call.http_status = HTTPStatus.REQUEST_TIMEOUT
            raise
        finally:
            transit.release()
        self._receiving.received(caller, cost * len(body))
        if (connection := connection_of(self.request.scope)) is not None:
            connection.watch()
        return body


class HttpCalls:
    """Admits requests over HTTP as the gRPC port admits calls.

    Args:
        config: The settings.
        access: Decides who may call.
        calls: Admits and records calls.
    """

    def __init__(self, config: ServeConfig, access: Access, calls: Calls) -> None:
        self._access, self._calls = access, calls
        self._limits = BodyLimits(config.max_message_bytes, config.http_max_receive_s)
        self._needs_certificate = config.tls_client_ca is not None

    @asynccontextmanager
    async def admitted(self, request: Request) -> AsyncIterator[AdmittedCall]:
        """Admits a request by its token and the limits of its caller.

        Raises:
            ProblemError: The client has no certificate, or the deadline is not a time.
            UnauthenticatedError: The request has no token, or an unknown token.
            LimitError: The caller has reached a limit.
        """
        call = HttpCall(request)
        request.state.request_id = call.request_id
        with self._access.admitted(call):
            try:
                self._check_certificate(request)
                call.read_timeout()
                yield AdmittedCall(call, self._calls, self._limits, self._access.receiving)
            except ProblemError:
                call.failed(grpc.StatusCode.INVALID_ARGUMENT)
                raise

    def _check_certificate(self, request: Request) -> None:
        connection = connection_of(request.scope)
        if self._needs_certificate and connection is not None and not connection.has_certificate:
            raise ProblemError(
                HTTPStatus.FORBIDDEN,
                "this server answers clients with a certificate only (mutual TLS)",
                "connect with a client certificate of its authorities",
            )


def _timeout_s(headers: Mapping[str, str]) -> float | None:
    """Reads the header of the deadline.

    Raises:
        ProblemError: It is no time.
    """
    given = headers.get(TIMEOUT)
    if given is None:
        return None
    try:
        seconds = float(given)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= _MAX_TIMEOUT_S:
        raise ProblemError(
            HTTPStatus.BAD_REQUEST,
            f"{TIMEOUT} is {given[:40]!r}",
            f"it must be seconds, more than 0 and at most {_MAX_TIMEOUT_S:g}, such as 0.5",
            TIMEOUT,
        )
    return seconds
