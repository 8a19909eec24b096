"""Admits calls: the interceptor of all services. Health needs no token and has no limits."""

import inspect
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from time import monotonic
from typing import Any, Literal, TypeAlias

import grpc
from google.protobuf.message import DecodeError

from gradcam_server.config.settings import ServeConfig
from gradcam_server.errors import (
    ForbiddenError,
    InvalidRequestError,
    LimitError,
    UnauthenticatedError,
)
from gradcam_server.transport.security.caller import Caller, current_caller
from gradcam_server.transport.security.limits import Slots
from gradcam_server.transport.security.receiving import Receiving
from gradcam_server.transport.security.tokens import Token, TokenFile
from gradcam_server.transport.sending import SendLimit, forget_frames, when_sent
from gradcam_server.transport.status import abort, to_status

logger = logging.getLogger(__name__)

OnTokenRequest: TypeAlias = Callable[[str, str], None]
"""Receives each ended call: the name of its token (or an empty text) and of its gRPC code."""

OnRejected: TypeAlias = Callable[[Literal["unauthenticated", "forbidden", "limited"]], None]
"""Receives the reason for each refused call."""

_HEALTH = "/grpc.health.v1.Health/"
_HOW = "send the metadata 'authorization: Bearer TOKEN'"
_RETRY_STREAM_S = 1.0

_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any] | None"
_Metadata: TypeAlias = Sequence[tuple[str, str | bytes]]
_Admit: TypeAlias = Callable[[bool, Any], AbstractContextManager[None]]
"""Receives whether a call's requests are a stream, and its context. Sets the current caller."""

_REFUSALS = (LimitError, InvalidRequestError, UnauthenticatedError, ForbiddenError)


class Access:
    """Knows the tokens, and counts what their holders use.

    Args:
        config: The settings.
        on_token_request: Called with each ended call (``OnTokenRequest``).
        on_rejected: Called with the reason for each refused call.
        clock: Time in seconds.

    Raises:
        StartupError: The token file cannot be used.
    """

    def __init__(
        self,
        config: ServeConfig,
        on_token_request: OnTokenRequest = lambda *_: None,
        on_rejected: OnRejected = lambda _: None,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self.on_token_request, self.on_rejected = on_token_request, on_rejected
        self._clock = clock
        self._callers: dict[str, Caller] = {}
        self.receiving = Receiving()
        self._streams = Slots(None)
        self.sending = SendLimit(config.max_send_s)
        self.configure(config, read_token_file(config))

    def configure(self, config: ServeConfig, tokens: TokenFile | None) -> None:
        """Applies new settings and tokens from now on."""
        self._tokens, self._front_ends = tokens, config.frontends
        self._streams.limit = config.max_streams

    def authenticate(self, metadata: Callable[[], _Metadata | None], connection: str) -> Caller:
        """Returns the caller of a call: the holder of a token or, without tokens, a connection.

        Args:
            metadata: Returns the call's metadata.
            connection: The client's connection, as gRPC names it.

        Raises:
            UnauthenticatedError: The call has no token, or an unknown token.
        """
        if self._tokens is None:
            return Caller(connection=connection)
        token = self._tokens.find(_bearer(metadata() or ()))
        if token is None:
            raise UnauthenticatedError("the token is unknown to this server, or was removed")
        return self._caller(token)

    def begin_stream(self) -> None:
        """Admits a stream, and counts it until ``end_stream``.

        Raises:
            LimitError: All callers together have too many streams.
        """
        if not self._streams.take():
            raise LimitError(
                f"{self._streams.limit} streams are open, which is this server's limit",
                _RETRY_STREAM_S,
            )

    def end_stream(self) -> None:
        """Counts an admitted stream no more."""
        self._streams.release()

    def _caller(self, token: Token) -> Caller:
        caller = self._callers.get(token.name)
        if caller is None:
            caller = self._callers[token.name] = Caller(token.name, self._clock)
        caller.allow(token, self._front_ends)
        return caller


class AccessInterceptor(grpc.aio.ServerInterceptor):
    """Admits calls, and refuses the others before their messages are read.

    Args:
        access: Decides which calls are admitted.
        admin: Whether all calls need a token that may administer.
    """

    def __init__(self, access: Access, *, admin: bool = False) -> None:
        self._access, self._admin = access, admin
        self._handlers: dict[str, _Handler] = {}
        unknown: _Handler = grpc.stream_stream_rpc_method_handler(_refuse_unknown)
        self._unknown = _wrap(unknown, self._admitted, access)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[_Handler]],
        details: grpc.HandlerCallDetails,
    ) -> _Handler:
        """Wraps the handler of a call."""
        if (wrapped := self._handlers.get(details.method)) is None:
            handler = await continuation(details)
            if handler is None:  # not kept: a client could send any number of unknown names
                return self._unknown
            is_open = details.method.startswith(_HEALTH)
            admitted = _AdmittedOpenly if is_open else self._admitted
            wrapped = _wrap(handler, admitted, self._access)
            self._handlers[details.method] = wrapped
        return wrapped

    def _admitted(self, streaming: bool, context: Any) -> "_Admitted":
        return _Admitted(self._access, context, streaming=streaming, admin=self._admin)


class _AdmittedOpenly:
    """Sets the caller of a call that needs no token and has no limits."""

    def __init__(self, _: bool, context: Any) -> None:
        self._context = context

    def __enter__(self) -> None:
        current_caller.set(Caller(connection=self._context.peer()))

    def __exit__(self, *_: object) -> None: ...


class _Admitted:
    """Admits a call, and reports how it ends.

    Args:
        access: Decides whether it is admitted.
        context: The call.
        streaming: Whether its requests are a stream.
        admin: Whether it needs a token that may administer.
    """

    def __init__(self, access: Access, context: Any, *, streaming: bool, admin: bool) -> None:
        self._access, self._context = access, context
        self._streaming, self._admin = streaming, admin

    def __enter__(self) -> None:
        try:
            self._admit()
        except BaseException as error:
            self._report(error)
            raise

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        self._report(error)

    def _admit(self) -> None:
        access, context = self._access, self._context
        caller = access.authenticate(context.invocation_metadata, context.peer())
        current_caller.set(caller)
        if self._admin:
            caller.check_admin()
        caller.begin_call()
        when_sent(caller.end_call)
        if self._streaming:
            access.begin_stream()
            when_sent(access.end_stream)

    def _report(self, error: BaseException | None) -> None:
        match error:
            case None:
                code = _code(self._context, "OK")
            case UnauthenticatedError():
                code = "UNAUTHENTICATED"
                self._access.on_rejected("unauthenticated")
            case ForbiddenError():
                code = "PERMISSION_DENIED"
                self._access.on_rejected("forbidden")
            case LimitError():
                code = "RESOURCE_EXHAUSTED"
                self._access.on_rejected("limited")
            case InvalidRequestError():
                code = "INVALID_ARGUMENT"
            case Exception():
                code = _code(self._context, "UNKNOWN")
            case _:
                code = "CANCELLED"
        self._access.on_token_request(current_caller.get().name, code)


async def _refuse_unknown(_: Any, context: Any) -> None:
    await context.abort(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")


class _Messages:
    """The messages of a call; ``Receiving`` decides when each is read."""

    def __init__(self, context: Any, receiving: Receiving) -> None:
        self._context, self._receiving = context, receiving

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        message = await _read(self._context, self._receiving)
        if message is grpc.aio.EOF:
            raise StopAsyncIteration
        return message


async def _read(context: Any, receiving: Receiving) -> Any:
    await receiving.turn(current_caller.get().key)
    return await context.read()


def _wrap(handler: Any, admitted: _Admit, access: Access) -> _Handler:
    """Returns a handler that admits calls, then reads their messages, and refuses bad messages.

    gRPC sees a handler with a stream of requests, because it reads messages of a stream only when
    the handler asks for them: never those of a refused call.
    """
    streaming = handler.request_streaming
    behaviour = getattr(handler, f"{_arity(streaming)}_{_arity(handler.response_streaming)}")
    write = handler.response_serializer or bytes

    async def read(context: Any) -> Any:
        if streaming:
            return _Messages(context, access.receiving)
        message = await _read(context, access.receiving)
        if message is grpc.aio.EOF:
            raise InvalidRequestError("", "the call has no message")
        return message

    async def respond(context: Any) -> Any:
        try:
            with admitted(streaming, context):
                response = await behaviour(await read(context), context)
        except _REFUSALS as error:
            await abort(context, to_status(error))
            return None
        if handler.response_streaming:
            return None
        access.sending.begin()
        # From here on only the bytes of the answer are held.
        return write(response)

    async def answer(_: Any, context: Any) -> Any:
        try:
            return await respond(context)
        except grpc.aio.AbortError as error:
            forget_frames(error)
            raise

    async def answer_each(_: Any, context: Any) -> AsyncIterator[Any]:
        try:
            with admitted(streaming, context):
                async for message in behaviour(await read(context), context):
                    yield message
        except _REFUSALS as error:
            await abort(context, to_status(error))

    make = getattr(grpc, f"stream_{_arity(handler.response_streaming)}_rpc_method_handler")
    return make(
        answer_each if inspect.isasyncgenfunction(behaviour) else answer,
        request_deserializer=_parser(handler.request_deserializer, access.receiving),
        response_serializer=handler.response_serializer if handler.response_streaming else None,
    )


def _parser(parse: Callable[[bytes], Any] | None, receiving: Receiving) -> Callable[[bytes], Any]:
    def parse_or_refuse(data: bytes) -> Any:
        receiving.received(current_caller.get().key, len(data))
        try:
            return data if parse is None else parse(data)
        except DecodeError:
            raise InvalidRequestError(
                "", f"the {len(data)} bytes are not this method's message"
            ) from None

    return parse_or_refuse


def read_token_file(config: ServeConfig) -> TokenFile | None:
    """Reads the token file, if there is one.

    Raises:
        StartupError: The token file cannot be used.
    """
    return TokenFile(Path(config.token_file)) if config.token_file is not None else None


def _bearer(metadata: _Metadata) -> str:
    values = [value for key, value in metadata if key == "authorization"]
    if not values:
        raise UnauthenticatedError(f"there is no token; {_HOW}")
    if len(values) > 1:
        raise UnauthenticatedError(f"there are {len(values)} tokens; {_HOW} once")
    scheme, _, token = str(values[0]).partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise UnauthenticatedError(f"the authorization is not a bearer token; {_HOW}")
    return token.strip()


def _arity(streaming: bool) -> str:
    return "stream" if streaming else "unary"


def _code(context: Any, otherwise: str) -> str:
    code = context.code()
    if code in (None, 0):
        return otherwise
    if isinstance(code, grpc.StatusCode):
        return code.name
    return next((known.name for known in grpc.StatusCode if known.value[0] == code), otherwise)
